"""The README's first command, in a fresh clone."""

import os
import re
import subprocess

import pytest

from tests.conftest import ROOT


def make(target, clone, data):
    # CI's own virtual environment must not be found in place of the clone's.
    inherited = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return subprocess.run(
        ["make", target],
        cwd=clone,
        env={**inherited, "CIFAR_JAX_DATA": str(data)},
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.mark.slow
def test_make_train_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    done = make("train", clone, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "Installing cifar_jax" in done.stdout
    assert "step 0, loss = 4.68" in done.stdout
    assert float(re.search(r"precision @ 1 = (\d\.\d{3})", done.stdout)[1]) > 0.9
    assert done.stdout.count("\n  .venv/bin/python main.py") == 3  # the commands to try next
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True)
    assert status.stdout == b""  # whatever was written is ignored

    again = make("train", clone, tmp_path / "data")
    assert again.returncode == 0, again.stderr
    assert "Installing" not in again.stdout
    assert "Training has already ended" in again.stdout
