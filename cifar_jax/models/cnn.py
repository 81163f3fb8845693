"""The tutorial's network: 1,068,298 parameters for ten classes.

conv1 → pool1 → norm1 → conv2 → norm2 → pool2 → local3 → local4 → softmax_linear, where each
convolution and dense layer but the last is followed by a ReLU.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.models.activations import publish, wanted
from cifar_jax.ops.conv import conv, product
from cifar_jax.ops.lrn import relu_lrn
from cifar_jax.ops.max_pool import max_pool


class CNN(nn.Module):
    """[B, H, W, C] images, standardised -> float32 [B, num_classes] logits, without softmax.

    It publishes the layers the tutorial summarises, and computes the same in training.
    """

    num_classes: int = 10
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        return self._top(self._convolutions(images))

    def _convolutions(self, images: jax.Array) -> jax.Array:
        """Up to pool2: images of 24x24 become [B, 6, 6, 64]."""
        layer = partial(publish, self)
        x = images.astype(self.dtype)

        kernel, bias = self._weights("conv1", (5, 5, x.shape[-1], 64), stddev=5e-2, bias=0.0)
        x = conv(x, kernel)
        if wanted(self):
            layer("conv1", nn.relu(x + bias.astype(x.dtype)))
        # Bias and ReLU never decrease and so commute with a maximum: after the pooling they touch
        # a quarter of the values and give the same ones.
        x = max_pool(x)
        if wanted(self):
            layer("pool1", nn.relu(x + bias.astype(x.dtype)))
        x = layer("norm1", relu_lrn(x, bias))

        kernel, bias = self._weights("conv2", (5, 5, 64, 64), stddev=5e-2, bias=0.1)
        x = conv(x, kernel)
        if wanted(self):
            layer("conv2", nn.relu(x + bias.astype(x.dtype)))
        x = layer("norm2", relu_lrn(x, bias))
        return layer("pool2", max_pool(x))

    def _top(self, x: jax.Array) -> jax.Array:
        layer = partial(publish, self)
        x = x.reshape(x.shape[0], -1)
        for name, features in (("local3", 384), ("local4", 192)):
            kernel, bias = self._weights(name, (x.shape[-1], features), stddev=4e-2, bias=0.1)
            x = layer(name, nn.relu(product(x, kernel) + bias.astype(x.dtype)))

        return self._logits(x, stddev=1 / 192)

    def _logits(self, x: jax.Array, stddev: float) -> jax.Array:
        shape = (x.shape[-1], self.num_classes)
        kernel, bias = self._weights("softmax_linear", shape, stddev=stddev, bias=0.0)
        logits = product(x, kernel) + bias.astype(x.dtype)
        return publish(self, "softmax_linear", logits.astype(jnp.float32))

    def _weights(self, layer: str, shape: tuple[int, ...], stddev: float, bias: float):
        """The kernel and bias of a layer, float32."""

        def init(key):
            return {
                "kernel": truncated_normal(key, shape, stddev),
                "bias": jnp.full(shape[-1:], bias, jnp.float32),
            }

        weights = self.param(layer, init)
        return weights["kernel"], weights["bias"]


def truncated_normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> jax.Array:
    """TensorFlow's: values beyond two of the given `stddev` are drawn again.

    What comes out has a standard deviation of 0.88 · `stddev`. Initialisers that aim at a variance
    make up for that; this one must not, or the first loss is 5.4 instead of the tutorial's 4.68.
    """
    return stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
