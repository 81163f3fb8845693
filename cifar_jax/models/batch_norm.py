"""Batch normalisation (Ioffe and Szegedy, 2015) over the batch of all replicas together."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.devices.replicas import AXIS


class BatchNorm(nn.Module):
    """[..., C] of any float dtype -> the same: per channel, zero mean and unit variance.

    In training, by the statistics of the global batch, over all axes but the last and over the
    replicas, so that their number changes nothing; in evaluation, by running averages of them,
    the state "batch_stats" {mean, var: float32 [C]}. Outside of the replicas' axis the batch is
    the whole one. Statistics are float32 at least.

    PyTorch's `nn.BatchNorm2d(momentum=0.1)` is `momentum=0.9` here. As there, a batch is
    normalised by its own variance, while the running one averages the unbiased estimate.
    """

    use_scale: bool = True
    use_bias: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9  # running = momentum · running + (1 - momentum) · the batch's

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1:]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if train:
            mean, var, count = batch_statistics(wide)
            self._update(running_mean, mean)
            self._update(running_var, var * (count / max(count - 1, 1)))
        else:
            mean, var = running_mean.value, running_var.value

        factor = lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", nn.initializers.ones, channels, jnp.float32)
        y = (wide - mean) * factor
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        return y.astype(x.dtype)

    def _update(self, running: nn.Variable, new: jax.Array) -> None:
        if not self.is_initializing():
            # No gradient: a loss knows of the batch's statistics alone.
            new = lax.stop_gradient(new).astype(jnp.float32)
            running.value = self.momentum * running.value + (1 - self.momentum) * new


def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """(mean [C], biased variance [C], how many values each is of) of all replicas' x [..., C].

    The squares are those of differences from the mean: mean(x²) - mean² would cancel where the
    mean is large, and come out below zero where the values are equal.
    """
    axes = tuple(range(x.ndim - 1))
    mean = _mean_of_replicas(x.mean(axes))
    var = _mean_of_replicas(jnp.square(x - mean).mean(axes))
    return mean, var, x.size // x.shape[-1] * _replicas()


def _replicas() -> int:
    try:
        return lax.axis_size(AXIS)
    except NameError:  # no axis of this name: at initialisation, or in a plain function
        return 1


def _mean_of_replicas(x: jax.Array) -> jax.Array:
    try:
        return lax.pmean(x, AXIS)
    except NameError:
        return x
