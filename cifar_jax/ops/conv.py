"""Convolution with stride 1 and SAME padding; on CPUs with gradients that are fast within loops,
and by Winograd's algorithm where that pays."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_jax.ops import native, portable

_TILE = 4  # outputs of a tile, in each dimension
_KERNEL = 5
_WINDOW = _TILE + _KERNEL - 1  # inputs of a tile: 8x8 products in place of 4x4 times 5x5
_NHWC = ("NHWC", "HWIO", "NHWC")


def conv_plain(x: jax.Array, kernel: jax.Array, padding: str = "SAME") -> jax.Array:
    """[B, H, W, C] with [k, k, C, D] -> [B, H, W, D], zero-padded, or without any padding for
    "VALID": the reference. Computed in the dtype of x, whatever that of the kernel is."""
    kernel = kernel.astype(x.dtype)
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_NHWC)


def conv(x: jax.Array, kernel: jax.Array, padding: str = "SAME") -> jax.Array:
    """`conv_plain`; faster on CPUs for 5x5 kernels in float32 over sizes that are multiples of 4,
    and for all where `native` is usable.

    Winograd's algorithm needs 6 times fewer products and agrees to 5e-6 relative. Its own work
    grows with the channels and its gain with their square, so few channels stay direct. In
    bfloat16 all sums are float32, and so is the gradient of a float32 kernel.
    """
    suitable = (
        x.dtype == jnp.float32
        and padding == "SAME"
        and kernel.shape[:2] == (_KERNEL, _KERNEL)
        and min(kernel.shape[2:]) >= 16
        and x.shape[1] % _TILE == x.shape[2] % _TILE == 0
    )
    if native.wanted(x) and not suitable:
        return _native(x, kernel.astype(jnp.float32), padding)
    if portable.wanted() or padding != "SAME":
        return conv_plain(x, kernel, padding)
    kernel = kernel.astype(x.dtype)
    cpu = _winograd if suitable else _direct
    return lax.platform_dependent(x, kernel, cpu=cpu, default=conv_plain)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _native(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return _native_forward(x, kernel, padding)[0]


def _native_forward(x, kernel, padding):
    size, low = _geometry(x, kernel, padding)
    y = jax.typeof(x).update(shape=(len(x), *size, kernel.shape[-1]))
    return native.call("conv_forward", y, x, kernel, **low), (x, kernel)


def _native_backward(padding, residuals, dy):
    x, kernel = residuals
    _, low = _geometry(x, kernel, padding)
    # Two calls, so that XLA can leave out the gradient of a first layer's images.
    dx = native.call("conv_backward_data", jax.typeof(x), dy, kernel, **low)
    return dx, native.call("conv_backward_kernel", jax.typeof(kernel), x, dy, **low)


def _geometry(x, kernel, padding):
    """Height and width of the output, and how many zeros come before the first row and column."""
    height, width = kernel.shape[:2]
    if padding == "SAME":
        return x.shape[1:3], {"top": (height - 1) // 2, "left": (width - 1) // 2}
    return (x.shape[1] - height + 1, x.shape[2] - width + 1), {"top": 0, "left": 0}


_native.defvjp(_native_forward, _native_backward)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, C] with [C, D] -> [B, D], in the dtype of x."""
    if not native.wanted(x):
        return x @ kernel.astype(x.dtype)
    return _product(x, kernel)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _dot(x, kernel.astype(x.dtype), 1, 0).astype(x.dtype)


def _dot(a, b, axis_a, axis_b):
    """XLA multiplies bfloat16 on a CPU as it is only where the result is float32."""
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _product_backward(residuals, dy):
    x, kernel = residuals
    return _dot(dy, kernel.astype(x.dtype), 1, 1).astype(x.dtype), _dot(x, dy, 0, 0)


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


