"""A proxy chooses the hardest images of a batch: what is trained on them is the step that it is
without a proxy, and the proxy is trained on them every few steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import config as config_lib
from cifar_jax import models, steps
from cifar_jax import train as train_lib
from cifar_jax.devices import replicas
from cifar_jax.errors import UsageError
from cifar_jax.loop import training
from cifar_jax.models.airbench import Airbench
from tests.conftest import random_images


@pytest.fixture
def small(config, monkeypatch):
    """airbench96 with small networks, 16 images, 8 of them for the model."""
    for name, widths in (("airbench96", (4, 6, 6)), ("airbench_small", (3, 4, 4))):
        monkeypatch.setitem(models._MODELS, name, partial(Airbench, widths=widths, divisor=9.0))
    recipe = config_lib.recipe("airbench96")
    recipe.data.dir = config.data.dir
    recipe.update(batch_size=16, dtype="float32", num_epochs=1.0, num_steps=6, log_every_steps=1)
    recipe.proxy.every = 2
    recipe.optim.lookahead.every = 4
    recipe.inputs.transforms = ("random_crop", "flip", "standardize")
    recipe.summaries.update(scalars=0, images=0, histograms=0)
    recipe.checkpoint.every_steps = 3
    return recipe


def equal(one, other):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), one, other)


@pytest.mark.slow
def test_the_step_is_that_of_the_hardest_images(small):
    run = training.prepare(small)
    images, labels = random_images(16, seed=3)
    zeros = jnp.zeros(16, jnp.int32)
    batch = {"image": images, "label": labels.astype(np.int32), "index": zeros, "epoch": zeros}
    state = replicas.replicate(run.state, run.mesh)
    step = jax.jit(run.step)
    found, metrics, _ = step(state, batch)

    # By the definition: all images, transformed by their keys, through the proxy.
    keywords = run.step.keywords
    keys = steps.image_keys(small.seed, jnp.int32(0), 16, jnp.arange(16))
    images, targets = keywords["inputs"].train(keys, batch)
    proxy = keywords["proxy"].keywords["model"]
    forward = jax.jit(partial(models.forward, proxy, train=True))
    logits = forward(state.proxy.variables, images)[0]
    losses = steps.losses(logits, targets, 0.2)[1]
    hardest = np.sort(np.argsort(np.asarray(losses))[-8:])

    alone = {k: v for k, v in keywords.items() if k not in ("proxy", "num_kept")}
    chosen = {name: array[hardest] for name, array in batch.items()} | {"position": hardest}
    single = jax.jit(partial(steps.train_step, **alone))
    first = steps.TrainState(**{k: v for k, v in vars(state).items() if k != "proxy"})
    expected, expected_metrics, _ = single(first, chosen)
    equal(found.params, expected.params)
    equal(found.ema, expected.ema)
    assert float(metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-5)
    learned = jax.jit(keywords["proxy"])(state.proxy, chosen)[0]
    equal(found.proxy.params, learned.params)
    assert int(found.step) == int(found.proxy.step) == 1

    # At the next step the proxy only looks.
    later = step(found, batch)[0]
    jax.tree.map(np.testing.assert_array_equal, later.proxy.params, found.proxy.params)
    assert int(later.proxy.step) == 2


def test_the_rates_of_the_proxy_fall_as_the_model_s(small):
    """It has half of the updates, each of the rate that the model has at that step."""
    small.num_steps, small.optim.warmup_epochs = 60, 0.0
    keywords = training.prepare(small).step.keywords
    own, other = keywords["schedule"], keywords["proxy"].keywords["schedule"]
    for update in range(30):
        assert float(other(update)) == pytest.approx(float(own(2 * update)), rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_from_any_checkpoint_as_if_it_had_not_ended(small, tmp_path):
    whole = train_lib.train(small, tmp_path).state
    resumed = train_lib.train(small, tmp_path, from_step=3).state
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"proxy.model": "airbench_smal"}, "'airbench_smal'. Did you mean 'airbench_small'"),
        ({"proxy.keep": 1.0}, "config.proxy.keep = 1.0, expected less than 1"),
        ({"batch_size": 100, "proxy.keep": 0.29, "accumulate": 2}, "images are 29, which"),
        ({"proxy.keep": 0.3}, "config.proxy.keep = 0.3 of 16 images are 4.8, which 1 devices"),
        ({"proxy.every": 0}, "config.proxy.every = 0, expected more than 0"),
        ({"inputs.transforms": ("mixup",)}, "chooses single images, and config.inputs.transforms"),
        ({"num_seeds": 2}, "config.proxy.model = 'airbench_small' does not go with several"),
    ],
)
def test_what_cannot_be(small, fields, message):
    small.update_from_flattened_dict(fields)
    with pytest.raises(UsageError) as error:
        config_lib.resolve(small)
    assert message in str(error.value)
