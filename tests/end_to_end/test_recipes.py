"""Every recipe of configs/: some steps, and their evaluation."""

import numpy as np
import pytest
from scipy import io

from cifar_jax import train
from cifar_jax.config import recipe
from cifar_jax.evaluate import Evaluator
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    """CIFAR-10 and SVHN, tiny."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar-10-batches-bin").symlink_to(data_dir / "cifar-10-batches-bin")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        images = rng.integers(0, 256, (32, 32, 3, 32), np.uint8)
        io.savemat(folder / f"{part}_32x32.mat", {"X": images, "y": np.full((32, 1), 10)})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
def test_a_recipe_trains_and_is_evaluated(name, folder, tmp_path):
    config = recipe(name)
    config.update(batch_size=16, num_steps=2, log_every_steps=1)
    config.data.dir = str(folder)
    config.data.synthetic.update(train=64, test=16)
    config.checkpoint.every_steps = 1
    config.summaries.update(scalars=0, images=0, histograms=0)
    found = {}
    with Evaluator(config, tmp_path) as evaluator:

        def evaluate(step):
            found[step] = evaluator.evaluate(step)
            return found[step]

        state = train.train(config, tmp_path, evaluate).state
    assert int(state.step) == 2
    assert list(found) == [1, 2]
    assert all(0 <= accuracy <= 1 for accuracy in found.values())
