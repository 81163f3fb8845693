"""The benchmark of scaling: the model, the predictions, and a tiny measurement."""

import itertools
import json
import math
import os
import re
import subprocess
import sys

import jax
import pytest

from benchmarks import scaling, scaling_case
from benchmarks import scaling_model as model
from tests.conftest import ROOT


def test_without_latency_a_ring_sends_what_the_theory_says():
    machine = model.Machine(base=0, ring=(0, 0), ring_share=1, bandwidth=1e9)
    assert model.ring_all_reduce(1, machine) == 0
    assert model.ring_all_reduce(2, machine, size=10**9) == pytest.approx(1)
    assert model.ring_all_reduce(8, machine, size=10**9) == pytest.approx(2 * 7 / 8)


def test_hops_within_a_node_and_between_nodes():
    machine = model.Machine(base=0, ring=(1, 100), tree=(1, 100), bandwidth=1e30)
    assert model.ring_all_reduce(8, machine) == pytest.approx(14)
    assert model.ring_all_reduce(32, machine) == pytest.approx(2 * 28 + 2 * 3 * 100)
    assert model.tree_all_reduce(8, machine) == pytest.approx(14)
    assert model.tree_all_reduce(32, machine) == pytest.approx(14 + 2 * 2 * 100)


def test_efficiency_falls_and_a_large_batch_keeps_it():
    machine = model.Machine()
    found = [model.efficiency(n, 128 * n, machine) for n in model.COUNTS]
    assert found[0] == 1
    assert sorted(found, reverse=True) == found
    assert model.efficiency(1_024, 1_024 * 1_024, machine) > found[-1]
    assert model.speed_up(1, 128, machine) == 1
    assert model.speed_up(64, 64 * 128, machine) < 64


def test_the_page_has_the_tables_of_the_model():
    page = (ROOT / "docs" / "scaling.md").read_text()
    for line in model.markdown(model.Machine()):
        assert line in page


def test_the_model_from_the_command_line(capsys):
    assert model.main(["--tflops=1", "--fixed_us=1"]) == 0
    assert "| 1,024 | 4,460 |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        model.main(["--tflops=0"])
    assert end.value.code == 2
    assert "expected more than 0" in capsys.readouterr().err


def figures(platform, **steps):
    return {
        "platform": platform,
        "device_kind": platform,
        "devices": 2,
        "step": {key.replace("_", "/")[1:]: value for key, value in steps.items()},
        "all_reduce": {"1": 0.0, "2": 0.001},
    }


STEPS = {"d1_128": 0.05, "d2_128": 0.06, "d2_256": 0.12, "d1_64": 0.03}


@pytest.mark.parametrize(("platform", "predicted"), [("cpu", 0.061), ("gpu", 0.031)])
def test_devices_that_share_cores_take_turns(platform, predicted):
    rows = scaling.device_rows(figures(platform, **STEPS))
    assert [(row["count"], row["batch"]) for row in rows] == [(1, 128), (2, 128), (2, 256)]
    assert rows[1]["predicted"] == pytest.approx(predicted)
    assert rows[1]["ratio"] == pytest.approx(0.06 / predicted)
    assert rows[1]["speed_up"] == pytest.approx(5 / 6)
    assert rows[2]["speed_up"] == pytest.approx(5 / 6)


def test_rounds_of_processes_come_to_their_median():
    rounds = [
        {1: figures("gpu", **STEPS), 2: figures("gpu", d2_128=time, d2_256=1)}
        for time in (0.04, 0.05, 9)
    ]
    one, two, _ = scaling.process_rows(rounds)
    assert one["ratio"] == 1
    assert two["seconds"] == 0.05
    assert two["speed_up"] == 1


@pytest.mark.parametrize("devices", [1, 4, 16])
def test_what_is_measured_is_enough_to_predict(monkeypatch, devices):
    """Also where there are more GPUs than the devices that are forced onto a CPU."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    found = {f"{count}/{batch}": 1.0 for count, batch in scaling_case.cases(128, shares=2)}
    counts = list(scaling_case.counts())
    assert counts == [n for n in (1, 2, 4, 8, 16) if n <= devices]
    figures = {"platform": "gpu", "step": found, "all_reduce": {str(n): 0.0 for n in counts}}
    assert all(row["ratio"] == 1 for row in scaling.device_rows(figures))


def test_whole_calls_are_timed(monkeypatch):
    """Where 100 steps are one program, 2 that are asked for are 100."""
    now = itertools.count(step=1000)
    monkeypatch.setattr(scaling_case.time, "perf_counter", lambda: next(now))
    assert scaling_case.timed(lambda steps: 100, 2) == 10


@pytest.mark.slow
def test_it_measures_devices_and_processes(monkeypatch, tmp_path, capsys):
    tiny = {"BATCH": 16, "FORCED": 2, "BLOCKS": 2, "BLOCK_SECONDS": 0.01, "ROUNDS": 1}
    for name, value in tiny.items():
        monkeypatch.setattr(scaling, name, value)
    path = tmp_path / "figures.json"
    assert scaling.main(["--json", str(path)]) == 0
    found = json.loads(path.read_text())
    cases = [(1, 16), (2, 16), (2, 32)]
    for kind in ("devices", "processes"):
        assert [(row["count"], row["batch"]) for row in found[kind]] == cases
        assert all(row["seconds"] > 0 and row["predicted"] > 0 for row in found[kind])
    out = capsys.readouterr().out
    for words in ("Devices of one process", "Processes with one device each", "They share the"):
        assert words in out


COMPILED = """
from cifar_jax.devices import runtime
runtime.start()
from benchmarks import jax_cnn
fields = {"batch_size": 16, "data.synthetic.train": 16, "data.synthetic.test": 16}
print(jax_cnn.ProgramStep(jax_cnn.program_config(**fields)).as_text())
"""


@pytest.mark.slow
def test_a_step_sends_its_gradients_once_in_one_message():
    """What docs/scaling.md reckons with, as XLA compiled the step for eight devices."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    messages = re.findall(r"= (.*) all-reduce\(", done.stdout)
    sizes = [
        [
            math.prod(map(int, filter(None, shape.split(","))))
            for shape in re.findall(r"\[(.*?)\]", m)
        ]
        for m in messages
    ]
    # With the gradients travel loss and cross-entropy; apart from them, what the processes wish.
    assert sorted(map(sum, sizes)) == [1, model.GRADIENT_BYTES // 4 + 2]
