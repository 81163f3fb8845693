"""The networks of airbench94 and airbench96 (Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single
GPU, 2024). That of airbench94 has 1,971,640 parameters for ten classes, of which the whitening
filters do not learn.

whiten → three groups of [conv1 → pool → norm1 → conv2 → norm2] → max pool → linear, with a GELU
after the whitening and after each normalisation; the logits are divided by a constant. A group of
depth 3 goes on with [conv3 → norm3], to which the output of its first GELU is added before the
last one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cifar_jax.models.activations import publish, wanted
from cifar_jax.models.batch_norm import BatchNorm
from cifar_jax.ops.conv import conv, product
from cifar_jax.ops.max_pool import max_pool_blocks
from cifar_jax.ops.norm_gelu import bias_gelu, gelu

_WINDOW = 2  # of the whitening
_EPSILON = 5e-4  # added to the eigenvalues: the weakest patterns are those of noise


class Airbench(nn.Module):
    """[B, H, W, C] images, standardised -> float32 [B, num_classes] logits, without softmax.

    `init_from_data` is part of the initialisation: without it the first filters are random.
    """

    num_classes: int = 10
    dtype: str = "float32"
    widths: tuple[int, ...] = (64, 256, 256)  # channels of each group
    depth: int = 2  # convolutions of each group: 2 or 3
    momentum: float = 0.6  # of the running averages of the batch statistics
    # Of the logits; 0: the number of features, for a last kernel with a standard deviation of 1.
    divisor: float = 0.0

    images_to_fit = 5_000  # that decide the whitening filters; no field

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = publish(self, "gelu", self._whiten(images.astype(self.dtype)))
        for number, channels in enumerate(self.widths, 1):
            group = Group(channels, self.depth, self.momentum, name=f"group{number}")
            x = group(x, train=train)
        # The whole map where it is smaller than the window.
        x = publish(self, "pool", max_pool_blocks(x, min(3, *x.shape[1:3])))
        x = x.reshape(x.shape[0], -1)

        shape = (x.shape[-1], self.num_classes)
        kernel = self.param("linear", lambda key: {"kernel": self._head(key, shape)})["kernel"]
        logits = product(x, kernel) / (self.divisor or x.shape[-1])
        return publish(self, "linear", logits.astype(jnp.float32))

    def _head(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        return uniform(key, shape, shape[0]) if self.divisor else head(key, shape)

    def _whiten(self, x: jax.Array) -> jax.Array:
        """A 2x2 convolution that decorrelates the values of a patch; twice, with both signs. And
        its GELU."""
        patch = _WINDOW**2 * x.shape[-1]
        shape = (_WINDOW, _WINDOW, x.shape[-1], 2 * patch)

        def init(key):
            keys = jax.random.split(key)
            return {
                "kernel": uniform(keys[0], shape, patch),
                "bias": uniform(keys[1], shape[-1:], patch),
            }

        weights = self.param("whiten", init)
        kernel = lax.stop_gradient(weights["kernel"])  # the data's, and not to be learned
        y, bias = conv(x, kernel, "VALID"), weights["bias"]
        if wanted(self):
            publish(self, "whiten", y + bias.astype(y.dtype))
        return bias_gelu(y, bias)

    @nn.nowrap
    def init_from_data(self, variables: dict[str, Any], images: jax.Array) -> dict[str, Any]:
        """`variables` with the whitening filters of the first `images_to_fit` of `images`: float32
        [N, H, W, C], standardised."""
        params = variables["params"]
        kernel = jnp.asarray(whitening(images[: self.images_to_fit]), jnp.float32)
        whiten = {**params["whiten"], "kernel": kernel}
        return {**variables, "params": {**params, "whiten": whiten}}


class Group(nn.Module):
    """Two or three 3x3 convolutions to `channels`, with a pooling after the first."""

    channels: int
    depth: int
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = publish(self, "pool", max_pool_blocks(self._conv("conv1", x), min(2, *x.shape[1:3])))
        x = publish(self, "gelu1", self._norm("norm1")(x, train=train))
        y = self._conv("conv2", x)
        y = publish(self, "gelu2", self._norm("norm2")(y, train=train))
        if self.depth == 2:
            return y
        y = self._norm("norm3", gelu=False)(self._conv("conv3", y), train=train)
        return publish(self, "gelu3", gelu(y + x))

    def _conv(self, name: str, x: jax.Array) -> jax.Array:
        shape = (3, 3, x.shape[-1], self.channels)
        kernel = self.param(name, lambda key: {"kernel": partly_identity(key, shape)})["kernel"]
        return publish(self, name, conv(x, kernel))

    def _norm(self, name: str, gelu: bool = True) -> BatchNorm:
        momentum = self.momentum
        return BatchNorm(use_scale=False, gelu=gelu, epsilon=1e-12, momentum=momentum, name=name)


# -- initial values --


def uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """float32 within ±1/sqrt(fan_in), as PyTorch starts its layers."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def partly_identity(key: jax.Array, shape: tuple[int, int, int, int]) -> jax.Array:
    """A kernel [k, k, C, D] whose first min(C, D) filters pass on the channel of their number."""
    height, width, channels, filters = shape
    same = min(channels, filters)
    identity = np.zeros((height, width, channels, same), np.float32)
    identity[height // 2, width // 2, range(same), range(same)] = 1
    return uniform(key, shape, height * width * channels).at[..., :same].set(identity)


def head(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """A kernel [C, D] with a standard deviation of 1."""
    kernel = uniform(key, shape, shape[0])
    return kernel / kernel.std(ddof=1)


def whitening(images: jax.Array) -> np.ndarray:
    """float64 [2, 2, C, 8·C]: a kernel whose first half gives uncorrelated outputs of variance 1.

    The eigenvectors of the 2x2 patches' covariance, about zero and not about the mean, each over
    the root of its eigenvalue, the largest first; then their negatives. An eigenvector's largest
    entry is positive. `images`: float32 [N, H, W, C].
    """
    chunks = [images[start : start + 500] for start in range(0, len(images), 500)]
    covariance = sum(np.asarray(total, np.float64) for total in map(_patch_products, chunks))
    count = len(images) * (images.shape[1] - _WINDOW + 1) * (images.shape[2] - _WINDOW + 1)
    eigenvalues, vectors = np.linalg.eigh(covariance / count)  # vectors in columns
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    filters = vectors * np.sign(largest) / np.sqrt(eigenvalues + _EPSILON)
    both = np.concatenate([filters, -filters], 1)
    return both.reshape(_WINDOW, _WINDOW, images.shape[-1], -1)


@jax.jit
def _patch_products(images: jax.Array) -> jax.Array:
    """The sum over all 2x2 patches of a patch times itself: [N, H, W, C] -> [4·C, 4·C], in the
    order of a kernel."""
    height, width = images.shape[1] - _WINDOW + 1, images.shape[2] - _WINDOW + 1
    shifted = [
        images[:, row : row + height, column : column + width]
        for row in range(_WINDOW)
        for column in range(_WINDOW)
    ]
    patches = jnp.concatenate(shifted, -1).reshape(-1, _WINDOW**2 * images.shape[-1])
    return jnp.matmul(patches.T, patches, precision="highest")
