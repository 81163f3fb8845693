"""1, 2, 4 and 8 devices of one machine: the same images, the same distortions, the same numbers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import NUM_TEST, ROOT

pytestmark = pytest.mark.slow

COUNTS = (1, 2, 4, 8)
SPLIT = "8 split"  # 8 devices, over which the optimiser's state is split
PROGRAM = """
import contextlib, json, sys
from pathlib import Path
from cifar_jax.devices import runtime
runtime.start()
import jax, jax.numpy as jnp, numpy as np
from cifar_jax import config as config_lib, inputs, steps
from cifar_jax.devices import replicas
from cifar_jax.workdir import records
from cifar_jax.evaluate import Evaluator
from cifar_jax.train import train

folder, data_dir = map(Path, sys.argv[1:])
found = {}
for name in ("1", "2", "4", "8", "8 split"):
    devices = int(name.split()[0])
    config = config_lib.recipe("default")
    config.data.dir = str(data_dir)
    config.update(batch_size=16, num_steps=100, num_devices=devices)
    config.shard_optimizer = "split" in name
    config.optim.learning_rate = 0.01  # noise amplifies no rounding yet
    config.summaries.update(scalars=1, images=0, histograms=0)
    config.checkpoint.every_steps = 0
    config.eval.batch_size = 16
    workdir = folder / name
    with contextlib.closing(Evaluator(config, workdir)) as evaluator:
        state = train(config, workdir).state
        count = len(evaluator.predict(state.variables).labels)
        accuracy = evaluator.evaluate(100)

    def distorted(step, images):
        keys = steps.image_keys(0, step, len(images))
        zeros = jnp.zeros(len(images), jnp.int32)
        batch = {"image": images, "label": zeros, "index": zeros, "epoch": zeros}
        return bound.train(keys, batch)[0]

    bound = inputs.make(config.inputs, (32, 32, 3))

    images = jnp.broadcast_to(evaluator.data.images[:1], (16, 32, 32, 3))
    seen = replicas.data_parallel(
        distorted, replicas.make_mesh(devices), sharded={1: 0}, per_image=True
    )(jnp.int32(7), images)
    split = jax.tree.leaves((state.opt_state, state.ema))
    first = [leaf.addressable_shards[0].data for leaf in split]
    found[name] = {
        "losses": [r["loss"] for r in records.read(workdir / records.FILE) if r["kind"] == "train"],
        "count": count,
        "accuracy": accuracy,
        "devices": len(seen.devices()),
        "optimizer_bytes": sum(part.nbytes for part in first),
    }
    np.savez(
        folder / f"{name}.npz",
        seen=seen,
        **{f"p{i}": leaf for i, leaf in enumerate(jax.tree.leaves(jax.device_get(state.params)))},
    )
(folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("devices")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, data_dir],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for line in (
        "Training on 1 CPU device.",
        *(f"Training on {n} CPU devices." for n in COUNTS[1:]),
    ):
        assert line in done.stdout
    results = json.loads((folder / "found.json").read_text())
    arrays = {name: dict(np.load(folder / f"{name}.npz")) for name in results}
    return {
        (int(name) if name.isdigit() else name): result | arrays[name]
        for name, result in results.items()
    }


@pytest.mark.parametrize("devices", (*COUNTS[1:], SPLIT))
def test_losses_and_parameters_are_those_of_one_device(found, devices):
    one, several = found[1], found[devices]
    assert several["devices"] == (8 if devices == SPLIT else devices)
    assert len(one["losses"]) == 100
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=1e-4)
    names = [name for name in one if name.startswith("p")]
    difference, whole = (
        np.concatenate([leaf.ravel() for leaf in leaves])
        for leaves in ([several[n] - one[n] for n in names], [one[n] for n in names])
    )
    assert np.abs(difference).max() < 1e-3
    assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(whole)


def test_a_split_optimizer_takes_an_eighth_of_the_memory(found):
    whole, part = found[8]["optimizer_bytes"], found[SPLIT]["optimizer_bytes"]
    assert whole / 8 < part < 1.01 * whole / 8  # the few scalars and odd biases are whole on each


@pytest.mark.parametrize("devices", (*COUNTS, SPLIT))
def test_every_image_has_a_distortion_of_its_own_on_any_count(found, devices):
    pictures = found[devices]["seen"].reshape(16, -1)
    assert len(np.unique(pictures, axis=0)) == 16
    np.testing.assert_allclose(pictures, found[1]["seen"].reshape(16, -1), atol=1e-5)


@pytest.mark.parametrize("devices", (*COUNTS, SPLIT))
def test_evaluation_counts_every_image_once(found, devices):
    assert found[devices]["count"] == NUM_TEST
    assert found[devices]["accuracy"] == pytest.approx(found[1]["accuracy"], abs=1.5 / NUM_TEST)
