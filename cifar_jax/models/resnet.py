"""ResNet-18 for small images (He et al., Deep Residual Learning, 2015): 11,173,962 parameters
for ten classes.

conv1 → four groups of two blocks → mean over all places → linear. For images of 32x32 the first
convolution is 3x3 with stride 1, and no pooling follows it; any other size does as well. Blocks and
initial distributions are those of PyTorch's torchvision.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.models.activations import publish
from cifar_jax.models.batch_norm import BatchNorm
from cifar_jax.ops.conv import conv

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet18(nn.Module):
    """[B, H, W, C] images, standardised -> float32 [B, num_classes] logits, without softmax."""

    num_classes: int = 10
    dtype: str = "float32"
    width: int = 64  # channels of the first group; each of the others has twice as many

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = _conv(self, "conv1", images.astype(self.dtype), (3, self.width))
        x = publish(self, "relu1", nn.relu(BatchNorm(name="norm1")(x, train=train)))
        for number in range(4):
            stride = 1 if number == 0 else 2
            x = Group(self.width * 2**number, stride, name=f"group{number + 1}")(x, train=train)
        x = publish(self, "pool", x.mean((1, 2), dtype=jnp.float32).astype(x.dtype))
        return publish(self, "linear", self._linear(x).astype(jnp.float32))

    def _linear(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.num_classes)

        def init(key):
            keys, bound = jax.random.split(key), shape[0] ** -0.5
            return {
                "kernel": jax.random.uniform(keys[0], shape, jnp.float32, -bound, bound),
                "bias": jax.random.uniform(keys[1], shape[1:], jnp.float32, -bound, bound),
            }

        weights = self.param("linear", init)
        return x @ weights["kernel"].astype(x.dtype) + weights["bias"].astype(x.dtype)


class Group(nn.Module):
    """Two blocks; the first one halves height and width where `stride` is 2."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Block(self.channels, self.stride, name="block1")(x, train=train)
        return Block(self.channels, 1, name="block2")(x, train=train)


class Block(nn.Module):
    """Two convolutions and a shortcut, which a 1x1 convolution fits to another shape."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = _conv(self, "conv1", x, (3, self.channels), self.stride)
        y = publish(self, "relu1", nn.relu(BatchNorm(name="norm1")(y, train=train)))
        y = _conv(self, "conv2", y, (3, self.channels))
        y = BatchNorm(name="norm2")(y, train=train)
        if x.shape != y.shape:
            x = _conv(self, "projection", x, (1, self.channels), self.stride)
            x = BatchNorm(name="projection_norm")(x, train=train)
        return publish(self, "relu2", nn.relu(x + y))


def _conv(
    module: nn.Module, name: str, x: jax.Array, size: tuple[int, int], stride: int = 1
) -> jax.Array:
    """The convolution `name` of the module, without bias; `size`: of its window, and channels."""
    window, channels = size
    shape = (window, window, x.shape[-1], channels)
    weights = module.param(name, lambda key: {"kernel": _he_normal(key, shape, jnp.float32)})
    kernel = weights["kernel"].astype(x.dtype)
    if stride == 1:
        return publish(module, name, conv(x, kernel))
    # SAME would pad an even size at its end alone, where PyTorch pads both sides.
    padding = [(window // 2, window // 2)] * 2
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return publish(module, name, y)
