"""What happens to one batch: pure functions of (state, batch), run on every replica.

They are bound to their configuration once, outside, and compiled by `parallel.data_parallel`.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from ml_collections import ConfigDict

from cifar_jax import augment, models, optim
from cifar_jax.parallel import AXIS

Batch = dict[str, jax.Array]  # "image" uint8 [B, H, W, C], "label" int32 [B], B of this replica
Metrics = dict[str, jax.Array]


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
    crop = config.augment.crop_size
    images = jnp.zeros((1, crop, crop, 3))
    params = model.init(jax.random.key(config.seed), images)["params"]
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def predict(model: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    """float32 logits [B, num_classes] of standardised images [B, crop, crop, C]."""
    return cast(jax.Array, model.apply({"params": params}, images))


def image_keys(seed: int, step: jax.Array, count: int) -> jax.Array:
    """A key for each of this replica's `count` images, by its position in the global batch.

    The position, and not the replica, decides, so that the distortions of an image are the same
    on any number of devices.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    position = lax.axis_index(AXIS) * count + jnp.arange(count)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, position)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> tuple[TrainState, Metrics]:
    """One update. The metrics are of the batch and of the parameters before the update."""
    keys = image_keys(config.seed, state.step, len(batch["label"]))
    images = augment.distort(keys, batch["image"], config.augment)
    scale = optim.loss_scale(state.opt_state)

    def loss_fn(params):
        logits = predict(model, params, images)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        loss = smooth(cross_entropy, logits, config.optim.label_smoothing).mean()
        return scale * loss, (logits, loss, cross_entropy.mean())

    # The gradient with respect to parameters that are one value for all replicas would arrive
    # summed over them. As a value of each replica it arrives local, for pmean to average.
    params = lax.pcast(state.params, AXIS, to="varying")
    gradients, (logits, loss, cross_entropy) = jax.grad(loss_fn, has_aux=True)(params)
    precision = (logits.argmax(-1) == batch["label"]).mean()
    gradients, loss, cross_entropy, precision = lax.pmean(
        (gradients, loss, cross_entropy, precision), AXIS
    )

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    l2 = optim.l2_penalty(state.params, config.optim)
    metrics = {
        "loss": loss + l2,
        "cross_entropy": cross_entropy,
        "l2": l2,
        "precision": precision,
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics


def smooth(cross_entropy: jax.Array, logits: jax.Array, smoothing: float) -> jax.Array:
    """The cross-entropy [B] with labels of 1 - smoothing, and the rest spread over all classes."""
    if not smoothing:
        return cross_entropy
    uniform = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
    return (1 - smoothing) * cross_entropy + smoothing * uniform


def eval_step(params: Any, batch: Batch, *, config: ConfigDict, model: nn.Module) -> Metrics:
    """Sums over the images of the batch whose `mask` is set, and their number.

    With `config.eval.views`, also those of the probabilities averaged over several views.
    """
    mask, label = batch["mask"], batch["label"]

    def sums(logits):
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return {
            "correct": (mask & (logits.argmax(-1) == label)).sum(dtype=jnp.int32),
            "cross_entropy": jnp.where(mask, cross_entropy, 0).sum(),
        }

    views = augment.views(batch["image"], config.augment.crop_size, config.eval.views)
    logits = [predict(model, params, images) for images in views]
    metrics = {"count": mask.sum(dtype=jnp.int32), **sums(logits[0])}
    if len(logits) > 1:
        log_mean = jnp.log(jnp.mean(jax.nn.softmax(jnp.stack(logits)), axis=0))
        metrics |= {f"{name}_of_views": value for name, value in sums(log_mean).items()}
    return lax.psum(metrics, AXIS)
