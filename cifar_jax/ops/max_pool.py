"""Max pooling that keeps which value won each window, for a gradient that is cheap.

XLA differentiates a pooling by select-and-scatter, on a CPU the most expensive operation of a whole
training step.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.ops import native, portable
from cifar_jax.ops.materialize import materialize


def max_pool_plain(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]: the reference. (Flax's, of which converters to
    other formats know what it is.)"""
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")


def max_pool(x: jax.Array) -> jax.Array:
    """`max_pool_plain`; where height and width are even, with a faster gradient.

    The forward pass keeps which of its nine values won each window, as int8, and the backward pass
    adds up, for each value, the windows that it won. Ties go to the first value in row-major order,
    as XLA has it.
    """
    even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
    if not even or portable.wanted():
        return max_pool_plain(x)
    return _native(x, 3, 2) if native.wanted(x) else _max_pool_even(x)


@jax.custom_vjp
def _max_pool_even(x: jax.Array) -> jax.Array:
    # Without a gradient to prepare: rows, then columns, 6 comparisons instead of 9.
    rows = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 1, 1), (1, 2, 1, 1), "SAME")
    return lax.reduce_window(rows, -jnp.inf, lax.max, (1, 1, 3, 1), (1, 1, 2, 1), "SAME")


def _forward(x):
    _, height, width, _ = x.shape
    # SAME pads even sizes by one, at the end: window k covers 2k, 2k + 1 and 2k + 2.
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-jnp.inf)
    best = padded[:, 0:height:2, 0:width:2]
    winner = jnp.zeros_like(best, jnp.int8)
    for place in range(1, 9):
        row, column = divmod(place, 3)
        candidate = padded[:, row : row + height - 1 : 2, column : column + width - 1 : 2]
        winner = jnp.where(candidate > best, jnp.int8(place), winner)
        best = jnp.maximum(best, candidate)
    # Or XLA would compare again for every value of the gradient: the whole training step took 1.7
    # times as long.
    return materialize(best), materialize(winner)


def _backward(winner, g):
    batch, height, width, channels = g.shape
    rows = []
    for row in (0, 1):  # of the four phases of the input's grid
        columns = []
        for column in (0, 1):
            # A value at an even place lies in two windows: at place 0 of its own, at place 2 of
            # the one before. At an odd place it lies in one, at place 1.
            total = jnp.zeros_like(g)
            for down in (0, 1)[: 2 - row]:
                for right in (0, 1)[: 2 - column]:
                    place = (row + 2 * down) * 3 + column + 2 * right
                    won = _shift(winner, down, right, -1) == place
                    total += jnp.where(won, _shift(g, down, right, 0), 0)
            columns.append(total)
        rows.append(jnp.stack(columns, 3))
    return (jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, channels),)


def _shift(x: jax.Array, down: int, right: int, fill: int) -> jax.Array:
    """Moves the windows by `down` and `right` places: a value meets the one before its own."""
    if down:
        x = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=fill)
    if right:
        x = jnp.pad(x[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=fill)
    return x


_max_pool_even.defvjp(_forward, _backward)


# -- windows side by side --


def max_pool_blocks_plain(x: jax.Array, window: int) -> jax.Array:
    """[B, H, W, C] -> [B, H // window, W // window, C], the stride being the window; what is left
    over is dropped: the reference."""
    shape = window, window
    return nn.max_pool(x, window_shape=shape, strides=shape, padding="VALID")


def max_pool_blocks(x: jax.Array, window: int) -> jax.Array:
    """`max_pool_blocks_plain`, faster, and with a gradient that is one comparison for each value.

    Ties go to the first value of a window in row-major order, as XLA has it. Raises ValueError
    where `window` is 0.
    """
    if not window:
        raise ValueError("no pixels are left to pool")
    if portable.wanted():
        return max_pool_blocks_plain(x, window)
    if native.wanted(x):
        return _native(x, window, window)
    height, width = (size // window * window for size in x.shape[1:3])
    return _max_pool_blocks(x[:, :height, :width], window)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_blocks(x: jax.Array, window: int) -> jax.Array:
    return reduce(jnp.maximum, _places(x, window))


def _places(x: jax.Array, window: int) -> list[jax.Array]:
    """The values at each of the window² places of all windows, in row-major order."""
    offsets = range(window)
    return [x[:, row::window, column::window] for row in offsets for column in offsets]


def _forward_blocks(x, window):
    best, *others = _places(x, window)
    winner = jnp.zeros_like(best, jnp.int8)
    for place, candidate in enumerate(others, 1):
        winner = jnp.where(candidate > best, jnp.int8(place), winner)
        best = jnp.maximum(best, candidate)
    return materialize(best), materialize(winner)


def _backward_blocks(window, winner, g):
    batch, height, width, channels = g.shape
    parts = [jnp.where(winner == place, g, 0) for place in range(window**2)]
    dx = jnp.stack(parts, 3).reshape(batch, height, width, window, window, channels)
    return (dx.swapaxes(2, 3).reshape(batch, height * window, width * window, channels),)


_max_pool_blocks.defvjp(_forward_blocks, _backward_blocks)


# -- by `native` --


def _native(x: jax.Array, window: int, stride: int) -> jax.Array:
    return _native_pool(x, window, stride, x.shape[1:3])


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _native_pool(x: jax.Array, window: int, stride: int, size: tuple[int, int]) -> jax.Array:
    return native.call("max_pool", _pooled(x, stride), x, window=window, stride=stride)


def _pooled(x: jax.Array, stride: int) -> jax.ShapeDtypeStruct:
    batch, height, width, channels = x.shape
    return jax.typeof(x).update(shape=(batch, height // stride, width // stride, channels))


def _native_forward(x, window, stride, size):
    y = _pooled(x, stride)
    results = y, y.update(dtype=jnp.dtype("int8"))
    return native.call("max_pool_forward", results, x, window=window, stride=stride)


def _native_backward(window, stride, size, winner, dy):
    dx = jax.typeof(dy).update(shape=(len(dy), *size, dy.shape[3]))
    return (native.call("max_pool_backward", dx, dy, winner, window=window, stride=stride),)


_native_pool.defvjp(_native_forward, _native_backward)
