"""The GPU's benchmark where there is none: what it says, what it tells, one real measurement."""

import json

import jax
import pytest

from benchmarks import gpu, gpu_case, jax_cnn
from cifar_jax import models, steps

SPEED = {"train_images_per_second": 1e6, "eval_images_per_second": 3e6, "peak_bytes": 2**28}


def fake_ask(measurement, **options):
    if measurement == "device":
        return {"platform": "gpu", "name": "NVIDIA Test", "devices": 1}
    if measurement == "matmul":
        return {"tflops": 500.0 if options["dtype"] == "bfloat16" else 50.0}
    if options["batch"] == 8_192 and options["dtype"] == "float32":
        raise gpu.Failed("RESOURCE_EXHAUSTED: Out of memory")
    return SPEED


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "ask", fake_ask)
    run = gpu.Run(seconds=40.0, after_compilation=25.0, precision_at_1=0.861)

    def whole_run(config, data):
        if config == "fast":
            raise gpu.Failed("Cannot download")
        return run

    monkeypatch.setattr(gpu, "whole_run", whole_run)


def test_without_a_gpu_it_says_so_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "ask", lambda _: {"platform": "cpu"})
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "No GPU: JAX runs on cpu here. Nothing was measured.\n"


def test_what_fails_is_told_and_the_rest_is_written(on_a_gpu, tmp_path, capsys):
    assert gpu.main(["--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["device"]["name"] == "NVIDIA Test"
    assert len(figures["speed"]) == 9
    assert "Out of memory" in figures["speed"]["float32, highest/8192"]["error"]
    share = figures["speed"]["bfloat16/1024"]["matmul_share"]
    assert share == pytest.approx(1e6 * gpu.training_flops() / 500e12)
    assert figures["steps_per_call"] == {"1": 1e6, "10": 1e6, "100": 1e6}
    assert figures["runs"]["tutorial"]["after_compilation"] == 25.0
    assert list(figures["runs"]) == ["tutorial"]
    out = capsys.readouterr().out
    assert "NVIDIA Test, {'python'" in out
    assert "Left out: Cannot download" in out
    assert "1,000,000" in out
    assert "0.861" in out


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
    assert 0 < run.after_compilation < run.seconds
    assert 0 <= run.precision_at_1 <= 1


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    with pytest.raises(gpu.Failed, match="no such dtype|float33"):
        gpu.ask("matmul", dtype="float33", precision=None)
