"""Two processes over loopback, one with a fault: a clear line, and no checkpoint is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from cifar_jax.data import native, shards
from cifar_jax.data.dataset import Split
from cifar_jax.loop import training
from cifar_jax.workdir import checkpoint, description, pytrees, records
from tests.conftest import NAMES, NUM_TRAIN, ROOT, random_images

pytestmark = pytest.mark.slow

AGAIN = "Start all processes again to go on from the last checkpoint."
LOST = rf"\[0\] Process 0 has lost the connection to another one: .*\. {AGAIN}"


@pytest.fixture(scope="module")
def launch(data_dir):
    """Runs main.py in processes of one run, with a fault (see faulty_main.py) in one of them."""

    def run(workdir, *flags, processes=2, options=(), fault="none", faulty=1, mark=""):
        done = subprocess.run(
            [
                *(sys.executable, "launch/local.py", f"--processes={processes}", *options),
                *("--program=tests/end_to_end/faulty_main.py", "--"),
                *(f"--workdir={workdir}", f"--config.data.dir={data_dir}"),
                *("--config.batch_size=16", "--config.num_steps=60"),
                "--config.optim.learning_rate=0.02",  # at which rounding stays small
                *("--config.checkpoint.every_steps=20", "--config.heartbeat_seconds=5"),
                *(f"--config.summaries.{what}=0" for what in ("scalars", "images", "histograms")),
                *flags,
            ],
            cwd=ROOT,
            env=os.environ | {"FAULT": fault, "FAULTY": str(faulty), "MARK": str(mark)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout

    return run


@pytest.fixture(scope="module")
def undisturbed(launch, tmp_path_factory):
    """The workdir of two processes that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, out = launch(workdir)
    assert code == 0, out
    return workdir


def leaves(workdir, step=60):
    like = training.prepare(description.load(workdir)).state
    return jax.tree.leaves(pytrees.restore(workdir / "checkpoints", step, like))


def losses(workdir):
    return {r["step"]: r["loss"] for r in records.read(workdir / records.FILE) if "loss" in r}


