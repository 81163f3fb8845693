"""The GPU's benchmark where there is none: what it says, what it tells, one real measurement."""

import json
from functools import partial

import jax
import pytest

from benchmarks import gpu, gpu_case, jax_cnn, published_airbench, whole_training
from cifar_jax import models, steps
from cifar_jax.models.airbench import Airbench

SPEED = {"train_images_per_second": 1e6, "eval_images_per_second": 3e6, "peak_bytes": 2**28}

RUN = {"seconds": 40.0, "after_compilation": 25.0, "precision_at_1": 0.861}
TRAINING = {"seconds": 2.0, "accuracy": 0.94, "single_view": 0.93}


def fake_ask(measurement, **options):
    if measurement == "device":
        return {"platform": "gpu", "name": "NVIDIA Test", "devices": 1}
    if measurement == "matmul":
        return {"tflops": 500.0 if options["dtype"] == "bfloat16" else 50.0}
    if measurement in ("trainings", "published"):
        return {"trainings": [TRAINING | {"accuracy": value} for value in (0.93, 0.95)]}
    if measurement == "members":
        return {"all_images_per_second": 9e6, "ratio": 21.5}
    if options["batch"] == 8_192 and options["dtype"] == "float32":
        raise gpu.Failed("RESOURCE_EXHAUSTED: Out of memory")
    return SPEED


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "ask", fake_ask)

    def whole_run(config, data, *flags):
        if config == "fast":
            raise gpu.Failed("Cannot download")
        return RUN

    monkeypatch.setattr(gpu, "whole_run", whole_run)


def test_without_a_gpu_it_says_so_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "ask", lambda _: {"platform": "cpu"})
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "No GPU: JAX runs on cpu here. Nothing was measured.\n"


def test_what_fails_is_told_and_the_rest_is_written(on_a_gpu, tmp_path, capsys):
    assert gpu.main(["--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["device"]["name"] == "NVIDIA Test"
    assert len(figures["speed"]) == 7
    assert list(figures["steps_per_call"]) == ["1", "10", "100"]
    assert figures["runs"]["tutorial"]["after_compilation"] == 25.0
    assert "fast" not in figures["runs"]
    out = capsys.readouterr().out
    assert list(figures["members"]) == ["16 networks", "64 networks"]
    share = 1e6 * gpu.training_flops() / 500e12
    for text in (
        "21.5",
        "speed: float32, highest/8192 left out: RESOURCE_EXHAUSTED: Out of memory",
        "runs: fast left out: Cannot download",
        "NVIDIA Test, {'python'",
        "1,000,000",
        f"{share:.1%}",
        "0.861",
        "0.9400",  # the mean of the trainings' accuracies
        "0.0100",  # and its standard error
    ):
        assert text in out


def test_parts_are_measured_in_the_order_asked_for(on_a_gpu, tmp_path, capsys):
    script = tmp_path / "airbench94_muon.py"
    gpu.main(["--parts", "published", "trainings", "--airbench", str(script)])
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ":" in line]
    assert lines[:3] == ["published", "trainings", "trainings"]


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--json", str(tmp_path / "nowhere" / "figures.json")])
    assert "there is no folder" in capsys.readouterr().err


def test_the_flops_are_the_kernels(config):
    """Every entry of a kernel takes part in a product at each place it is put to."""
    model = steps.make_model(config, 10)
    variables = jax.eval_shape(lambda: models.init(model, jax.random.key(0), (24, 24, 3)))
    places = {"conv1": 24 * 24, "conv2": 12 * 12}
    forward = {
        layer: 2 * weights["kernel"].size * places.get(layer, 1)
        for layer, weights in variables["params"].items()
    }
    assert gpu.training_flops() == 3 * sum(forward.values()) - forward["conv1"]


@pytest.mark.slow
def test_one_measurement_for_real(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR_JAX_DATA", str(tmp_path))
    monkeypatch.setattr(gpu_case, "BLOCK_SECONDS", 1e-3)
    before = jax.config.jax_default_matmul_precision
    try:
        found = gpu_case.speed("float32", "highest", 16, steps_per_call=2, num_images=40)
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert found["train_images_per_second"] > 0
    assert found["eval_images_per_second"] > 0


def test_a_matrix_product_for_real(monkeypatch):
    monkeypatch.setattr(gpu_case, "BLOCK_SECONDS", 1e-3)
    assert gpu_case.matmul("float32", "highest", size=64)["tflops"] > 0


@pytest.mark.slow
def test_the_bare_step_takes_whole_calls(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR_JAX_DATA", str(tmp_path))
    fields = {"batch_size": 16, "steps_per_call": 2, "data.synthetic.train": 40}
    program = jax_cnn.ProgramStep(jax_cnn.program_config(**fields))
    program.train(3)
    assert int(program._state.step) == 4


@pytest.mark.slow
def test_a_whole_run_for_real(data_dir):
    flags = ["--config.num_steps=3", "--config.batch_size=16", "--config.eval.batch_size=16"]
    run = gpu.whole_run("default", data_dir, *flags)
    assert 0 < run["after_compilation"] < run["seconds"]
    assert 0 <= run["precision_at_1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["default", "airbench96"])
def test_whole_trainings_for_real(recipe, data_dir, monkeypatch):
    monkeypatch.setattr(whole_training, "EVAL_BATCH", 40)
    for name in ("airbench96", "airbench_small"):
        monkeypatch.setitem(models._MODELS, name, partial(Airbench, widths=(4, 4, 4), depth=3))
    fields = {"batch_size": 16, "num_steps": 2, "eval.views": 2}
    first, second = whole_training.measure(recipe, str(data_dir), 2, **fields)
    assert first.accuracy != second.accuracy or first.single_view != second.single_view
    assert 0 < first.training < first.seconds
    assert 0 <= first.single_view <= 1


def test_the_published_script_is_changed_in_two_places_alone(tmp_path, monkeypatch):
    """A stand-in that prints what the script prints."""
    row = "|        |  eval  |     0.9000  |   0.8950  |       {accuracy}  |        2.6000  |"
    script = tmp_path / "script.py"
    script.write_text(
        "def compile(mode): assert mode == 'default'\n"
        'compile(mode="max-autotune")\n'
        f"for run in range(200): print('{row}'.format(accuracy=0.9 + run / 100))\n"
    )
    monkeypatch.setattr(published_airbench, "_write_images", lambda folder, data: None)
    found = published_airbench.measure(str(script), None, 3, "default")
    assert [each["accuracy"] for each in found] == [0.91, 0.92]  # the first is a warm-up
    assert {each["seconds"] for each in found} == {2.6}
    script.write_text("print('another')")
    with pytest.raises(ValueError, match="not the script as it was published"):
        published_airbench.measure(str(script), None, 3, "default")


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    with pytest.raises(gpu.Failed, match="no such dtype|float33"):
        gpu.ask("matmul", dtype="float33", precision=None)
