"""A network in one file: the scripts of docs/export.md run it without this package."""

import io
import json
import re
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax import config as config_lib
from cifar_jax import models, train
from cifar_jax.errors import UsageError, UserError
from cifar_jax.predict import export, onnx_weights
from cifar_jax.predict.predictor import restore
from tests.conftest import NAMES, ROOT

PAGE = (ROOT / "docs" / "export.md").read_text()
STABLEHLO, ONNX, SAFETENSORS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    config = config_lib.recipe("default")
    config.update(batch_size=16, num_steps=2)
    config.data.dir = str(data_dir)
    config.summaries.update(scalars=0, images=0, histograms=0)
    workdir = tmp_path_factory.mktemp("run")
    train.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """256 of them in an array, and a few as files."""
    images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(images[:3]):
        Image.fromarray(image).save(folder / f"{number}.png")
    return images, sorted(map(str, folder.iterdir()))


def run_script(script, tmp_path, *arguments):
    """Its lines. The folder of the run has nothing of this project."""
    (tmp_path / "script.py").write_text("import sys\nsys.modules['cifar_jax'] = None\n" + script)
    command = [sys.executable, "script.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_answers(lines, workdir, files):
    predictor = cifar_jax.load(workdir)
    for line, name in zip(lines, files, strict=True):
        (best, probability), *_ = predictor.classify(name)
        assert line.split(" ")[:2] == [name, best]
        assert float(line.split(" ")[2]) == pytest.approx(probability, abs=1e-5)


def test_stablehlo_gives_the_same_probabilities(workdir, pictures, tmp_path, capsys):
    path = export.run(workdir, tmp_path / "model.stablehlo")
    assert re.fullmatch(r".*model.stablehlo: \d\.\d MB, 'cnn' of step 2\n", capsys.readouterr().out)
    images, files = pictures
    with zipfile.ZipFile(path) as file:
        network = jax.export.deserialize(bytearray(file.read("program")))
        facts = json.loads(file.read("metadata.json"))
    assert set(network.platforms) == {"cpu", "cuda", "tpu"}
    expected = cifar_jax.load(workdir)(images)
    np.testing.assert_allclose(network.call(images), expected, atol=1e-5)
    np.testing.assert_allclose(network.call(images[:1]), expected[:1], atol=1e-5)
    assert facts["class_names"] == list(NAMES)
    assert (facts["image_shape"], facts["step"], facts["parameters"]) == ([32, 32, 3], 2, "ema")
    check_answers(run_script(STABLEHLO, tmp_path, path, *files), workdir, files)


def test_the_raw_parameters_may_be_asked_for(workdir, pictures, tmp_path):
    path = export.run(workdir, tmp_path / "model.stablehlo", ema=False)
    with zipfile.ZipFile(path) as file:
        network = jax.export.deserialize(bytearray(file.read("program")))
    images = pictures[0][:5]
    expected = cifar_jax.load(workdir, ema=False)(images)
    np.testing.assert_allclose(network.call(images), expected, atol=1e-5)


def test_safetensors_has_the_arrays(workdir, tmp_path):
    pytest.importorskip("safetensors")
    path = export.run(workdir, tmp_path / "model.safetensors")
    first, *lines = run_script(SAFETENSORS, tmp_path, path)
    assert first == f"cnn 2 {list(NAMES)}"
    assert "params/conv1/kernel (5, 5, 3, 64)" in lines
    from safetensors.numpy import load_file

    kernel = restore(workdir).variables["params"]["local3"]["kernel"]
    np.testing.assert_array_equal(load_file(path)["params/local3/kernel"], kernel)


@pytest.mark.slow
def test_onnx_gives_the_same_probabilities(workdir, pictures, tmp_path, capfd):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export.run(workdir, tmp_path / "model.onnx")
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) == 1
    assert not shown.err
    images, files = pictures
    network = onnxruntime.InferenceSession(path)
    (argument,) = network.get_inputs()
    assert (argument.type, argument.shape[1:]) == ("tensor(uint8)", [32, 32, 3])
    (found,) = network.run(None, {argument.name: images})
    np.testing.assert_allclose(found, cifar_jax.load(workdir)(images), atol=1e-5)
    check_answers(run_script(ONNX, tmp_path, path, *files), workdir, files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "share", "tolerance"), [("float16", 0.51, 1e-4), ("int8", 0.26, 1e-2)]
)
def test_onnx_may_store_its_weights_in_fewer_bits(
    workdir, pictures, tmp_path, kind, share, tolerance
):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export.run(workdir, tmp_path / "model.onnx", weights=kind)
    assert path.stat().st_size < share * 4 * 1_068_298 + 60_000
    network = onnxruntime.InferenceSession(path)
    images = pictures[0][:64]
    (found,) = network.run(None, {network.get_inputs()[0].name: images})
    difference = np.abs(found - cifar_jax.load(workdir)(images)).max()
    assert 0 < difference < tolerance
    assert json.loads(network.get_modelmeta().custom_metadata_map["weights"]) == kind


