"""One update and one evaluation, against the same numbers worked out apart."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cifar_jax import config as config_lib
from cifar_jax import inputs, models, optim, steps
from cifar_jax.devices import replicas
from cifar_jax.inputs import standardize
from cifar_jax.loop import training
from cifar_jax.models.batch_norm import BatchNorm
from tests.conftest import random_images


@pytest.fixture(scope="module")
def batch():
    images, labels = random_images(16, seed=4)
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels, jnp.int32)}


def distorted(config, keys, images):
    """What the network is given of `images` in a step that has these keys."""
    bound, zeros = inputs.make(config.inputs, images.shape[1:]), jnp.zeros(len(images), jnp.int32)
    batch = {"image": images, "label": zeros, "index": zeros, "epoch": zeros}
    return bound.train(keys, batch)[0]


@pytest.fixture
def started(config, compiled_step):
    return compiled_step(config)


def test_first_loss_is_the_tutorials(default):
    """4.68 at step 0 with the default config: ln 10 and the L2 term of 2.38."""
    model = steps.make_model(default, 10)
    variables = models.init(model, jax.random.key(0), (24, 24, 3))
    noise = jax.random.normal(jax.random.key(0), (128, 24, 24, 3))
    logits = jax.jit(partial(steps.predict, model))(
        variables, jax.vmap(standardize.by_image)(noise)
    )
    labels = jnp.arange(128) % 10
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    l2 = optim.l2_penalty(variables["params"], default.optim)
    assert float(cross_entropy + l2) == pytest.approx(4.68, abs=0.03)
    assert float(l2) == pytest.approx(2.376, abs=0.01)


def worked_out_apart(config, params, batch):
    """The images of step 0 as distorted outside of it, their loss, its gradient, the layers."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(jax.random.key(0), 0)))(
        jnp.arange(16)
    )
    images = distorted(config, keys, batch["image"])
    model = steps.make_model(config, 10)

    def total_loss(params):
        logits, _, layers = models.forward(
            model, {"params": params}, images, train=True, layers=True
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean() + optim.l2_penalty(params, config.optim), layers

    (loss, layers), gradient = jax.jit(jax.value_and_grad(total_loss, has_aux=True))(params)
    return images, loss, gradient, layers


def test_train_step_is_its_parts(config, started, batch):
    """Distortion, loss, gradient and update done one after the other outside of the step."""
    state, step = started
    new, metrics, aux = step(state, batch)
    assert aux == {}
    _, loss, gradient, _ = worked_out_apart(config, state.params, batch)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["cross_entropy"] + metrics["l2"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)
    assert int(new.step) == 1
    for old, g, found in zip(
        *map(jax.tree.leaves, (state.params, gradient, new.params)), strict=True
    ):
        np.testing.assert_allclose(found, old - 0.1 * g, atol=2e-6)


def test_smoothed_labels():
    logits = jax.random.normal(jax.random.key(0), (5, 10))
    labels = jnp.arange(5)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    for found in steps.losses(logits, inputs.Targets(labels), 0.0):
        np.testing.assert_array_equal(found, plain)
    weights = 0.8 * jax.nn.one_hot(labels, 10) + 0.02
    expected = optax.softmax_cross_entropy(logits, weights)
    cross_entropy, loss = steps.losses(logits, inputs.Targets(labels), 0.2)
    np.testing.assert_array_equal(cross_entropy, plain)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_class_weights_multiply_the_loss_alone():
    logits, labels = jax.random.normal(jax.random.key(0), (3, 4)), jnp.array([0, 3, 3])
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    cross_entropy, loss = steps.losses(logits, inputs.Targets(labels), 0.0, (2.0, 1.0, 1.0, 0.5))
    np.testing.assert_array_equal(cross_entropy, plain)
    np.testing.assert_allclose(loss, plain * jnp.array([2, 0.5, 0.5]), rtol=1e-6)
    mixed = inputs.Targets(labels, jnp.array([3, 3, 0]), jnp.array([0.25, 1.0, 0.5]))
    cross_entropy, loss = steps.losses(logits, mixed, 0.1, (2.0, 1.0, 1.0, 0.5))
    _, unweighted = steps.losses(logits, mixed, 0.1)
    np.testing.assert_allclose(loss, unweighted * jnp.array([0.875, 0.5, 1.25]), rtol=1e-6)


def test_the_loss_of_mixed_images_is_that_of_mixed_labels():
    logits = jax.random.normal(jax.random.key(0), (4, 10))
    label, other, weight = jnp.arange(4), jnp.array([1, 0, 3, 3]), jnp.array([0.3, 0.3, 1.0, 0.0])
    targets = inputs.Targets(label, other, weight)
    mixed = weight[:, None] * jax.nn.one_hot(label, 10)
    mixed += (1 - weight[:, None]) * jax.nn.one_hot(other, 10)
    expected = optax.softmax_cross_entropy(logits, mixed)
    np.testing.assert_allclose(steps.losses(logits, targets, 0.0)[0], expected, rtol=1e-5)


def test_distortions_differ_between_images_and_steps(config, batch):
    """Sixteen times one image: sixteen pictures, and others in the next step."""
    mesh = replicas.make_mesh(1)

    def of_step(step, images):
        return distorted(config, steps.image_keys(0, step, len(images)), images)

    run = jax.jit(
        jax.shard_map(
            of_step,
            mesh=mesh,
            in_specs=(replicas.P(), replicas.P(replicas.AXIS)),
            out_specs=replicas.P(replicas.AXIS),
        )
    )
    same = jnp.broadcast_to(batch["image"][:1], batch["image"].shape)
    first, second = run(0, same), run(1, same)
    pictures = np.asarray(jnp.concatenate([first, second])).reshape(32, -1)
    assert len(np.unique(pictures, axis=0)) == 32
    np.testing.assert_array_equal(first, run(0, same))


def test_auxiliary_outputs(config, compiled_step, batch):
    """The same update; norms, sparsity, gradients and layers as worked out apart."""
    state, step = compiled_step(config, detail=steps.Detail.TENSORS)
    new, metrics, aux = step(state, batch)
    images, _, gradients, layers = worked_out_apart(config, state.params, batch)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, aux["gradients"], gradients)
    jax.tree.map(close, aux["activations"], layers)
    jax.tree.map(close, aux["params"], state.params)
    close(aux["images"], images)
    assert (aux["labels"] == batch["label"]).all()
    scalars = {name: float(value) for name, value in aux["scalars"].items()}
    assert scalars["gradient_norm"] == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-3)
    kernel_and_bias = new.params["conv1"], state.params["conv1"]
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, *kernel_and_bias))
    expected = float(moved / optax.tree.norm(state.params["conv1"]))
    assert scalars["update_ratio/conv1"] == pytest.approx(expected, rel=1e-2)
    assert scalars["sparsity/local3"] == pytest.approx(float((layers["local3"] == 0).mean()))
    jax.tree.map(
        lambda p, old, g: np.testing.assert_allclose(p, old - 0.1 * g, atol=2e-6),
        *(new.params, state.params, gradients),
    )


