"""The comparison agrees on what it times and reports what it timed; nothing here takes a time."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks import compare, jax_cnn, report, task, worker
from benchmarks.report import Case
from benchmarks.whole_program import WholeProgram
from benchmarks.worker import OURS, Block, Speed

BATCH = 4


@pytest.fixture(scope="module")
def weights():
    return task.make_weights()


@pytest.fixture(scope="module")
def batches():
    return task.make_batches(BATCH)


@pytest.fixture(scope="module")
def contender(weights, batches):
    return jax_cnn.JaxCNN(weights, batches)


@pytest.fixture(scope="module")
def expected(contender):
    return contender.outcome()


def test_an_outcome_agrees_with_itself_after_training(contender, expected, weights):
    contender.train(3)
    contender.evaluate(2)
    assert task.disagreements(contender.outcome(), expected) == []
    assert expected["logits"].shape == (BATCH, 10)
    assert (expected["classes"] == expected["logits"].argmax(-1)).all()
    squares = sum(np.square(weights[layer]["kernel"]).sum() for layer in ("local3", "local4"))
    first_loss = np.log(10) + 0.004 * 0.5 * squares
    assert float(expected["loss"]) == pytest.approx(first_loss, abs=0.1)


def test_the_step_that_is_timed_follows_the_gradient(weights, expected):
    kernel, change = weights["local3"]["kernel"], task.RATE * expected["gradient/local3/kernel"]
    assert task.relative_rms(expected["updated/local3/kernel"], kernel - change) < 1e-6
    assert task.relative_rms(expected["updated/local3/kernel"], kernel) > task.TOLERANCE


def test_another_weight_is_caught(weights, batches, expected):
    other = {layer: dict(arrays) for layer, arrays in weights.items()}
    other["conv2"]["kernel"] = other["conv2"]["kernel"] * 1.01
    lines = task.disagreements(jax_cnn.JaxCNN(other, batches).outcome(), expected)
    assert any(line.startswith("logits: relative RMS error") for line in lines)
    assert any(line.startswith("gradient/conv1/kernel") for line in lines)


@pytest.mark.parametrize("change", ["lacks", "shape", "nan"])
def test_an_array_that_cannot_be_compared_disagrees(expected, change):
    found = dict(expected)
    if change == "lacks":
        del found["logits"]
    else:
        found["logits"] = {"shape": found["logits"][:1], "nan": found["logits"] * np.nan}[change]
    assert [line.partition(":")[0] for line in task.disagreements(found, expected)] == ["logits"]


@pytest.mark.parametrize("variant", ["stock", "fast"])
def test_torch_computes_the_same(variant, weights, batches, expected):
    pytest.importorskip("torch")
    from benchmarks import torch_cnn

    check_other(torch_cnn.TorchCNN(variant, weights, batches), weights, expected)


@pytest.mark.parametrize("variant", ["native", "fast"])
def test_tensorflow_computes_the_same(variant, weights, batches, expected):
    pytest.importorskip("tensorflow")
    from benchmarks import tensorflow_cnn

    check_other(tensorflow_cnn.TensorFlowCNN(variant, weights, batches), weights, expected)


def check_other(other, weights, expected):
    other.train(2)
    other.evaluate(1)
    assert task.disagreements(other.outcome(), expected) == []
    # A ten-thousandth of the way, which float32 can tell where a bias began at 0.
    average, new = other.ema()["conv1"]["bias"], expected["updated/conv1/bias"]
    assert task.relative_rms(average, (1 - task.EMA_DECAY) * new) < 1e-3
    kernels = other.ema()["local3"]["kernel"], weights["local3"]["kernel"]
    assert 0 < task.relative_rms(*kernels) < 1e-6


@pytest.mark.slow
def test_workers_answer_and_the_check_refuses(monkeypatch):
    with worker.Worker(OURS, BATCH) as ours, worker.Worker(OURS, BATCH) as theirs:
        theirs.name = "torch_fast"
        assert compare.check([ours, theirs]) == []
        monkeypatch.setattr(task, "TOLERANCE", -1.0)
        assert compare.check([ours, theirs])[-1].startswith("torch_fast: updated/")
        block = ours.block("train", 2)
        assert block.seconds > 0 and block.others >= 0


def test_a_worker_that_dies_says_why():
    with (
        worker.Worker(OURS, 0) as broken,
        pytest.raises(worker.WorkerError, match="cifar_jax ended at 'train 1'"),
    ):
        broken.block("train", 1)


def quiet(*images_per_second):
    return [Speed(value, True) for value in images_per_second]


SPEEDS = {
    Case("train", 128, OURS): quiet(200, 100, 400),
    Case("train", 128, "torch_stock"): quiet(100, 50, 100),
    Case("train", 128, "tf_fast"): quiet(400, 200, 800),
    Case("evaluate", 128, OURS): quiet(900, 900, 900),
    Case("evaluate", 128, "torch_stock"): quiet(300, 300, 300),
    Case("evaluate", 128, "tf_fast"): quiet(600, 600, 600),
    Case("train", 512, OURS): quiet(300, 300, 300),
    Case("train", 512, "tf_fast"): quiet(200, 200, 200),
}


def test_ratios_are_medians_of_rounds_and_above_one_where_this_project_is_faster():
    assert report.ratios(SPEEDS) == {
        "train/torch_stock": 2.0,  # of 2, 2 and 4
        "train/tf_fast": 0.5,
        "eval/torch_stock": 3.0,
        "eval/tf_fast": 1.5,
        "train/tf_fast@512": 1.5,
        "eval/best": 1.5,
    }


def test_a_ratio_is_taken_within_each_round():
    spread = report.ratio(quiet(100, 10, 10), quiet(50, 50, 5))
    assert spread.median == 2.0  # of 2, 0.2 and 2; the medians are 10 and 50


def test_disturbed_rounds_do_not_count_while_enough_are_quiet():
    ours = [*quiet(200, 200, 200), Speed(1, False)]
    assert report.ratio(ours, quiet(100, 100, 100, 100)) == (2.0, 2.0, 2.0)
    assert report.images_per_second(ours).lower == 200
    disturbed = [Speed(200, False)] * 4
    assert report.ratio(disturbed, quiet(100, 100, 100, 100)).median == 2.0


def test_json_and_table():
    program = WholeProgram(program=[Block(10.0, 0.0)] * 2, bare=[Block(9.0, 0.0), Block(9.0, 0.5)])
    found = json.loads(json.dumps(report.as_json(SPEEDS, program)))
    assert found["images_per_second"]["train/cifar_jax"] == 200
    assert found["images_per_second"]["train/tf_fast@512"] == 200
    assert found["images_per_second"]["whole_program"] == 1280
    assert found["quartiles"]["eval/tf_fast"] == [600, 600]
    assert found["ratios"]["train/torch_stock"] == 2.0
    assert found["ratios"]["whole_program"] == pytest.approx(0.9)
    assert found["versions"].keys() >= {"python", "jax", "numpy"}
    assert found["machine"]["cores"] > 0
    assert "whole_program" not in report.as_json(SPEEDS, None)["ratios"]

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(SPEEDS))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["train/tf_fast", "400", "300–600", "0.50", "0.50–0.50", "3/3"] in lines
    assert "0.900 (slices: 0.900–0.900, 1 of 2 quiet)" in report.program_line(program)


def test_what_is_not_installed_is_skipped_in_one_line():
    said = []
    names = compare.present(worker.KINDS, lambda name: not name.startswith("tf_"), said.append)
    assert names == [OURS, "torch_stock", "torch_fast"]
    assert said == [
        "Skipped: tf_native, tf_fast. tensorflow is not installed; "
        "to compare with it: pip install '.[bench]'"
    ]
