"""The task in TensorFlow, under tf.function. Run by `python -m benchmarks.compare`.

Variants: "native" normalises with `tf.nn.local_response_normalization`; "fast" with a product with
a band matrix and two square roots in place of `pow`, the fastest formulation known to us.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import task


class TensorFlowCNN:
    """A task.Contender."""

    def __init__(self, variant: str, weights: task.Weights, batches: list[task.Batch]):
        self._lrn = {"native": _native_lrn, "fast": _fast_lrn}[variant]
        self._first = weights
        self._params, self._ema = _variables(weights), _variables(weights)
        self._batches = [(tf.constant(b.images), tf.constant(b.labels)) for b in batches]
        self._train_step = tf.function(self._train)
        self._eval_step = tf.function(lambda images: tf.argmax(self._logits(images), -1))

    def reset(self) -> None:
        for variables in (self._params, self._ema):
            for layer, arrays in self._first.items():
                for name, array in arrays.items():
                    variables[layer][name].assign(array)

    def train(self, steps: int) -> None:
        for number in range(steps):
            loss = self._train_step(*self._batches[number % len(self._batches)])
        loss.numpy()

    def evaluate(self, steps: int) -> None:
        for number in range(steps):
            classes = self._eval_step(self._batches[number % len(self._batches)][0])
        classes.numpy()

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        """[B, 24, 24, 3] -> [B, 10]."""
        params = self._params
        x = self._lrn(_pool(_conv(images, params["conv1"])))
        x = _pool(self._lrn(_conv(x, params["conv2"])))
        x = tf.reshape(x, [images.shape[0], -1])
        for layer in ("local3", "local4"):
            x = tf.nn.relu(_dense(x, params[layer]))
        return _dense(x, params["softmax_linear"])

    def _loss_and_gradients(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """The loss with its L2 term, and its gradient as a tree like the parameters."""
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, self._logits(images))
            cross_entropy = tf.reduce_mean(losses)
        gradients = tape.gradient(cross_entropy, self._params)
        # The gradient of the L2 term by hand saves the tape a pass over the kernels.
        kernels = {layer: self._params[layer]["kernel"] for layer in task.DECAYED}
        for layer, kernel in kernels.items():
            gradients[layer]["kernel"] += task.WEIGHT_DECAY * kernel
        l2 = task.WEIGHT_DECAY * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels.values()])
        return cross_entropy + l2, gradients

    def _train(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        loss, gradients = self._loss_and_gradients(images, labels)
        for layer, params in self._params.items():
            for name, param in params.items():
                new = param.assign_sub(task.RATE * gradients[layer][name])
                average = self._ema[layer][name]
                average.assign_sub((1 - task.EMA_DECAY) * (average - new))
        return loss

    def outcome(self) -> task.Outcome:
        self.reset()
        images, labels = self._batches[0]
        logits = tf.function(self._logits)(images).numpy()
        classes = self._eval_step(images).numpy()
        loss, gradients = tf.function(self._loss_and_gradients)(images, labels)
        self._train_step(images, labels)
        return {
            "logits": logits,
            "classes": classes,
            "loss": loss.numpy(),
            **task.flat_names("gradient", _numpy(gradients)),
            **task.flat_names("updated", _numpy(self._params)),
        }

    def ema(self) -> task.Weights:
        """The EMA of the parameters."""
        return _numpy(self._ema)


def make(variant: str, batch_size: int) -> TensorFlowCNN:
    return TensorFlowCNN(variant, task.make_weights(), task.make_batches(batch_size))


def _native_lrn(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.local_response_normalization(
        x, task.DEPTH_RADIUS, task.LRN_BIAS, task.ALPHA, task.BETA
    )


def _fast_lrn(x: tf.Tensor) -> tf.Tensor:
    """The same: x · n^-0.75, with n^-0.75 = rsqrt(n)·sqrt(rsqrt(n))."""
    channels = x.shape[-1]
    squares = tf.reshape(x * x, [-1, channels])
    total = tf.reshape(tf.matmul(squares, task.lrn_band(channels)), x.shape)
    root = tf.math.rsqrt(task.LRN_BIAS + task.ALPHA * total)
    return x * (root * tf.sqrt(root))


def _conv(x: tf.Tensor, params: dict[str, tf.Variable]) -> tf.Tensor:
    return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, params["kernel"], 1, "SAME"), params["bias"]))


def _pool(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.max_pool2d(x, 3, 2, "SAME")


def _dense(x: tf.Tensor, params: dict[str, tf.Variable]) -> tf.Tensor:
    return tf.nn.bias_add(tf.matmul(x, params["kernel"]), params["bias"])


def _variables(weights: task.Weights) -> dict[str, dict[str, tf.Variable]]:
    return {
        layer: {name: tf.Variable(array) for name, array in arrays.items()}
        for layer, arrays in weights.items()
    }


def _numpy(tree: dict[str, dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    return {
        layer: {name: tensor.numpy() for name, tensor in tensors.items()}
        for layer, tensors in tree.items()
    }
