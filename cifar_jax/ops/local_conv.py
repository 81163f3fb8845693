"""Convolution whose weights are not shared: each place of the image has a kernel of its own."""

import jax
import jax.numpy as jnp


def local_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] with [H, W, k, k, C, D], k odd -> [B, H, W, D], stride 1, zero-padded, in the
    dtype of x.

    As one matrix product a place, over the batch.
    """
    height, width, size = kernel.shape[:3]
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    patches = jnp.stack(shifts, axis=3)  # [B, H, W, k * k, C]
    kernel = kernel.astype(x.dtype).reshape(height, width, size * size, *kernel.shape[-2:])
    return jnp.einsum("bhwkc,hwkcd->bhwd", patches, kernel)
