"""A wheel, built from an sdist and installed elsewhere: its command runs from any folder, with the
recipes within."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest
from PIL import Image

from tests.conftest import ROOT

DATA = {
    "cifar_jax/py.typed",
    "cifar_jax/data/page.html.j2",
    "cifar_jax/demo/page.html.j2",
    "cifar_jax/demo/classifier.mjs",
    "cifar_jax/report/page.html.j2",
}
BESIDE = ("MANIFEST.in", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the sdist and the wheel of a clean copy, without what a build left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("cifar_jax", "configs", "tests", "benchmarks", "notebooks", *BESIDE):
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    subprocess.run(command, check=True, capture_output=True)  # the wheel from the sdist
    return folder


@pytest.fixture(scope="module")
def wheel(folder):
    (found,) = folder.glob("*.whl")
    return found


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_an_sdist_has_what_the_wheel_is_built_of(folder):
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    recipes = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert DATA | recipes | set(BESIDE) < names
    rooms = {name.split("/")[0] for name in names if "/" in name}
    assert rooms == {"cifar_jax", "cifar_jax.egg-info", "configs"}  # half the tests are no tests


@pytest.mark.slow
def test_a_wheel_has_what_the_package_reads(wheel):
    names = set(contents(wheel))
    assert {f"cifar_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} < names
    assert names > DATA
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"cifar_jax"}


@pytest.mark.slow
def test_the_checkout_makes_the_same_wheel(folder, wheel, tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*command, folder / "source"], check=True, capture_output=True)
    (other,) = tmp_path.glob("*.whl")
    assert contents(other) == contents(wheel)


@pytest.mark.slow
def test_its_command_runs_from_any_folder(wheel, tmp_path):
    site, away = tmp_path / "site", tmp_path / "away"
    away.mkdir()
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(command, check=True, capture_output=True)
    env = os.environ | {"PYTHONPATH": str(site), "CIFAR_JAX_DATA": str(tmp_path / "data")}

    def run(*arguments):
        done = subprocess.run(
            [site / "bin" / "cifar-jax", *arguments],
            cwd=away,
            env=env,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr.strip()

    assert "quickstart   Ten drawn shapes" in run("configs")[1]
    assert run("--version")[1].startswith("cifar_jax ")
    assert run("evaluate")[::2] == (
        2,
        "Unknown command 'evaluate'. Did you mean 'eval'? Choices: train, eval, train_and_eval, "
        "predict, export, report, configs, completion, prepare, look, demo.",
    )
    Image.new("RGB", (40, 30)).save(away / "one.png")
    small = ("--config.num_steps=2", "--config.batch_size=16", "--workdir=w")
    small += ("--config.data.synthetic.train=60", "--config.data.synthetic.test=20")
    code, out, error = run("train", "--config=quickstart", *small)
    assert code == 0, error
    assert "step 0, loss = " in out
    for name in ("pictures/a", "pictures/b"):
        (away / name).mkdir(parents=True)
        (away / name / "one.png").write_bytes((away / "one.png").read_bytes())
    for arguments in (
        ("eval", "--once", "--workdir=w"),
        ("export", "--workdir=w", "--out=w.stablehlo"),
        ("report", "--workdir=w"),
        ("predict", "--workdir=w", "one.png"),
        ("look", "pictures"),
        ("prepare", "--source=synthetic", "--synthetic-train=20", "--synthetic-test=10", "--out=s"),
    ):
        code, out, error = run(*arguments)
        assert code == 0, error
    assert (away / "w.stablehlo").is_file()
    assert (away / "s").is_dir()