def test_microbatches_are_the_same_batch(config, started, compiled_step, batch):
    whole, whole_metrics, _ = started[1](started[0], batch)
    config.accumulate = 8
    state, step = compiled_step(config)
    found, metrics, _ = step(state, batch)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)
    jax.tree.map(close, found.params, whole.params)


def test_predict_step_names_the_most_probable(config, batch):
    model = steps.make_model(config, 10)
    variables = models.init(model, jax.random.key(0), (24, 24, 3))
    bound = inputs.make(config.inputs, batch["image"].shape[1:])
    step = partial(steps.predict_step, inputs=bound, model=model)
    found = replicas.data_parallel(step, replicas.make_mesh(1), sharded={1: 0}, per_image=True)(
        variables, batch
    )
    (images,) = bound.evaluate(batch["image"])
    probabilities = np.asarray(jax.nn.softmax(steps.predict(model, variables, images)))
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found["classes"], order)
    expected = np.take_along_axis(probabilities, order, axis=-1)
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-4)
    right = probabilities[np.arange(16), batch["label"]]
    np.testing.assert_allclose(found["cross_entropy"], -np.log(right), rtol=1e-4)


def test_many_images_are_predicted_in_chunks(config, monkeypatch):
    """Two chunks and a rest."""
    monkeypatch.setattr(steps.prediction, "_CHUNK", 3)
    model = steps.make_model(config, 10)
    variables = models.init(model, jax.random.key(0), (24, 24, 3))
    images = jax.random.normal(jax.random.key(1), (7, 24, 24, 3))
    found = jax.jit(partial(steps.predict, model))(variables, images)
    expected, *_ = models.forward(model, variables, images, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_trains_float32_parameters(config, compiled_step, batch):
    config.dtype = "bfloat16"
    state, step = compiled_step(config)
    losses = []
    for _ in range(8):
        state, metrics, _ = step(state, batch)
        losses.append(float(metrics["cross_entropy"]))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_images_that_grow(config, compiled_step, batch, monkeypatch):
    """At each size the step is that of images of this size; activations are of the full one."""
    recipe = config_lib.recipe("airbench94:batch=16")
    recipe.data.dir = config.data.dir
    monkeypatch.setitem(
        models._MODELS, "airbench", partial(models.airbench.Airbench, widths=(4, 6, 6))
    )
    recipe.inputs.transforms = ("standardize",)  # nothing is drawn
    recipe.inputs.curriculum = ((1, 24),)  # an epoch of 90 / 16 steps
    state, step = compiled_step(recipe)
    whole = training.prepare(recipe).step.keywords["inputs"].evaluate(batch["image"])[0]

    @partial(jax.jit, static_argnums=0)
    def cross_entropy(size):
        seen = jax.image.resize(whole, (16, size, size, 3), "linear", antialias=False)
        model = steps.make_model(recipe, 10)
        logits, *_ = models.forward(model, state.variables, seen, train=True)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return each.mean()

    for number, size in ((0, 24), (5, 24), (6, 32)):
        _, metrics, _ = step(state.replace(step=jnp.int32(number)), batch)
        assert float(metrics["cross_entropy"]) == pytest.approx(float(cross_entropy(size)), 1e-4)
    _, detailed = compiled_step(recipe, detail=steps.Detail.TENSORS)
    *_, aux = jax.eval_shape(detailed, state, batch)
    assert aux["activations"]["whiten"].shape == (16, 31, 31, 24)


def test_the_fast_recipe_trains(config, compiled_step, batch):
    recipe = config_lib.recipe("fast")
    recipe.data.dir, recipe.batch_size = config.data.dir, 16
    state, step = compiled_step(recipe)
    losses = []
    for _ in range(8):
        state, metrics, _ = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] < 2.4  # no L2 in it, labels smoothed
    assert float(metrics["loss"]) != float(metrics["cross_entropy"])
    assert float(metrics["l2"]) == 0


