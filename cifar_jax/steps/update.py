"""One update of the parameters.

Every replica computes the gradient of its part of the batch; the update is one computation on their
mean, however its arrays are sharded.
"""

import enum
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax import models, optim
from cifar_jax.devices import replicas
from cifar_jax.devices.replicas import AXIS
from cifar_jax.inputs import Curriculum, Inputs, Targets
from cifar_jax.optim import ema, layers
from cifar_jax.steps.state import Batch, Metrics, State, split_variables

SHOWN = 16  # images of a batch in the summaries of images and activations


def image_keys(
    seed: int, step: jax.Array, count: int, position: jax.Array | None = None
) -> jax.Array:
    """A key for each of this replica's `count` images, by its position in the global batch.

    The position, and not the replica, decides, so that an image is transformed alike on any number
    of devices. None: the replicas' parts follow each other.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    if position is None:
        position = lax.axis_index(AXIS) * count + jnp.arange(count)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, position)


def ready(batch: Batch, dataset: Batch, seed: int, step: jax.Array) -> Batch:
    """This replica's part of the batch for `Inputs.train`: with its "image" and "label", where they
    are in `dataset`, and a "key" for each image."""
    batch = batch | {name: array[batch["index"]] for name, array in dataset.items()}
    keys = image_keys(seed, step, len(batch["label"]), batch.get("position"))
    return {**batch, "key": keys}


class Scales(NamedTuple):
    """What the rate and the L2 penalty of a step are multiplied with: the arrays of a sweep."""

    rate: jax.Array | float = 1.0
    decay: jax.Array | float = 1.0


class Detail(enum.IntEnum):
    """How many auxiliary outputs a training step has."""

    NONE = 0
    SCALARS = 1  # norms of gradients, parameters and updates
    TENSORS = 2  # also what images and histograms show


def train_step(
    state: State,
    batch: Batch,
    dataset: Batch | None = None,
    *,
    config: ConfigDict,
    model: nn.Module,
    inputs: Inputs,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    num_steps: int,
    mesh: Mesh,
    class_weights: tuple[float, ...] | None = None,
    curriculum: Curriculum = Curriculum(),  # noqa: B008  (immutable)
    scales: Scales | None = None,
    detail: Detail = Detail.NONE,
) -> tuple[State, Metrics, dict[str, Any]]:
    """One update on a global batch: the new state, the metrics (those of the parameters before the
    update, on this batch), and auxiliary outputs.

    Where the `batch` has no images and labels, they are taken by its "index" from `dataset`, the
    whole split on each device. The update is the same at any `detail`. The auxiliary outputs are
    {} for NONE; "scalars" by name for SCALARS; for TENSORS also "gradients" and "params", trees
    like the parameters, and for the first `SHOWN` images of the batch the "images" as the network
    saw them, their "labels", and "activations" by layer.
    """
    gradient = partial(
        mean_gradient,
        config=config,
        model=model,
        inputs=inputs,
        class_weights=class_weights,
        curriculum=curriculum,
        detail=detail,
    )
    gradients, model_state, metrics, aux = replicas.on_replicas(gradient, mesh, sharded={3: 0})(
        state.params, state.model_state, state.step, batch, dataset or {}
    )
    metrics["dead"] = layers.without_gradient(gradients) & layers.learning(
        state.params, config.optim
    )
    l2, rate = optim.l2_penalty(state.params, config.optim), schedule(state.step)
    if scales:
        # The optimiser adds the decay that it was made with: here comes the rest.
        decay = jax.grad(optim.l2_penalty)(state.params, config.optim)
        gradients = jax.tree.map(lambda g, d: g + (scales.decay - 1) * d, gradients, decay)
        l2, rate = l2 * scales.decay, rate * scales.rate
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    if scales:
        updates = jax.tree.map(lambda update: update * scales.rate, updates)
    metrics |= {
        "loss": metrics["loss"] + l2,
        "l2": l2,
        "learning_rate": jnp.asarray(rate, jnp.float32),
    }
    if detail >= Detail.SCALARS:
        decay = jax.grad(optim.l2_penalty)(state.params, config.optim)
        gradients = jax.tree.map(jnp.add, gradients, decay)  # of the loss
        aux["scalars"] = layers.norms(gradients, state.params, updates) | aux.get("scalars", {})
    if detail >= Detail.TENSORS:
        aux |= {"gradients": gradients, "params": state.params}
    params = optax.apply_updates(state.params, updates)
    step, variables = state.step + 1, {"params": params, **model_state}
    if config.optim.lookahead.every:
        average, variables = ema.lookahead(state.ema, variables, step, config.optim, num_steps)
    else:
        average = ema.update(state.ema, variables, step, config.optim.ema_decay)
    params, model_state = split_variables(variables)
    changed = {"params": params, "model_state": model_state, "opt_state": opt_state}
    return state.replace(step=step, ema=average, **changed), metrics, aux


def mean_gradient(
    params: Any,
    model_state: Any,
    step: jax.Array,
    batch: Batch,
    dataset: Batch,
    *,
    config: ConfigDict,
    model: nn.Module,
    inputs: Inputs,
    class_weights: tuple[float, ...] | None,
    curriculum: Curriculum,
    detail: Detail,
) -> tuple[Any, Any, Metrics, dict[str, Any]]:
    """(gradient, model's new state, metrics, auxiliary outputs): the gradient and the metrics are
    means over all replicas; the auxiliary outputs, for TENSORS, those of the first replica's part,
    and "scalars" with the sparsity over all.

    Runs on each replica, with its part of the batch.
    """
    batch = ready(batch, dataset, config.seed, step)
    # The gradient with respect to parameters that are one value for all replicas would arrive
    # summed over them. As a value of each replica it arrives local, for pmean to average.
    params = lax.pcast(params, AXIS, to="varying")
    differentiate = partial(
        gradient,
        params,
        model_state,
        step,
        config=config,
        model=model,
        inputs=inputs,
        class_weights=class_weights,
        curriculum=curriculum,
        detail=detail,
    )
    means, model_state, aux = over_microbatches(differentiate, batch, config.accumulate)
    gradients, metrics = lax.pmean(means, AXIS)
    if detail < Detail.TENSORS:
        return gradients, model_state, metrics, {}
    sparsity = {f"sparsity/{name}": zeros(x) for name, x in aux["activations"].items()}
    return gradients, model_state, metrics, {"scalars": sparsity, **of_first_replica(aux)}


def gradient(
    params: Any,
    model_state: Any,
    step: jax.Array,
    batch: Batch,
    *,
    config: ConfigDict,
    model: nn.Module,
    inputs: Inputs,
    class_weights: tuple[float, ...] | None,
    curriculum: Curriculum,
    detail: Detail,
) -> tuple[tuple[Any, Metrics], Any, dict[str, Any]]:
    """((gradient, metrics), the model's new state, auxiliary outputs) of one microbatch.

    Activations are those of the images at their full size.
    """
    images, targets = inputs.train(batch["key"], batch)

    def forward(params, images, layers):
        variables = {"params": params, **model_state}
        return models.forward(model, variables, images, train=True, layers=layers)

    wanted = detail >= Detail.TENSORS

    def of_images(images):
        def loss_fn(params):
            logits, state, activations = forward(params, images, wanted and not curriculum.ends)
            smoothing = config.optim.label_smoothing
            cross_entropy, loss = losses(logits, targets, smoothing, class_weights)
            metrics = {
                "loss": loss.mean(),
                "cross_entropy": cross_entropy.mean(),
                "accuracy": (logits.argmax(-1) == batch["label"]).mean(),
            }
            return metrics["loss"], (metrics, state, activations)

        return jax.grad(loss_fn, has_aux=True)(params)

    gradients, (metrics, state, activations) = curriculum.apply(step, of_images, images)
    if wanted and curriculum.ends:
        activations = forward(params, images, True)[2]
    aux = {"images": images, "labels": batch["label"], "activations": activations}
    return (gradients, metrics), state, aux


def losses(
    logits: jax.Array,
    targets: Targets,
    smoothing: float | jax.Array,
    class_weights: tuple[float, ...] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy, loss to minimise), float32 [B] each. The loss is the cross-entropy with
    smoothed labels: 1 - `smoothing` on the targets, the rest spread evenly over all classes; times
    the weight of the target's class, where there are `class_weights`."""
    cross_entropy = of_targets(
        lambda label: optax.softmax_cross_entropy_with_integer_labels(logits, label), targets
    )
    loss = cross_entropy
    if isinstance(smoothing, jax.Array) or smoothing:
        uniform = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
        loss = (1 - smoothing) * cross_entropy + smoothing * uniform
    if class_weights is not None:
        loss *= of_targets(lambda label: jnp.array(class_weights, jnp.float32)[label], targets)
    return cross_entropy, loss


def of_targets(function: Callable[[Any], jax.Array], targets: Targets) -> jax.Array:
    """`function` of the labels; of mixed images the weighted mean over both labels."""
    value = function(targets.label)
    if targets.weight is None:
        return value
    return targets.weight * value + (1 - targets.weight) * function(targets.other_label)


def over_microbatches(function: Callable, batch: Batch, count: int) -> tuple[Any, Any, Any]:
    """`function(batch)`, which gives means, the model's state and auxiliary outputs, on `count`
    microbatches of equal size.

    One after the other, each in the memory of the one before: the mean of the means, and the
    auxiliary outputs of the first. The new state is the mean, too: each microbatch starts from the
    state before the step, so that running averages move once a step, towards the mean of the
    microbatches' statistics. As every replica divides its own part, which images share a
    microbatch, and so its batch statistics, depends on the number of devices.
    """
    if count == 1:
        return function(batch)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    first, rest = (jax.tree.map(lambda x, i=i: x[i], parts) for i in (0, slice(1, None)))
    *means, aux = function(first)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)[:2]), None

    total, _ = lax.scan(add, tuple(means), rest)
    return (*jax.tree.map(lambda x: x / count, total), aux)


def zeros(activations: jax.Array) -> jax.Array:
    """The fraction of zeros, over all replicas: the tutorial's sparsity."""
    return lax.pmean((activations == 0).mean(), AXIS)


def of_first_replica(tree: Any) -> Any:
    """The first `SHOWN` entries that the first replica has of each array, for all replicas."""
    first = lax.axis_index(AXIS) == 0
    shown = jax.tree.map(lambda x: jnp.where(first, x[:SHOWN], 0), tree)
    return lax.psum(shown, AXIS)
