"""docs/new_model.md: the model on the page is made from the page, and trained."""

import re
import types

import jax
import pytest

from cifar_jax import evaluate, models, train
from cifar_jax.config import recipe
from cifar_jax.models import _MODELS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "new_model.md").read_text()
FILE, LINE, RECIPE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def mine(monkeypatch):
    """The class of the page, in the registry by the page's line."""
    module = types.ModuleType("mine")
    exec(compile(FILE, "docs/new_model.md", "exec"), module.__dict__)
    monkeypatch.setattr(models, "_MODELS", {**_MODELS, **eval(f"{{{LINE}}}", {"mine": module})})
    monkeypatch.setattr(models, "NAMES", tuple(models._MODELS))
    return module.Mine


def test_the_pages_model_is_trained_and_evaluated(mine, data_dir, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    config = recipe(path)
    config.update(batch_size=16, num_steps=2)
    config.data.dir = str(data_dir)
    config.summaries.update(scalars=0, images=0, histograms=0)
    state = train.train(config, tmp_path / "run").state
    assert state.params["stem"]["kernel"].shape == (3, 3, 3, 32)
    assert float(abs(state.model_state["batch_stats"]["norm"]["mean"]).max()) > 0
    assert 0 <= evaluate.evaluate(None, tmp_path / "run", once=True)[2] <= 1


def test_the_pages_model_publishes_a_layer(mine):
    variables = models.init(mine(), jax.random.key(0), (8, 8, 3))
    images = jax.numpy.zeros((2, 8, 8, 3))
    logits, _, layers = models.forward(mine(), variables, images, train=False, layers=True)
    assert (logits.shape, list(layers)) == ((2, 10), ["sum"])


def test_a_model_takes_no_more_than_25_lines():
    written = [line for line in (FILE + LINE).splitlines() if line.strip()]
    assert len(written) <= 25


def test_the_command_names_the_recipes_fields():
    assert "--config.model.name=mine" in PAGE
    assert recipe("default").optim.decay_params != ("*/kernel",)
