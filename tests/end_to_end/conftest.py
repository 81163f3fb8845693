"""A short run with everything in it."""

import contextlib

import pytest

from cifar_jax import config as config_lib
from cifar_jax import train
from cifar_jax.evaluate import Evaluator


@pytest.fixture(scope="session")
def short_run(tmp_path_factory, data_dir):
    """The workdir of six steps with two evaluations, all summaries at every third step."""
    config = config_lib.recipe("default")
    config.data.dir = str(data_dir)
    config.update(batch_size=16, num_steps=6)
    config.summaries.update(scalars=1, images=3, histograms=3)
    config.checkpoint.every_steps = 3
    folder = tmp_path_factory.mktemp("short") / "run"
    with contextlib.closing(Evaluator(config, folder)) as evaluator:
        train.train(config, folder, after_checkpoint=evaluator.evaluate)
    return folder
