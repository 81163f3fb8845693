"""Pictures classified by a workdir alone: from Python, and from the command line."""

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax import train
from cifar_jax.data import splits
from cifar_jax.errors import UsageError, UserError
from cifar_jax.evaluate import Evaluator
from cifar_jax.predict import command as predict
from cifar_jax.predict import heat_map
from tests.conftest import NAMES, NUM_TEST, ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A workdir of two steps, and its config. The images are where the workdir does not say."""
    from cifar_jax import config as config_lib

    config = config_lib.recipe("default")
    config.update(batch_size=16, num_steps=2)
    config.data.dir = str(data_dir)
    config.summaries.update(scalars=0, images=0, histograms=0)
    workdir = tmp_path_factory.mktemp("run")
    train.train(config, workdir)
    path = workdir / "config.json"
    path.write_text(path.read_text().replace(str(data_dir), "/gone"))
    return workdir, config


@pytest.fixture(scope="module")
def predictor(run):
    return cifar_jax.load(run[0])


def images_of(config):
    return splits.load(config.data, "test", 0).images


@pytest.mark.parametrize("ema", [True, False])
def test_probabilities_are_those_of_the_evaluation(run, ema):
    workdir, config = run
    evaluator = Evaluator(config, workdir, ema=ema)
    expected = evaluator.predict(evaluator.restore(2))
    found = cifar_jax.load(workdir, ema=ema)(images_of(config))
    assert found.shape == (NUM_TEST, 10)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    top = np.take_along_axis(found, expected.classes, 1)
    np.testing.assert_allclose(top, expected.probabilities, rtol=1e-4)


def test_any_number_of_images_has_the_same_answers(predictor, run):
    images = images_of(run[1])
    whole = predictor(images)
    assert predictor(images[:0]).shape == (0, 10)
    for count in (1, 5):
        np.testing.assert_allclose(predictor(images[:count]), whole[:count], rtol=1e-4)
    many = predictor(np.concatenate([images] * 15))  # more than one batch of the largest size
    np.testing.assert_allclose(many, np.concatenate([whole] * 15), rtol=1e-4)


def test_threads_share_a_predictor(predictor, run):
    images = images_of(run[1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: predictor(images[i : i + 1]), range(20)))
    np.testing.assert_allclose(np.concatenate(found), predictor(images[:20]), rtol=1e-4)


@pytest.mark.parametrize("wrong", [np.zeros((1, 32, 32, 3)), np.zeros((1, 8, 8, 3), np.uint8)])
def test_other_images_are_refused(predictor, wrong):
    with pytest.raises(UsageError, match=r"expected uint8 \[N, 32, 32, 3\]"):
        predictor(wrong)


def test_a_picture_is_classified_as_its_pixels(predictor, run, tmp_path):
    image = images_of(run[1])[0]
    Image.fromarray(image).save(tmp_path / "a b.png")
    answers = predictor.classify(tmp_path / "a b.png")
    assert answers == predictor.classify((tmp_path / "a b.png").read_bytes())
    assert answers == predictor.ranked(predictor(image[None])[0])
    assert {name for name, _ in answers} == set(NAMES)
    assert [p for _, p in answers] == sorted((p for _, p in answers), reverse=True)
    with pytest.raises(UserError, match="No such file"):
        predictor.classify(tmp_path / "none.png")


def test_a_step_may_be_named(run):
    assert cifar_jax.load(run[0], step=2).step == 2
    with pytest.raises(UserError, match=r"Checkpoint 7 in .*: there is none"):
        cifar_jax.load(run[0], step=7)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine files of kinds of their own, of a picture that is not square, and what is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "below").mkdir()
    image.save(folder / "below" / "a.PNG")
    image.save(folder / "b [red].jpg", exif=exif)
    image.convert("CMYK").save(folder / "c.jpeg")
    image.save(folder / "d.webp")
    image.save(folder / "e.gif", save_all=True, append_images=[image.rotate(90)])
    image.save(folder / "f.tiff")
    image.convert("L").save(folder / "g.bmp")
    image.convert("RGBA").save(folder / "h.png")
    Image.fromarray(np.full((40, 60), 40_000, np.uint16)).save(folder / "i.png")
    (folder / ".hidden.png").write_text("not looked at")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def files_in(text):
    return [json.loads(line)["file"].rpartition("/")[2] for line in text.splitlines()]


def test_every_kind_of_picture_is_answered(run, pictures, capsys):
    predict.run(run[0], [str(pictures)], "json")
    out = capsys.readouterr().out
    kinds = ["b [red].jpg", *["c.jpeg", "d.webp", "e.gif", "f.tiff", "g.bmp", "h.png", "i.png"]]
    assert sorted(files_in(out)) == sorted(["a.PNG", *kinds])
    for line in out.splitlines():
        classes = json.loads(line)["classes"]
        assert sum(each["probability"] for each in classes) == pytest.approx(1, abs=1e-5)
        assert {each["name"] for each in classes} == set(NAMES)
    predict.run(run[0], [str(pictures / "*.png"), str(pictures / "f.tiff")], "csv")
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading == "file,class1,p1,class2,p2,class3,p3"
    assert [row.split(",")[0].rpartition("/")[2] for row in rows] == ["h.png", "i.png", "f.tiff"]
    predict.run(run[0], [str(pictures / "b [red].jpg")], "table")
    line = capsys.readouterr().out
    assert "/b [red].jpg  " in line
    assert line.count("%") == 3


def test_the_command_answers_what_it_can_and_names_the_others(run, pictures, tmp_path):
    whole = (pictures / "b [red].jpg").read_bytes()
    (tmp_path / "html.jpg").write_text("<html>")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "fine.jpg").write_bytes(whole)
    command = [sys.executable, "main.py", "--mode=predict", f"--workdir={run[0]}", "--json"]
    done = subprocess.run(
        [*command, str(tmp_path), "none.png", "-"],
        cwd=ROOT,
        input=(pictures / "h.png").read_bytes(),
        capture_output=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 1
    assert files_in(done.stdout.decode()) == ["fine.jpg", "-"]
    *lines, last = done.stderr.decode().splitlines()
    assert last == "4 of 6 pictures could not be read."
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines] == [
        *("cut.jpg", "empty.png", "html.jpg", "none.png")
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "No picture is named"),
        (["https://example.org/cat.jpg"], "is a URL"),
        (["*.nothing"], "matches no file"),
        (["cifar_jax"], "holds no pictures"),
    ],
)
def test_arguments_that_cannot_work_are_refused(run, arguments, problem):
    with pytest.raises(UsageError, match=problem):
        predict.run(run[0], arguments, "table")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing was trained there"):
        cifar_jax.load(tmp_path)


def test_a_picture_too_large_is_refused_before_it_is_decoded(predictor):
    data = io.BytesIO()
    Image.new("1", (1 << 14, 1 << 13)).save(data, "PNG")
    with pytest.raises(UserError, match="expected at most 67,108,864"):
        predictor.classify(data.getvalue())


@pytest.mark.parametrize("shape", [(24, 24, 3), (17, 40, 1), (3, 5, 3)])
def test_the_heat_map_is_warm_where_the_class_is_decided(shape):
    """Of a class that is as probable as the upper left quarter is bright."""
    rows, columns = shape[0] // 2, shape[1] // 2

    def predict_(images):
        mean = images[:, :rows, :columns].mean((1, 2, 3))
        return np.stack([0.5 + mean / 4, 0.5 - mean / 4], -1)

    heat = heat_map.occlusion(predict_, np.ones(shape, np.float32))
    assert heat.shape == shape[:2]
    assert heat[:rows, :columns].min() > 0
    assert heat.max() == heat[:rows, :columns].max()
    assert np.abs(heat[-1]).max() == 0
    other = heat_map.occlusion(lambda x: predict_(-x), -np.ones(shape, np.float32))
    np.testing.assert_allclose(other, heat, atol=1e-6)
    cold = heat_map.occlusion(lambda x: predict_(1 - x), np.full(shape, 0.5, np.float32))
    assert cold.min() < 0 <= cold.max() + 1e-6


def test_squares_cover_every_pixel():
    for shape in [(24, 24), (32, 20), (1, 1), (2, 7), (5, 4)]:
        seen = np.zeros(shape, int)
        for square in heat_map._squares(*shape):
            seen[square] += 1
        assert seen.min() >= 1
    assert len(heat_map._squares(24, 24)) == 49  # one batch of 64 with the image itself


def test_what_the_network_saw_is_drawn(run, pictures, tmp_path, capsys):
    one, other = str(pictures / "h.png"), str(pictures / "below" / "a.PNG")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "h.png").write_bytes((pictures / "h.png").read_bytes())
    (tmp_path / "bad.png").write_text("no picture")
    arguments = [one, other, str(tmp_path / "more"), str(tmp_path / "bad.png")]
    with pytest.raises(UserError, match="1 of 4"):
        predict.run(run[0], arguments, "table", show=str(tmp_path / "new" / "shown"))
    assert len(capsys.readouterr().out.splitlines()) == 3
    drawn = {path.name for path in (tmp_path / "new" / "shown").iterdir()}
    assert drawn == {"h.png.seen.png", "a.PNG.seen.png", "h.png.2.seen.png"}
    width, height = Image.open(tmp_path / "new" / "shown" / "h.png.seen.png").size
    assert (width, height) == (2 * (8 * 24 + 8), 8 * 24 + 3 * 13 + 8)


def test_a_folder_that_cannot_be_drawn_in_is_named(run, pictures, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write to .*file"):
        predict.run(run[0], [str(pictures / "h.png")], "table", show=str(tmp_path / "file"))
