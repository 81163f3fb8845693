"""The comparison agrees on what it times and reports what it timed; nothing here takes a time."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks import airbench_task, compare, jax_cnn, report, task, worker
from benchmarks.report import Case
from benchmarks.whole_program import WholeProgram
from benchmarks.worker import KINDS, OURS, OURS_HALF, Block, Speed
from cifar_jax import config as config_lib
from cifar_jax.ops import native
from cifar_jax.optim import paths

BATCH = 4


@pytest.fixture(scope="module")
def weights():
    return task.make_weights()


@pytest.fixture(scope="module")
def batches():
    return task.make_batches(BATCH)


def cnn(weights, batches, dtype="float32"):
    config = config_lib.recipe("default")
    config.dtype = dtype
    return jax_cnn.JaxContender(config, weights, batches, steps_per_epoch=390)


@pytest.fixture(scope="module")
def contender(weights, batches):
    return cnn(weights, batches)


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
    lines = task.disagreements(cnn(other, batches).outcome(), expected)
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


@pytest.mark.skipif(not native.usable("bfloat16"), reason=native.reason("bfloat16") or "")
def test_bfloat16_computes_the_same_to_its_precision(weights, batches, expected):
    found = cnn(weights, batches, "bfloat16").outcome()
    assert task.disagreements(found, expected, half=True) == []
    assert task.disagreements(found, expected) != []


def test_torch_in_bfloat16(weights, batches, expected):
    pytest.importorskip("torch")
    from benchmarks import torch_cnn

    found = torch_cnn.TorchCNN("bf16", weights, batches).outcome()
    assert task.disagreements(found, expected, half=True) == []
    assert task.disagreements(found, expected) != []


def test_torch_computes_the_same_step_of_airbench():
    pytest.importorskip("torch")
    from benchmarks import torch_airbench

    ours = jax_cnn.make("airbench float32", BATCH).outcome()
    other = torch_airbench.make("float32", BATCH)
    other.train(1)
    other.evaluate(1)
    assert task.disagreements(other.outcome(), ours) == []
    half = torch_airbench.make("bfloat16", BATCH).outcome()
    assert task.disagreements(half, ours, half=True) == []


def test_the_weights_of_airbench_are_those_of_its_network():
    config = config_lib.recipe("airbench94")
    model = jax_cnn.steps.make_model(config, task.NUM_CLASSES)
    made = jax_cnn.models.init(model, jax_cnn.jax.random.key(0), (32, 32, 3))
    expected = {path: x.shape for path, x in paths.flatten(made["params"]).items()}
    assert {path: x.shape for path, x in airbench_task.make_weights().items()} == expected


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


def case(phase, batch_size, name, task="cnn"):
    return Case(task, phase, batch_size, name)


SPEEDS = {
    case("train", 128, OURS): [quiet(200, 100, 400), quiet(600, 600, 600)],
    case("train", 128, OURS_HALF): [quiet(500, 500, 500), quiet(700, 700, 700)],
    case("train", 128, "torch_stock"): [quiet(100, 50, 100), quiet(150, 150, 150)],
    case("train", 128, "torch_bf16"): [quiet(250, 250, 250), quiet(700, 700, 700)],
    case("train", 128, "tf_fast"): [quiet(400, 200, 800), quiet(400, 400, 400)],
    case("evaluate", 128, OURS): [quiet(900, 900, 900)] * 2,
    case("evaluate", 128, "torch_stock"): [quiet(300, 300, 300)] * 2,
    case("train", 512, OURS): [quiet(300, 300, 300)] * 2,
    case("train", 512, "tf_fast"): [quiet(200, 200, 200)] * 2,
    case("train", 2_000, OURS, "airbench"): [quiet(30, 30, 30)] * 2,
    case("train", 2_000, "torch", "airbench"): [quiet(20, 20, 20)] * 2,
}


def test_ratios_are_medians_over_starts_and_above_one_where_this_project_is_faster():
    assert {name: found.median for name, found in report.ratios(SPEEDS).items()} == {
        "train/torch_stock": 3.0,  # of 2 (of 2, 2 and 4) and 4
        "train/torch_bf16": 1.5,  # of 2 and 1, in bfloat16 both
        "train/tf_fast": 1.0,  # of 0.5 and 1.5
        "train/best": 1.5,  # bfloat16 / torch_bf16, whose median is 475
        "eval/torch_stock": 3.0,
        "eval/best": 3.0,
        "train/tf_fast@512": 1.5,
        "train/best@512": 1.5,
        "airbench/torch": 1.5,
        "airbench/torch_best": 1.5,
    }


def test_a_ratio_is_taken_within_each_round_and_then_over_the_starts():
    spread = report.ratio([quiet(100, 10, 10)], [quiet(50, 50, 5)])
    assert spread.median == 2.0  # of 2, 0.2 and 2; the medians are 10 and 50
    assert report.ratio([quiet(1), quiet(2), quiet(9)], [quiet(1)] * 3) == (1.0, 2.0, 9.0)


def test_disturbed_rounds_do_not_count_while_enough_are_quiet():
    ours = [[*quiet(200, 200, 200), Speed(1, False)]]
    assert report.ratio(ours, [quiet(100, 100, 100, 100)]) == (2.0, 2.0, 2.0)
    assert report.images_per_second(ours).median == 200
    disturbed = [[Speed(200, False)] * 4]
    assert report.ratio(disturbed, [quiet(100, 100, 100, 100)]).median == 2.0


def test_json_and_table():
    program = WholeProgram(program=[Block(10.0, 0.0)] * 2, bare=[Block(9.0, 0.0), Block(9.0, 0.5)])
    slower = program._replace(program=[Block(20.0, 0.0)] * 2)
    found = json.loads(json.dumps(report.as_json(SPEEDS, [program, slower, program])))
    assert found["images_per_second"]["train/cifar_jax"] == 400
    assert found["images_per_second"]["train/tf_fast@512"] == 200
    assert found["images_per_second"]["whole_program"] == 1280
    assert found["images_per_second_range"]["train/torch_stock"] == [100, 150]
    assert found["ratios"]["train/torch_stock"] == 3.0
    assert found["ratios_range"]["train/torch_stock"] == [2.0, 4.0]
    assert found["ratios"]["whole_program"] == pytest.approx(0.9)
    assert found["ratios_range"]["whole_program"] == pytest.approx([0.45, 0.9])
    assert found["starts"] == 2
    assert found["versions"].keys() >= {"python", "jax", "numpy"}
    assert found["machine"]["cores"] > 0
    assert "whole_program" not in report.as_json(SPEEDS)["ratios"]

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(SPEEDS))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["train/tf_fast", "400", "400–400", "1.00", "0.50–1.50", "6/6"] in lines
    assert ["airbench/torch_best", "1.50", "1.50–1.50"] in lines
    assert "0.900 (slices: 0.900–0.900, 1 of 2 quiet)" in report.program_line(program)


def test_what_is_not_installed_is_skipped_in_one_line(monkeypatch):
    said = []
    monkeypatch.setattr(compare, "native_reason", lambda: "there is no compiler")
    names = compare.present(KINDS, lambda package: package != "tensorflow", said.append)
    assert names == [OURS, "torch_stock", "torch_fast", "torch_bf16"]
    assert said == [
        f"Skipped: {OURS_HALF}: there is no compiler.",
        "Skipped: tf_native, tf_fast. tensorflow is not installed; "
        "to compare with it: pip install '.[bench]'",
    ]


def test_this_project_is_asked_why_it_has_no_bfloat16():
    assert compare.native_reason() == native.reason("bfloat16")
