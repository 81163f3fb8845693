"""A wheel, built from an sdist and installed elsewhere: its command runs from any folder, with the
recipes within."""

import os
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    kept = ("cifar_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
    source.mkdir()
    for name in kept:  # without what an earlier build has left in the checkout
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    subprocess.run(command, check=True, capture_output=True)  # the wheel from the sdist
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_has_what_the_package_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"cifar_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} < names
    assert {
        "cifar_jax/py.typed",
        "cifar_jax/report/page.html.j2",
        "cifar_jax/demo/page.html.j2",
        "cifar_jax/demo/classifier.mjs",
    } < names
    assert not [name for name in names if not name.startswith("cifar_jax")]


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