@pytest.mark.usefixtures("by_xla")
def test_the_compiled_step_has_no_slow_operation(config, compiled_step, batch):
    """What XLA makes of the naive forms on a CPU: each once cost more than all the rest.

    select-and-scatter is its gradient of a pooling, power the LRN's. And the fusion that spreads
    conv1's gradient over the input's grid reads which values won, and not (f32[16,25,25,64]) the
    values themselves, to compare them all again.
    """
    state, step = compiled_step(config)
    text = re.sub(r"/\*.*?\*/", "", step.lower(state, batch).compile().as_text())
    assert "select-and-scatter" not in text
    assert not re.search(r"= \w+\[\d[^\]]*\]\S* power\(", text)  # the schedule's is a scalar's
    (spread,) = re.findall(r"= f32\[24,24,16,64\]\S* fusion\((.*?)\)", text)
    operands = [
        re.search(rf"{re.escape(name.strip())} = (\w+\[[\d,]*\])", text)[1]
        for name in spread.split(",")
    ]
    assert "s8[16,12,12,64]" in operands
    assert "f32[16,25,25,64]" not in operands


@pytest.mark.usefixtures("by_xla")
def test_within_a_loop_every_convolution_is_of_the_fast_kind(config, compiled_step, batch):
    """XLA brings others into that layout outside of loops alone (`ops.conv._direct`)."""
    config.accumulate = 8
    state, step = compiled_step(config)
    text = step.lower(state, batch).compile().as_text()
    found = re.findall(r" convolution\(.*?dim_labels=(\S+?)[,\s]", text)
    assert len(found) == 4  # conv1 forward and backward, of the first part and in the loop
    assert set(found) == {"b01f_01io->b01f"}


class Normalised(nn.Module):
    """The cheapest network with batch statistics."""

    num_classes: int = 10
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train=False):
        x = BatchNorm(momentum=0.5, name="norm")(images.mean(1), train=train)
        return nn.Dense(self.num_classes, name="linear")(x.reshape(len(x), -1))


def test_microbatches_have_statistics_of_their_own(config, compiled_step, batch, monkeypatch):
    """Each is normalised by its own and starts from the state before; then the means of both."""
    monkeypatch.setitem(models._MODELS, "cnn", Normalised)
    config.accumulate, config.optim.weight_decay = 2, 0.0
    config.inputs.transforms = ("central_crop", "standardize")
    state, step = compiled_step(config)
    state = state.replace(model_state=jax.tree.map(lambda x: x + 3, state.model_state))
    new, metrics, _ = step(state, batch)

    (images,) = inputs.make(config.inputs, (32, 32, 3)).evaluate(batch["image"])

    def loss_fn(params, images, labels):
        variables = {"params": params, **state.model_state}
        logits, after, _ = models.forward(Normalised(), variables, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), after

    value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    labels = batch["label"]
    halves = (images[:8], labels[:8]), (images[8:], labels[8:])
    parts = [value_and_grad(state.params, *half) for half in halves]
    mean = partial(jax.tree.map, lambda a, b: (a + b) / 2)
    (loss, after), gradients = mean(*parts)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(metrics["loss"], loss)
    jax.tree.map(close, new.model_state, after)
    jax.tree.map(lambda p, g, found: close(found, p - 0.1 * g), state.params, gradients, new.params)
    (whole, _), _ = value_and_grad(state.params, images, labels)
    assert abs(whole - loss) > 1e-4  # of the whole batch's statistics it would be another
