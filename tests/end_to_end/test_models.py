"""Every network and pictures of any size go through training, resuming, evaluation and the report,
of which none knows them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest

from cifar_jax import config as config_lib
from cifar_jax import models, train
from cifar_jax.evaluate import Evaluator
from cifar_jax.models.airbench import Airbench
from cifar_jax.models.resnet import ResNet18
from cifar_jax.optim import paths
from cifar_jax.report import page, plots
from cifar_jax.workdir import records
from tests.conftest import ROOT
from tests.telemetry.test_summaries import values

NARROW = {
    "resnet18": partial(ResNet18, width=4),
    "airbench": partial(Airbench, widths=(4, 4, 4)),
}


class Case(NamedTuple):
    recipe: str
    shape: tuple[int, int, int]
    inputs: dict


RESIZED = {"size": (24, 32), "transforms": ("random_resized_crop", "flip", "standardize")}
CASES = {
    "cnn 48x64x3": Case("default", (48, 64, 3), RESIZED),
    "airbench 28x28x1": Case("airbench94:batch=8", (28, 28, 1), {"size": (28, 28)}),
    "cnn 28x28x1": Case("default", (28, 28, 1), {}),
    "airbench 32x32x3": Case("airbench94:batch=8", (32, 32, 3), {}),
    "airbench growing": Case("airbench94:1,batch=8", (32, 32, 3), {"curriculum": ((1, 24),)}),
    "resnet 32x32x3": Case("resnet", (32, 32, 3), {}),
    "local 32x32x3": Case("local", (32, 32, 3), {}),
    "resnet 48x64x3": Case("resnet", (48, 64, 3), {"size": (48, 64)}),
}
FAST = 1  # of them


@pytest.fixture(scope="module", autouse=True)
def small():
    """The registered networks with few channels, and plots with few pixels."""
    with pytest.MonkeyPatch.context() as patch:
        for name, model in NARROW.items():
            patch.setitem(models._MODELS, name, model)
        patch.setattr(plots, "DPI", 40)
        yield


def write(folder, shape):
    """24 training and 20 test images of 3 classes, which differ in their brightness."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 20)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 128, (count, *shape)) + 60 * labels[:, None, None, None]
        np.savez(folder / f"{split}.npz", images=images.astype(np.uint8), labels=labels)


def configured(case, folder):
    """Its recipe for the images in `folder`: 4 steps of 8, one program."""
    config = config_lib.recipe(case.recipe)
    config.data.update(name="npz", dir=str(folder))
    config.inputs.update(case.inputs)
    config.update(batch_size=8, num_steps=4, num_devices=1, log_every_steps=1)
    config.summaries.update(scalars=1, images=1, histograms=1)
    config.checkpoint.every_steps = 2
    config.eval.batch_size = 16
    return config


class Trained(NamedTuple):
    config: object
    workdir: object
    state: object


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (place >= FAST))
        for place, name in enumerate(CASES)
    ],
)
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    case = CASES[request.param]
    write(folder, case.shape)
    config = configured(case, folder)
    return Trained(config, folder / "run", train.train(config, folder / "run").state)


def state_bytes(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_a_resumed_run_has_the_bytes_of_the_uninterrupted_one(trained, tmp_path):
    shutil.copytree(trained.workdir, tmp_path / "run")
    state = train.train(trained.config, tmp_path / "run", from_step=2).state
    assert state_bytes(state) == state_bytes(trained.state)


def test_ema_and_raw_are_evaluated_and_reported(trained, capsys):
    views = trained.config.eval.views
    for ema in (True, False):
        with contextlib.closing(Evaluator(trained.config, trained.workdir, ema=ema)) as evaluator:
            expected = trained.state.ema if ema else trained.state.variables
            assert state_bytes(evaluator.restore(4)) == state_bytes(expected)
            evaluator.evaluate(4)
    assert capsys.readouterr().out.count("precision @ 1") == 2 * (1 + (views > 1))
    known = records.read(trained.workdir / records.FILE)
    assert [r["step"] for r in known if r["kind"] == "train"] == [0, 1, 2, 3]
    averaged, raw = (r for r in known if r["kind"] == "eval")
    assert np.isfinite([averaged["cross_entropy"], raw["cross_entropy_raw"]]).all()

    made = page.make([trained.workdir])
    kinds = ("gradient-norm", "update-ratio", "sparsity", "confusion", "reliability", "model")
    assert {path.stem for path in made.parent.glob("*.png")} >= set(kinds)
    text = made.read_text()
    for layer in {name.rpartition("/")[0] for name in paths.flatten(trained.state.params)}:
        assert layer in text
    assert {("inputs", step) for step in range(4)} <= values(trained.workdir).keys()
    assert {("mistakes", 4), ("confusion_raw", 4)} <= values(trained.workdir, "eval").keys()


PROGRAM = """
import functools, json, sys
from pathlib import Path
from cifar_jax.devices import runtime
runtime.start()
from cifar_jax import config as config_lib
from cifar_jax import models
from cifar_jax.models.airbench import Airbench
from cifar_jax.train import train
from cifar_jax.workdir import records

models._MODELS["airbench"] = functools.partial(Airbench, widths=(4, 4, 4))
found = {}
for name in ("1", "2", "4", "4 split", "1 proxy", "2 proxy"):
    config = config_lib.recipe("airbench94:batch=8")
    config.data.update(name="npz", dir=sys.argv[1])
    config.inputs.size = (28, 28)
    config.update(num_steps=12, num_devices=int(name[0]))
    config.shard_optimizer = "split" in name
    if "proxy" in name:
        config.proxy.update(model="airbench", every=2)
    config.optim.learning_rate /= 10  # noise amplifies no rounding yet
    config.optim.groups = tuple(
        {**group, "learning_rate": group["learning_rate"] / 10} if "learning_rate" in group
        else group
        for group in config.optim.groups
    )
    config.summaries.update(scalars=1, images=0, histograms=0)
    config.checkpoint.every_steps = 0
    workdir = Path(sys.argv[1]) / name
    state = train(config, workdir).state
    losses = [r["loss"] for r in records.read(workdir / records.FILE) if r["kind"] == "train"]
    found[name] = losses, state.model_state["batch_stats"]["group3"]["norm2"]["var"].tolist()
Path(sys.argv[1], "found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_batch_statistics_are_those_of_all_devices(tmp_path):
    """12 steps of airbench's recipe on 1, 2 and 4, with its flips, groups and running averages; and
    with the optimiser's state split over them, and with a proxy that chooses among all images."""
    write(tmp_path, (28, 28, 1))
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Training on 4 CPU devices." in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["1"][0]) == 12
    for name in ("2", "4", "4 split", "2 proxy"):
        for several, one in zip(
            found[name], found["1" + name[1:].replace(" split", "")], strict=True
        ):
            np.testing.assert_allclose(several, one, rtol=1e-3)