@jax.custom_vjp
def _direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv_plain`, with its gradients as convolutions of the same layout.

    XLA's fast convolution on CPUs knows that one alone. It brings others into it, but not within
    a loop, such as that over several steps or over microbatches: there the gradient of conv1's
    kernel took ten times as long as all the rest of a step.
    """
    return conv_plain(x, kernel)


def _direct_forward(x, kernel):
    return conv_plain(x, kernel), (x, kernel)


def _direct_backward(residuals, dy):
    x, kernel = residuals
    pads = [((size - 1) // 2, size // 2) for size in kernel.shape[:2]]
    dx = lax.conv_general_dilated(
        dy,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        [(high, low) for low, high in pads],
        dimension_numbers=_NHWC,
    )
    # Channels take the place of images, and images that of channels.
    dkernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1), pads, dimension_numbers=_NHWC
    )
    return dx, dkernel.transpose(1, 2, 0, 3)


_direct.defvjp(_direct_forward, _direct_backward)


@jax.custom_vjp
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """F(4x4, 5x5) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015).

    Each 4x4 tile of outputs is A^T [(G g) * (B^T d)]: 8x8 inputs d and the kernel g are
    transformed, multiplied point by point (at each of the 64 points a matrix product over the
    channels), and transformed back. Both dimensions' transforms are one matrix, their Kronecker
    product. What the transforms move is 4 times the images' size, so a few images at a time are
    taken through all of it, while they are in the processor's cache.
    """
    return _forward(x, kernel)[0]


def _forward(x, kernel):
    _, g, _ = _transforms()
    kernels = (g @ kernel.reshape(_KERNEL**2, -1)).reshape(_WINDOW**2, *kernel.shape[2:])
    chunks = [_forward_chunk(x[chunk], kernels) for chunk in _chunks(len(x))]
    y = jnp.concatenate([y for y, _ in chunks])
    return y, ([inputs for _, inputs in chunks], kernels)


def _forward_chunk(x, kernels):
    batch, height, width, channels = x.shape
    a, _, b = _transforms()
    inputs = (b @ _windows(x)).reshape(_WINDOW**2, -1, channels)
    outputs = a @ _products(inputs, kernels, 2, 1).reshape(_WINDOW**2, -1)
    tiles = outputs.reshape(_TILE, _TILE, batch, height // _TILE, width // _TILE, -1)
    return tiles.transpose(2, 3, 0, 4, 1, 5).reshape(batch, height, width, -1), inputs


def _backward(residuals, dy):
    """The transposed steps, last one first."""
    inputs, kernels = residuals
    chunks = [
        _backward_chunk(part, kernels, dy[chunk])
        for part, chunk in zip(inputs, _chunks(len(dy)), strict=True)
    ]
    dx = jnp.concatenate([dx for dx, _ in chunks])
    dkernels = sum(dkernels for _, dkernels in chunks)
    _, g, _ = _transforms()
    dkernel = (g.T @ dkernels.reshape(_WINDOW**2, -1)).reshape(_KERNEL, _KERNEL, *kernels.shape[1:])
    return dx, dkernel


def _backward_chunk(inputs, kernels, dy):
    batch, height, width, features = dy.shape
    rows, columns = height // _TILE, width // _TILE
    a, _, b = _transforms()
    tiles = dy.reshape(batch, rows, _TILE, columns, _TILE, features).transpose(2, 4, 0, 1, 3, 5)
    doutputs = (a.T @ tiles.reshape(_TILE**2, -1)).reshape(_WINDOW**2, -1, features)
    dkernels = _products(inputs, doutputs, 1, 1)
    dwindows = b.T @ _products(doutputs, kernels, 2, 2).reshape(_WINDOW**2, -1)
    return _add_windows(dwindows, (batch, rows, columns, kernels.shape[1])), dkernels


_winograd.defvjp(_forward, _backward)


def _chunks(batch: int) -> list[slice]:
    """16 images at a time, or an eighth of a larger batch: more would take long to compile."""
    size = max(16, -(-batch // 8))
    return [slice(start, start + size) for start in range(0, batch, size)]


def _windows(x: jax.Array) -> jax.Array:
    """The overlapping 8x8 windows of all tiles: [64, everything else]."""
    _, height, width, _ = x.shape
    border = _KERNEL // 2
    padded = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))

    def every_fourth(start: int, size: int) -> slice:
        return slice(start, start + size - _TILE + 1, _TILE)

    rows = jnp.stack([padded[:, every_fourth(i, height)] for i in range(_WINDOW)])
    places = jnp.stack([rows[:, :, :, every_fourth(j, width)] for j in range(_WINDOW)], 1)
    return places.reshape(_WINDOW**2, -1)


def _add_windows(windows: Any, shape: tuple[int, int, int, int]) -> jax.Array:
    """The transpose of `_windows`: for every input the sum over the windows that have it."""
    batch, rows, columns, channels = shape
    # A window is 2x2 blocks of a tile's size: every block of inputs is in up to 4 of them.
    blocks = windows.reshape(2, _TILE, 2, _TILE, batch, rows, columns, channels)
    total = jnp.zeros((_TILE, _TILE, batch, rows + 1, columns + 1, channels), windows.dtype)
    for i in (0, 1):
        for j in (0, 1):
            room = ((0, 0), (0, 0), (0, 0), (i, 1 - i), (j, 1 - j), (0, 0))
            total += jnp.pad(blocks[i, :, j], room)
    height, width = rows * _TILE, columns * _TILE
    padded = total.transpose(2, 3, 0, 4, 1, 5).reshape(
        batch, height + _TILE, width + _TILE, channels
    )
    border = _KERNEL // 2
    return padded[:, border : border + height, border : border + width]


def _products(x: Any, y: Any, x_axis: int, y_axis: int) -> jax.Array:
    """For each of the 64 points, the product of two matrices over the named axes."""
    return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((0,), (0,))))


@cache
def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [16, 64], G [64, 25] and B^T [64, 64], by Toom and Cook's construction.

    Polynomials are evaluated at 8 points, multiplied there, and interpolated. The three matrices
    may be scaled against each other point by point; with rows of equal norm the rounding errors
    are smallest.
    """

    def evaluation(size: int) -> np.ndarray:
        points = np.array([0, 1, -1, 2, -2, 1 / 2, -1 / 2])[:, None]
        infinity = np.eye(size)[-1:]
        return np.concatenate([points ** np.arange(size), infinity])

    matrices = evaluation(_TILE), evaluation(_KERNEL), np.linalg.inv(evaluation(_WINDOW)).T
    norms = [np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in matrices]
    mean = np.prod(norms, axis=0) ** (1 / 3)
    a, g, b = (m * mean / norm for m, norm in zip(matrices, norms, strict=True))
    a, g, b = (np.kron(m, m).astype(np.float32) for m in (a.T, g, b))
    return a, g, b
