"""What happens to one batch: pure functions of (state, batch), bound to their configuration once.

Every replica works out the gradient of its part of the batch; the update is one computation on the
average, wherever its arrays lie.
"""

import enum
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cifar_jax import inputs as inputs_lib
from cifar_jax import models, optim
from cifar_jax.devices import replicas
from cifar_jax.devices.replicas import AXIS
from cifar_jax.inputs import Inputs, Targets

Batch = dict[str, jax.Array]  # "image" uint8 [B, H, W, C], "label" int32 [B]
Metrics = dict[str, jax.Array]
SHOWN = 16  # images of a batch that pictures and histograms show
TOP = 3  # classes that a prediction names
_PART = 64  # images


class TrainState(struct.PyTreeNode):
    """All that a run remembers: everything else follows from the config and `step`."""

    step: jax.Array  # int32, updates so far
    params: Any
    opt_state: Any  # holds the average of the parameters


def make_model(config: ConfigDict, num_classes: int) -> nn.Module:
    return models.create(config.model.name, num_classes, config.dtype)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The chain of `config.optim`; for float16 it also scales the loss."""
    optimizer = optim.make_optimizer(config.optim, schedule)
    if config.dtype == "float16":
        optimizer = optim.scale_loss(optimizer, config.optim.loss_scale)
    return optimizer


def init_state(
    config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step. Raises UsageError for a layer the model does not have."""
    images = jnp.zeros((1, *inputs_lib.image_shape(config.inputs)))
    params = model.init(jax.random.key(config.seed), images)["params"]
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def shardings(state: TrainState, mesh: Mesh, split_optimizer: bool) -> TrainState:
    """Where each array of the state lies: on every device; or, of the optimiser's state and so of
    the averages, a part on each (Rajbhandari et al., ZeRO, 2020: its first stage)."""
    whole = jax.tree.map(lambda _: NamedSharding(mesh, P()), state)
    if not split_optimizer:
        return whole
    return whole.replace(opt_state=replicas.split(state.opt_state, mesh))


def predict(model: nn.Module, params: Any, images: jax.Array, **options: bool) -> Any:
    """float32 logits [B, num_classes] of images [B, H, W, C] as `Inputs` gives them.

    With `return_layers=True`, also what each layer puts out, by its name.
    """
    return model.apply({"params": params}, images, **options)  # type: ignore[arg-type]