def test_int8_rounds_each_output_channel_by_its_largest_value():
    kernel = np.zeros((3, 4), np.float32)
    kernel[:, 1], kernel[:, 2] = (1.0, -0.5, 0.25), 100
    arrays, node = onnx_weights._int8(kernel, "kernel")
    np.testing.assert_array_equal(
        arrays["kernel_int8"][:, :3].T, [[0] * 3, [127, -64, 32], [127] * 3]
    )
    np.testing.assert_allclose(arrays["kernel_scale"][:3], [1, 1 / 127, 100 / 127])
    assert list(node.input) == ["kernel_int8", "kernel_scale"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "airbench94", "local", "fast"])
@pytest.mark.parametrize("suffix", [".stablehlo", ".onnx"])
def test_every_network_is_exported(name, suffix, pictures):
    """With random parameters, as they begin."""
    from cifar_jax import inputs, steps
    from cifar_jax.data.dataset import Description
    from cifar_jax.predict.predictor import Trained

    config = config_lib.recipe(name)
    dataset = Description("drawn", NAMES, (32, 32, 3), {}, (120.0,) * 3, (60.0,) * 3)
    model = steps.make_model(config, 10)
    made = inputs.make(config.inputs, (32, 32, 3), dataset.mean, dataset.std)
    variables = models.init(model, jax.random.key(0), made.image_shape)
    trained = Trained(config, dataset, 0, model, made, jax.device_get(variables))
    images = pictures[0][:4]
    expected = jax.jit(
        lambda x: jax.nn.softmax(steps.predict(model, variables, made.evaluate(x)[0]))
    )(images)
    if suffix == ".onnx":
        pytest.importorskip("jax2onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
    content = export.FORMATS[suffix](trained, export.metadata(trained, True))
    if suffix == ".onnx":
        network = onnxruntime.InferenceSession(content)
        (found,) = network.run(None, {network.get_inputs()[0].name: images})
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            found = jax.export.deserialize(bytearray(file.read("program"))).call(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_cannot_be_written_is_said(workdir, tmp_path):
    with pytest.raises(UsageError, match=r"ends in .stablehlo, .onnx, .safetensors"):
        export.run(workdir, tmp_path / "model.h5")
    with pytest.raises(UsageError, match="--weights=int8 is for ONNX"):
        export.run(workdir, tmp_path / "model.stablehlo", weights="int8")
    with pytest.raises(UserError, match="there is no folder"):
        export.run(workdir, tmp_path / "none" / "model.onnx")
    (tmp_path / "folder.stablehlo").mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*folder.stablehlo"):
        export.run(workdir, tmp_path / "folder.stablehlo")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.stablehlo"]


@pytest.mark.parametrize(
    ("suffix", "package"), [("onnx", "jax2onnx"), ("safetensors", "safetensors")]
)
def test_a_missing_package_is_named(workdir, tmp_path, monkeypatch, suffix, package):
    for name in (package, f"{package}.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"{package}.* is not installed"):
        export.run(workdir, tmp_path / f"model.{suffix}")
