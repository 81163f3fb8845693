"""What networks are compared with: their operations in float64, in plain numpy and in PyTorch.

A network's reference is a function of (operations, variables, images [B, H, W, C], train) that
returns (logits, {path of a normalisation: its new running {mean, var}}).
"""

import math

import jax
import numpy as np

from cifar_jax import models


class Numpy:
    """Written out, as the definitions have it."""

    def array(self, x):
        return np.asarray(x, np.float64)

    def conv(self, x, kernel, stride=1, padding=0):
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
        return np.tensordot(windows[:, ::stride, ::stride], kernel, ((4, 5, 3), (0, 1, 2)))

    def max_pool(self, x, window):
        windows = np.lib.stride_tricks.sliding_window_view(x, (window, window), (1, 2))
        return windows[:, ::window, ::window].max((4, 5))

    def batch_norm(self, x, weights, running, train, epsilon, momentum):
        if train:
            values = x.reshape(-1, x.shape[-1])
            mean, var = values.mean(0), values.var(0)
            fresh = {"mean": mean, "var": values.var(0, ddof=1)}
            running = {
                name: momentum * self.array(running[name]) + (1 - momentum) * fresh[name]
                for name in fresh
            }
        else:
            mean, var = running["mean"], running["var"]
        y = (x - mean) / np.sqrt(np.asarray(var) + epsilon) * weights.get("scale", 1.0)
        return y + weights["bias"], running

    def relu(self, x):
        return np.maximum(x, 0)

    def gelu(self, x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def loss(self, logits, labels):
        logits = logits - logits.max(-1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(-1))
        return (log_sum - logits[np.arange(len(labels)), labels]).mean()


class Torch:
    """PyTorch's own operations, between permutations to its layout."""

    def __init__(self, torch):
        self._torch, self._functional = torch, torch.nn.functional

    def array(self, x):
        return self._torch.tensor(np.asarray(x), dtype=self._torch.float64)

    def conv(self, x, kernel, stride=1, padding=0):
        x, kernel = x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
        y = self._functional.conv2d(x, kernel, stride=stride, padding=padding)
        return y.permute(0, 2, 3, 1)

    def max_pool(self, x, window):
        return self._functional.max_pool2d(x.permute(0, 3, 1, 2), window).permute(0, 2, 3, 1)

    def batch_norm(self, x, weights, running, train, epsilon, momentum):
        running = {name: self.array(value) for name, value in running.items()}
        y = self._functional.batch_norm(
            x.permute(0, 3, 1, 2),
            *running.values(),
            weights.get("scale"),
            weights["bias"],
            train,
            1 - momentum,  # PyTorch's is the weight of the new value
            epsilon,
        )
        return y.permute(0, 2, 3, 1), running

    def relu(self, x):
        return self._functional.relu(x)

    def gelu(self, x):
        return self._functional.gelu(x)

    def loss(self, logits, labels):
        return self._functional.cross_entropy(logits, self._torch.tensor(labels))


def random_variables(model, image_shape):
    """Variables of the model's shapes, all of them random: biases and running averages tell, too,
    and no initial distribution is to be compiled."""
    rng = np.random.default_rng(0)
    init = jax.eval_shape(lambda key: models.init(model, key, image_shape), jax.random.key(0))

    def draw(leaf):
        if leaf.ndim == 1:  # a bias, a mean; or a scale, a variance
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan_in = math.prod(leaf.shape[:-1])
        return (rng.normal(size=leaf.shape) / math.sqrt(fan_in)).astype(leaf.dtype)

    return jax.tree.map(draw, init)


def batch(shape, num_classes):
    rng = np.random.default_rng(1)
    images = rng.normal(size=shape).astype(np.float32)
    return images, rng.integers(0, num_classes, len(images))


def in_training(model, variables, images, labels):
    """(loss, logits, new state, gradients) of the model itself."""

    def loss_fn(params):
        logits, state, _ = models.forward(
            model, {**variables, "params": params}, images, train=True
        )
        log_probabilities = jax.nn.log_softmax(logits)
        return -log_probabilities[np.arange(len(labels)), labels].mean(), (logits, state)

    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (logits, state)), gradients = run(variables["params"])
    return loss, logits, state, gradients


def agree(found, expected, what, tolerance=1e-4):
    """To `tolerance` of the whole array: rounding is as large as its largest terms."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, what
    difference = np.linalg.norm(found - expected)
    assert difference <= tolerance * np.linalg.norm(expected), (what, difference)


def statistics_agree(state, expected):
    """`expected`: {path: {mean, var}}, of all that there are."""
    assert len(jax.tree.leaves(state["batch_stats"])) == 2 * len(expected)
    for path, values in expected.items():
        found = state["batch_stats"]
        for name in path.split("/"):
            found = found[name]
        for name, value in values.items():
            agree(found[name], value, f"{path}/{name}")


def compare_with_numpy(model, network, variables, images, labels, frozen=()):
    """Logits, loss and statistics; and the gradient of each parameter in a random direction, by
    differences of the reference's loss; 0 for the paths that are `frozen`."""
    ops, rng = Numpy(), np.random.default_rng(2)
    double = jax.tree.map(ops.array, variables)
    loss, logits, state, gradients = in_training(model, variables, images, labels)
    expected, running = network(ops, double, ops.array(images), True)
    agree(logits, expected, "logits")
    agree(loss, ops.loss(expected, labels), "loss")
    statistics_agree(state, running)

    flat, structure = jax.tree_util.tree_flatten_with_path(double["params"])
    leaves = [leaf for _, leaf in flat]

    def moved(number, step):
        changed = [*leaves[:number], leaves[number] + step, *leaves[number + 1 :]]
        params = jax.tree.unflatten(structure, changed)
        return ops.loss(network(ops, {**double, "params": params}, images, True)[0], labels)

    for number, gradient in enumerate(jax.tree.leaves(gradients)):
        path = jax.tree_util.keystr(flat[number][0], simple=True, separator="/")
        direction = rng.normal(size=gradient.shape)
        step = 1e-6 * direction
        slope = (moved(number, step) - moved(number, -step)) / 2e-6 if path not in frozen else 0.0
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        difference = abs((np.asarray(gradient, np.float64) * direction).sum() - slope)
        assert difference <= 1e-4 * scale + 1e-7, (path, difference, scale)

    evaluated = jax.jit(lambda v, x: models.forward(model, v, x, train=False))(variables, images)
    agree(evaluated[0], network(ops, double, images, False)[0], "logits in evaluation")
    jax.tree.map(
        np.testing.assert_array_equal, evaluated[1]["batch_stats"], variables["batch_stats"]
    )


def compare_with_torch(torch, model, network, variables, images, labels, frozen=()):
    """Logits, loss, statistics and every gradient."""
    ops = Torch(torch)
    loss, logits, state, gradients = in_training(model, variables, images, labels)
    params = jax.tree.map(lambda x: ops.array(x).requires_grad_(), variables["params"])
    expected, running = network(ops, {**variables, "params": params}, ops.array(images), True)
    total = ops.loss(expected, labels)
    total.backward()
    agree(logits, expected.detach(), "logits")
    agree(loss, total.detach(), "loss")
    statistics_agree(state, running)

    def same(path, found, param):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        # Beside what is 0 in theory: a shift before a normalisation.
        agree(found, np.zeros(found.shape) if path in frozen else param.grad, path)

    jax.tree_util.tree_map_with_path(same, gradients, params)
