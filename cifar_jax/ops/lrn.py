"""Local response normalisation over channels (AlexNet paper, section 3.3)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cifar_jax.ops import native


def lrn_plain(
    x: jax.Array,
    depth_radius: int = 4,
    bias: float = 1.0,
    alpha: float = 0.001 / 9,
    beta: float = 0.75,
) -> jax.Array:
    """x / (bias + alpha · sum of x² over 2·depth_radius + 1 channels)^beta: the reference."""
    window = (1,) * (x.ndim - 1) + (2 * depth_radius + 1,)
    total = lax.reduce_window(x * x, 0.0, lax.add, window, (1,) * x.ndim, "SAME")
    return x / (bias + alpha * total) ** beta


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def lrn(
    x: jax.Array,
    depth_radius: int = 4,
    bias: float = 1.0,
    alpha: float = 0.001 / 9,
    beta: float = 0.75,
) -> jax.Array:
    """`lrn_plain` in a form that keeps CPUs and GPUs busy; x: [..., C] of any float dtype.

    y = x · n^-beta with n = bias + alpha · band_sum(x²). The window's sum is a product with a band
    matrix, and for the usual beta = 0.75 the power is two square roots: `pow` alone would cost
    four times the rest of the operation on a CPU. Squares are summed in float32 at least.
    """
    return _forward(x, depth_radius, bias, alpha, beta)[0]


def _band_sum(x: jax.Array, depth_radius: int) -> jax.Array:
    """Sum over the channels within `depth_radius` of each channel."""
    channels = np.arange(x.shape[-1])
    band = np.abs(np.subtract.outer(channels, channels)) <= depth_radius
    # One matrix product of two dimensions: batched forms are slower on a CPU.
    flat = x.reshape(-1, x.shape[-1]) @ jnp.asarray(band, x.dtype)
    return flat.reshape(x.shape)


def _forward(x, depth_radius, bias, alpha, beta):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    norm = bias + alpha * _band_sum(wide * wide, depth_radius)
    if beta == 0.75:
        root = lax.rsqrt(norm)  # n^-1/2
        scale = root * jnp.sqrt(root)  # n^-3/4
        inverse = root * root  # n^-1
    else:
        scale, inverse = norm**-beta, 1 / norm
    return (wide * scale).astype(x.dtype), (x, scale, inverse)


def _backward(depth_radius, bias, alpha, beta, residuals, g):
    # dx_c = g_c·s_c - 2·alpha·beta · x_c · sum over the band of (g·x·s/n), with s = n^-beta.
    x, scale, inverse = residuals
    wide, scaled_g = x.astype(scale.dtype), g.astype(scale.dtype) * scale
    spread = _band_sum(scaled_g * wide * inverse, depth_radius)
    return ((scaled_g - 2 * alpha * beta * wide * spread).astype(x.dtype),)


lrn.defvjp(_forward, _backward)


def relu_lrn(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`lrn(relu(x + bias))`, x: [..., C], bias: float32 [C]."""
    if native.wanted(x):
        return _native(x, bias.astype(jnp.float32))
    return lrn(nn.relu(x + bias.astype(x.dtype)))


_ALPHA = np.float32(0.001 / 9)  # with lrn's other defaults


@jax.custom_vjp
def _native(x: jax.Array, bias: jax.Array) -> jax.Array:
    return _native_forward(x, bias)[0]


def _native_forward(x, bias):
    y = native.call("relu_lrn_forward", jax.typeof(x), x, bias, alpha=_ALPHA)
    return y, (x, bias)


def _native_backward(residuals, dy):
    results = jax.typeof(residuals[0]), jax.typeof(residuals[1])
    return native.call("relu_lrn_backward", results, *residuals, dy, alpha=_ALPHA)


_native.defvjp(_native_forward, _native_backward)
