"""Two processes over loopback: one is killed, all are started again, nothing is different."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import pytest

from cifar_jax import checkpoint, optim, records, steps
from cifar_jax import config as config_lib
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def start(data_dir, workdir, *, restarts=0):
    return subprocess.Popen(
        [
            *(sys.executable, "launch/local.py", "--processes=2", f"--restarts={restarts}", "--"),
            *(f"--workdir={workdir}", f"--config.data.dir={data_dir}"),
            *("--config.batch_size=16", "--config.num_steps=100"),
            *("--config.checkpoint.every_steps=20", "--config.heartbeat_seconds=10"),
            "--config.summaries.images=0",
            "--config.summaries.histograms=0",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def leaves(workdir):
    config = config_lib.load(workdir)
    optimizer = steps.make_optimizer(config, optim.make_schedule(config.optim, 1.0, 1))
    like = jax.eval_shape(
        partial(steps.init_state, config, steps.make_model(config, 10), optimizer)
    )
    return jax.tree.leaves(checkpoint.restore(workdir / "checkpoints", 100, like))


def test_a_killed_process_costs_nothing(tmp_path, data_dir):
    whole = start(data_dir, tmp_path / "whole")
    out, _ = whole.communicate()
    assert whole.returncode == 0, out
    job = start(data_dir, tmp_path / "killed", restarts=1)
    folder = tmp_path / "killed" / "checkpoints"
    end = time.monotonic() + 300
    while not (folder / "20" / "manifest.json").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    found = subprocess.run(
        ["pgrep", "-f", f"workdir={tmp_path}/killed .*process_id=1"], capture_output=True, text=True
    )
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
    out, _ = job.communicate()
    assert job.returncode == 0, out
    assert "Process 1 was ended by SIGKILL." in out
    assert "was lost" in out
    assert "Resuming from step" in out
    for one, other in zip(leaves(tmp_path / "whole"), leaves(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(one, other)
    seen = [r["step"] for r in records.read(tmp_path / "killed" / records.FILE) if "loss" in r]
    assert seen == list(range(0, 100, 10))
