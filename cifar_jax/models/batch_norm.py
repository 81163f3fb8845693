"""Batch normalisation (Ioffe and Szegedy, 2015) over the batch of all replicas together."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.devices.replicas import AXIS
from cifar_jax.ops import native
from cifar_jax.ops.norm_gelu import batch_norm_gelu, gelu, norm_gelu


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
    gelu: bool = False  # of the result
    epsilon: float = 1e-5
    momentum: float = 0.9  # running = momentum · running + (1 - momentum) · the batch's

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.gelu and not self.use_scale and self.use_bias and native.wanted(x):
            return self._native(x, train)
        channels = x.shape[-1:]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            mean, var = batch_statistics(wide)
            self._update(mean, var, x)
        else:
            mean, var = (running.value for running in self._running(channels))

        factor = lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", nn.initializers.ones, channels, jnp.float32)
        y = (wide - mean) * factor
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        y = y.astype(x.dtype)
        return gelu(y) if self.gelu else y

    def _native(self, x: jax.Array, train: bool) -> jax.Array:
        """The same in fewer passes over x."""
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        if not train:
            mean, var = (running.value for running in self._running(x.shape[-1:]))
            return norm_gelu(x, mean, lax.rsqrt(var + self.epsilon), bias)
        y, mean, var = batch_norm_gelu(x, bias, self.epsilon, _mean_of_replicas)
        self._update(mean, var, x)
        return y

    def _running(self, channels: tuple[int, ...]) -> tuple[nn.Variable, nn.Variable]:
        return (
            self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32),
            self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32),
        )

    def _update(self, mean: jax.Array, var: jax.Array, x: jax.Array) -> None:
        count = x.size // x.shape[-1] * _replicas()
        unbiased = var * (count / max(count - 1, 1))
        for running, new in zip(self._running(x.shape[-1:]), (mean, unbiased), strict=True):
            if not self.is_initializing():
                # No gradient: a loss knows of the batch's statistics alone.
                new = lax.stop_gradient(new).astype(jnp.float32)
                running.value = self.momentum * running.value + (1 - self.momentum) * new


def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean [C], biased variance [C]) of all replicas' x [..., C].

    The squares are those of differences from the mean: mean(x²) - mean² would cancel where the
    mean is large, and come out below zero where the values are equal.
    """
    axes = tuple(range(x.ndim - 1))
    mean = _mean_of_replicas(x.mean(axes))
    var = _mean_of_replicas(jnp.square(x - mean).mean(axes))
    return mean, var


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