def predict_in_parts(model: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    """`predict`; on CPUs `_PART` images at a time, so that what one layer puts out is still in the
    cache for the next."""

    def in_parts(params, images):
        whole = len(images) // _PART * _PART
        parts = images[:whole].reshape(-1, _PART, *images.shape[1:])
        logits = lax.map(partial(predict, model, params), parts).reshape(whole, -1)
        if whole < len(images):
            logits = jnp.concatenate([logits, predict(model, params, images[whole:])])
        return logits

    if len(images) <= _PART:
        return predict(model, params, images)
    return lax.platform_dependent(params, images, cpu=in_parts, default=partial(predict, model))


def image_keys(seed: int, step: jax.Array, count: int) -> jax.Array:
    """A key for each of this replica's `count` images, by its position in the global batch.

    The position, and not the replica, decides, so that the distortions of an image are the same
    on any number of devices.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    position = lax.axis_index(AXIS) * count + jnp.arange(count)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, position)


class Detail(enum.IntEnum):
    """How much a training step tells of itself, beside its metrics."""

    NONE = 0
    SCALARS = 1  # norms of gradients, parameters and updates
    TENSORS = 2  # also what pictures and histograms show


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: ConfigDict,
    inputs: Inputs,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    detail: Detail = Detail.NONE,
) -> tuple[TrainState, Metrics, dict[str, Any]]:
    """One update by a global batch; its metrics, of the batch and the parameters before it; and
    what it tells.

    The update is the same at any `detail`. What it tells is {} for NONE; "scalars" by name for
    SCALARS; for TENSORS also "gradients" and "params" as the parameters are, and of `SHOWN` images
    of the batch the "images" as the network saw them, their "labels", and "layers" by name.
    """
    options = {"config": config, "inputs": inputs, "model": model, "detail": detail}
    average = partial(average_gradients, **options)
    scale = jnp.asarray(optim.loss_scale(state.opt_state))
    gradients, metrics, shown = replicas.on_replicas(average, mesh, sharded={3: 0})(
        state.params, state.step, scale, batch
    )

    metrics["dead"] = without_gradient(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    l2 = optim.l2_penalty(state.params, config.optim)
    metrics |= {
        "loss": metrics["loss"] + l2,
        "l2": l2,
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    }
    told: dict[str, Any] = {}
    if detail >= Detail.SCALARS:
        decay = jax.grad(optim.l2_penalty)(state.params, config.optim)
        gradients = jax.tree.map(lambda g, d: g / scale + d, gradients, decay)  # of the loss
        told["scalars"] = norms(gradients, state.params, updates)
    if detail >= Detail.TENSORS:
        told["scalars"] |= shown.pop("scalars")
        told |= {"gradients": gradients, "params": state.params, **shown}
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics, told


def average_gradients(
    params: Any,
    step: jax.Array,
    scale: jax.Array,
    batch: Batch,
    *,
    config: ConfigDict,
    inputs: Inputs,
    model: nn.Module,
    detail: Detail,
) -> tuple[Any, Metrics, dict[str, Any]]:
    """The gradient of scale · loss and the metrics, averaged over all replicas; and, for TENSORS,
    what can be shown of the first one's part, with the sparsity of all as "scalars".

    Run on each replica, with its part of the batch.
    """
    keys = image_keys(config.seed, step, len(batch["label"]))
    unknown = jnp.zeros_like(batch["label"])  # until the feeds deliver them
    batch = {"index": unknown, "epoch": unknown, **batch, "key": keys}
    # The gradient with respect to parameters that are one value for all replicas would arrive
    # summed over them. As a value of each replica it arrives local, for pmean to average.
    params = lax.pcast(params, AXIS, to="varying")
    differentiated = partial(
        differentiate,
        params,
        config=config,
        inputs=inputs,
        model=model,
        scale=scale,
        detail=detail,
    )
    means, shown = over_parts(differentiated, batch, config.accumulate)
    gradients, metrics = lax.pmean(means, AXIS)
    if detail < Detail.TENSORS:
        return gradients, metrics, {}
    sparsity = {f"sparsity/{name}": zeros(x) for name, x in shown["layers"].items()}
    return gradients, metrics, {"scalars": sparsity, **of_first_replica(shown)}


def differentiate(
    params: Any,
    batch: Batch,
    *,
    config: ConfigDict,
    inputs: Inputs,
    model: nn.Module,
    scale: jax.Array | float,
    detail: Detail,
) -> tuple[tuple[Any, Metrics], dict[str, Any]]:
    """((the gradient of scale · loss, metrics), what can be shown), of the distorted batch."""
    images, targets = inputs.train(batch["key"], batch)

    def loss_fn(params):
        if detail >= Detail.TENSORS:
            logits, layers = predict(model, params, images, return_layers=True)
        else:
            logits, layers = predict(model, params, images), {}
        cross_entropy = cross_entropies(logits, targets)
        loss = smooth(cross_entropy, logits, config.optim.label_smoothing).mean()
        metrics = {
            "loss": loss,
            "cross_entropy": cross_entropy.mean(),
            "precision": (logits.argmax(-1) == batch["label"]).mean(),
        }
        return scale * loss, (metrics, layers)

    gradients, (metrics, layers) = jax.grad(loss_fn, has_aux=True)(params)
    return (gradients, metrics), {"images": images, "labels": batch["label"], "layers": layers}


def over_parts(function: Callable, batch: Batch, count: int) -> tuple[Any, Any]:
    """`function(batch)`, which gives means and something more, on `count` parts of the batch.

    One after the other, each in the memory of the one before: the mean of the means, and what more
    there is of the first part.
    """
    if count == 1:
        return function(batch)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    first, rest = (jax.tree.map(lambda x, i=i: x[i], parts) for i in (0, slice(1, None)))
    means, more = function(first)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)[0]), None

    total, _ = lax.scan(add, means, rest)
    return jax.tree.map(lambda x: x / count, total), more


def without_gradient(gradients: Any) -> jax.Array:
    """bool [layers], in the order of their sorted names: no gradient reaches the layer's vectors,
    its bias above all, and so its activations, or all those of a later layer, are 0."""

    def is_zero(layer: Any) -> jax.Array:
        leaves = jax.tree.leaves(layer)
        vectors = [leaf for leaf in leaves if leaf.ndim == 1] or leaves
        return jnp.stack([(leaf == 0).all() for leaf in vectors]).all()

    return jnp.stack([is_zero(gradients[name]) for name in sorted(gradients)])


def norms(gradients: Any, params: Any, updates: Any) -> Metrics:
    """The Euclidean norms of all and of each layer, and update / parameters."""
    result: Metrics = {}
    for suffix, *trees in (
        ("", gradients, params, updates),
        *((f"/{layer}", gradients[layer], params[layer], updates[layer]) for layer in params),
    ):
        gradient, parameter, update = map(optax.tree.norm, trees)
        result |= {
            f"gradient_norm{suffix}": gradient,
            f"parameter_norm{suffix}": parameter,
            f"update_ratio{suffix}": update / (parameter + 1e-12),
        }
    return result


def zeros(activations: jax.Array) -> jax.Array:
    """The share of zeros, over all replicas: the tutorial's sparsity."""
    return lax.pmean((activations == 0).mean(), AXIS)


def of_first_replica(tree: Any) -> Any:
    """The first `SHOWN` entries that the first replica has of each array, for all replicas."""
    first = lax.axis_index(AXIS) == 0
    shown = jax.tree.map(lambda x: jnp.where(first, x[:SHOWN], 0), tree)
    return lax.psum(shown, AXIS)


def cross_entropies(logits: jax.Array, targets: Targets) -> jax.Array:
    """float32 [B]; where images are mixed, as much of each label's as its image has of it."""
    own = optax.softmax_cross_entropy_with_integer_labels(logits, targets.label)
    if targets.weight is None:
        return own
    other = optax.softmax_cross_entropy_with_integer_labels(logits, targets.other_label)
    return targets.weight * own + (1 - targets.weight) * other


def smooth(cross_entropy: jax.Array, logits: jax.Array, smoothing: float) -> jax.Array:
    """The cross-entropy [B] with labels of 1 - smoothing, and the rest spread over all classes."""
    if not smoothing:
        return cross_entropy
    uniform = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
    return (1 - smoothing) * cross_entropy + smoothing * uniform


def predict_step(
    params: Any, batch: Batch, *, inputs: Inputs, model: nn.Module, views: int = 1
) -> Metrics:
    """What the model says of each image: "classes" and "probabilities" [B, 3], "cross_entropy" [B].

    The most probable first, and fewer than three where there are fewer classes. The probabilities
    are the mean of those of `views` (`inputs.views`), by their weights.
    """
    looks = inputs.evaluate(batch["image"], views)
    logits = jnp.stack([predict_in_parts(model, params, images) for images in looks])
    weights = jnp.array(inputs_lib.weights(views))[:, None, None]
    log_mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0, b=weights)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(log_mean, batch["label"])
    log_probabilities, classes = lax.top_k(log_mean, min(TOP, log_mean.shape[-1]))
    return {
        "classes": classes,
        "probabilities": jnp.exp(log_probabilities),
        "cross_entropy": cross_entropy,
    }