@pytest.mark.parametrize(
    ("faulty", "fault", "resumed"),
    [
        (1, "kill in step 30", 20),
        (1, "kill in save 40", 20),
        (0, "kill in seal 40", 20),  # which is written, but not proven
        (0, "kill in step 50", 40),
    ],
)
def test_a_killed_process_costs_nothing(launch, tmp_path, undisturbed, faulty, fault, resumed):
    code, out = launch(
        tmp_path / "run",
        options=["--restarts=1"],
        fault=fault,
        faulty=faulty,
        mark=tmp_path / "mark",
    )
    assert code == 0, out
    assert f"Process {faulty} was ended by SIGKILL." in out
    if faulty == 1 and "step" in fault:  # else jax.distributed ends the other one, which only waits
        assert re.search(LOST, out)
    assert f"Resuming from step {resumed} " in out
    for one, other in zip(leaves(undisturbed), leaves(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_all_processes_begin_with_what_the_first_one_finds(launch, tmp_path, undisturbed):
    """Its own end, at a rate of almost nothing; and a source that is not there ends them all."""
    code, out = launch(
        tmp_path / "run",
        *(f"--config.init_from={undisturbed}", "--config.num_steps=2"),
        "--config.optim.learning_rate=1e-12",
    )
    assert code == 0, out
    assert len(re.findall(r"Initialised from .* at step 60: 10 of 10 arrays\.", out)) == 1
    there = training.prepare(description.load(undisturbed)).state
    there = pytrees.restore(undisturbed / "checkpoints", 60, there).ema
    like = training.prepare(description.load(tmp_path / "run")).state
    here = pytrees.restore(tmp_path / "run" / "checkpoints", 2, like).variables
    for one, other in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    code, out = launch(tmp_path / "other", f"--config.init_from={tmp_path / 'nowhere'}")
    assert code == 2, out
    assert "has no config.json, expected the workdir of a run" in out


def test_a_process_that_hangs_is_found(launch, tmp_path):
    code, out = launch(
        tmp_path / "run",
        *("--config.heartbeat_seconds=3", "--config.checkpoint.every_steps=10"),
        options=["--grace=1"],
        fault="stop in step 35",
    )
    assert code == 128 + signal.SIGABRT, out  # by jax.distributed
    assert "Process 0 was ended by SIGABRT." in out
    assert AGAIN in out
    assert checkpoint.newest(tmp_path / "run" / "checkpoints", print) == 30


def test_the_others_wait_for_what_one_still_has_to_write(launch, tmp_path):
    code, out = launch(
        tmp_path / "run",
        *("--config.heartbeat_seconds=3", "--config.num_steps=4"),
        fault="slow end 12",
        faulty=0,
    )
    assert code == 0, out
    assert checkpoint.status(tmp_path / "run" / "checkpoints").finished == 4


def test_a_loss_that_diverges_is_not_tried_again(launch, tmp_path):
    code, out = launch(
        tmp_path / "run",
        *("--config.optim.learning_rate=1e9", "--config.log_every_steps=1"),
        options=["--restarts=2"],
    )
    assert code == 3, out
    for process in (0, 1):
        line = rf"^\[{process}\] The (?:loss|average loss) is \S+ at step"
        assert len(re.findall(line, out, re.M)) == 1, out
    assert "Starting all" not in out


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        (
            "add --config.optim.learning_rate=0.5",
            2,
            "Process 1 has another config than process 0: optim.learning_rate. Start all "
            "processes with the same --config and flags.",
        ),
        (
            "devices 2",
            2,
            "Process 0 has 1 devices and process 1 has 2, expected the same number for all.",
        ),
        ("add --config.data.dir={tmp}/others", 2, "Process 1 has other training images than"),
        ("add --workdir={tmp}/elsewhere", 1, "Process 1 does not see in {tmp}/elsewhere"),
    ],
)
def test_what_is_not_the_same_is_said(launch, tmp_path, fault, code, line):
    folder = tmp_path / "others" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]:
        native.write(folder / name, *random_images(7, seed=0))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n")
    found, out = launch(tmp_path / "run", fault=fault.format(tmp=tmp_path))
    assert found == code, out
    for process in (0, 1) if code == 2 else (1,):  # the other one loses the connection
        said = [text for text in out.splitlines() if text.startswith(f"[{process}] ")]
        assert any(line.format(tmp=tmp_path) in text for text in said), out
        assert len(said) == 1, out
    assert not list(tmp_path.glob("*/checkpoints/*/")), "something was written"


def test_a_damaged_shard_of_one_stops_both(launch, tmp_path):
    images, labels = random_images(NUM_TRAIN, seed=0)
    for name in ("whole", "damaged"):
        shards.write(tmp_path / name, "train", Split(images, labels, NAMES), num_shards=2)
    path = min((tmp_path / "damaged" / "train").glob("*.array_record"))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = bytes(1000)
    path.write_bytes(content)
    code, out = launch(
        tmp_path / "run",
        f"--config.data.shards={tmp_path}/whole",
        "--config.data.placement=stream",
        fault=f"add --config.data.shards={tmp_path}/damaged",
    )
    assert code == 1, out
    assert re.search(rf"^\[1\] {path}", out, re.M), out
    assert re.search(LOST, out)


def test_a_coordinator_that_cannot_be_reached(launch, tmp_path):
    code, out = launch(
        tmp_path / "run", "--config.join_seconds=3", fault="add --coordinator=127.0.0.1:1"
    )
    assert code == 1
    waited = r"was waited for 3 s \(config.join_seconds\), but"
    assert re.search(rf"\[0\] The coordinator \S+ {waited} not all processes have joined", out)
    assert re.search(rf"\[1\] The coordinator 127.0.0.1:1 {waited} it cannot be reached", out)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_goes_on_with_any_number_of_processes(launch, tmp_path, undisturbed):
    workdir = tmp_path / "run"
    for processes, num_steps in ((2, 20), (1, 40), (4, 60)):
        code, out = launch(
            workdir,
            *(f"--config.num_steps={num_steps}", "--config.shard_optimizer=True"),
            processes=processes,
        )
        assert code == 0, out
        assert num_steps == 20 or f"Resuming from step {num_steps - 20} " in out
    for one, other in zip(leaves(undisturbed), leaves(workdir), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    np.testing.assert_allclose(
        list(losses(workdir).values()), list(losses(undisturbed).values()), rtol=1e-3
    )
    shutil.rmtree(workdir)
