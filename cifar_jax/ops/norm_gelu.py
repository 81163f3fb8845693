"""GELU of a normalised or shifted value; as one operation with its neighbours where `native` is
usable.

By the error function, as PyTorch computes it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cifar_jax.ops import native

Mean = Callable[[jax.Array], jax.Array]  # over the replicas


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x · P(at most x) of the normal distribution."""
    return nn.gelu(x, approximate=False)


def _gelu_backward(x, dy):
    # Of its own, as the derivative of erf fails within shard_map in jax 0.12.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    below = 0.5 * lax.erfc(-wide * np.float32(0.5**0.5))
    density = jnp.exp(-0.5 * wide * wide) * np.float32((2 * np.pi) ** -0.5)
    return ((dy * (below + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def bias_gelu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """gelu(x + bias), x: [..., C], bias: float32 [C]."""
    if not native.wanted(x):
        return gelu(x + bias.astype(x.dtype))
    zero = jnp.zeros_like(bias)
    return _given(x, zero, zero + 1, bias)


def norm_gelu(x: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array) -> jax.Array:
    """gelu((x - mean) · factor + bias) of given statistics, where `native` is usable.

    x: [..., C], the others float32 [C]. No gradient goes to mean and factor.
    """
    return _given(x, lax.stop_gradient(mean), lax.stop_gradient(factor), bias)


@jax.custom_vjp
def _given(x, mean, factor, bias):
    return native.call("norm_gelu_forward", jax.typeof(x), x, mean, factor, bias)


def _given_forward(*args):
    return _given(*args), args


def _given_backward(args, dy):
    vector = jax.typeof(args[1])
    dbias, _ = native.call("norm_gelu_sums", (vector, vector), *args, dy)
    zero = jnp.zeros_like(dbias)
    dx = native.call("norm_gelu_backward", jax.typeof(dy), *args, dy, zero, zero)
    return dx, zero, zero, dbias


_given.defvjp(_given_forward, _given_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def batch_norm_gelu(
    x: jax.Array, bias: jax.Array, epsilon: float, mean_of: Mean
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(gelu(x̂ + bias), mean, biased variance) with x̂ = x normalised by these, the statistics of
    all replicas' x, where `native` is usable.

    x: [..., C]; float32 [C] the rest. `mean_of` is the mean over the replicas. No
    gradient comes from the statistics that are returned.
    """
    return _batch_forward(x, bias, epsilon, mean_of)[0]


def _batch_forward(x, bias, epsilon, mean_of):
    vector = jax.typeof(bias)
    own_mean, own_var = native.call("moments", (vector, vector), x)
    mean = mean_of(own_mean)
    var = mean_of(own_var + jnp.square(own_mean - mean))
    args = x, mean, lax.rsqrt(var + epsilon), bias
    y = native.call("norm_gelu_forward", jax.typeof(x), *args)
    return (y, mean, var), args


def _batch_backward(epsilon, mean_of, args, cotangents):
    dy, vector = cotangents[0], jax.typeof(args[3])
    dbias, product = native.call("norm_gelu_sums", (vector, vector), *args, dy)
    count = dy.size // dy.shape[-1]
    means = mean_of(dbias / count), mean_of(product / count)
    return native.call("norm_gelu_backward", jax.typeof(dy), *args, dy, *means), dbias


batch_norm_gelu.defvjp(_batch_forward, _batch_backward)
