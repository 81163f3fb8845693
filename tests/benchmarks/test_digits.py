"""The digits' benchmark, with a few drawn images."""

import json

import numpy as np
import pytest

from benchmarks import digits


def draw(folder):
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        images = rng.integers(0, 256, (count, 32, 32), np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=np.arange(count) % 10)


@pytest.mark.slow
def test_every_recipe_is_trained_and_evaluated(monkeypatch, tmp_path):
    monkeypatch.setitem(digits._FIELDS, "num_steps", 1)
    monkeypatch.setitem(digits._FIELDS, "batch_size", 16)
    assert digits.main(["--seeds", "1", "--json", str(tmp_path / "figures.json")], draw) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(digits.RECIPES) < set(figures)
    for name in digits.RECIPES:
        assert 0 <= figures[name]["mean"] <= 1
