"""The tutorial's exercise: the locally connected top of cuda-convnet's "11%" network.

As `cnn` up to pool2, then local3 and local4, 3x3 windows with weights of their own at each place,
and a dense layer: 2,109,610 parameters for ten classes and images of 24x24. Sizes and deviations of
local3, local4 and the last layer are those of Krizhevsky's layers-conv-local-11pct.cfg, where it is
called fc10; biases and everything below are the tutorial's.
"""

import jax
from flax import linen as nn

from cifar_jax.models.activations import publish
from cifar_jax.models.cnn import CNN
from cifar_jax.ops.local_conv import local_conv

_WINDOW = 3


class CNNLocal(CNN):
    """[B, H, W, C] images, standardised -> float32 [B, num_classes] logits, without softmax."""

    def _top(self, x: jax.Array) -> jax.Array:
        for name, features in (("local3", 64), ("local4", 32)):
            shape = (*x.shape[1:3], _WINDOW, _WINDOW, x.shape[-1], features)
            kernel, bias = self._weights(name, shape, stddev=4e-2, bias=0.1)
            x = publish(self, name, nn.relu(local_conv(x, kernel) + bias.astype(x.dtype)))
        return self._logits(x.reshape(x.shape[0], -1), stddev=1e-2)
