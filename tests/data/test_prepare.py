"""`python -m cifar_jax.data.prepare`: a whole dataset as shards, or nothing and a line why."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from cifar_jax.data import prepare, progress, shards, sources
from cifar_jax.errors import UsageError
from tests.conftest import ROOT


@pytest.fixture
def flags(data_dir, tmp_path):
    return ["--source=cifar10", f"--data-dir={data_dir}", f"--out={tmp_path / 'out'}"]


def check_complete(out, config):
    for split in sources.SPLITS:
        expected, found = sources.load(config.data, split), shards.open(out, split)
        images, labels, names = found.load()
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(labels, expected.labels)
        assert names == expected.class_names


def test_the_command_as_documented(flags, config, tmp_path):
    command = [sys.executable, "-m", "cifar_jax.data.prepare", *flags, "--num-shards=4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"The shards are in {tmp_path / 'out'}\n"
    assert "train: 100% of 90 images\n" in done.stderr
    assert "test: 100% of 37 images\n" in done.stderr
    check_complete(tmp_path / "out", config)
    assert len(list((tmp_path / "out" / "train").glob("*-of-00004.array_record"))) == 4


def test_the_built_in_dataset_and_its_flags(tmp_path):
    out = tmp_path / "out"
    flags = ["--source=synthetic", f"--data-dir={tmp_path}", f"--out={out}"]
    assert prepare.main([*flags, "--synthetic-train=20", "--synthetic-test=10"]) == 0
    assert len(shards.open(out, "train")) == 20
    assert shards.open(out, "test").name == "synthetic"
    assert len(shards.open(out, "test")) == 10


def test_shards_of_grey_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    for split in sources.SPLITS:
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(20) % 3)
    flags = ["--source=npz", f"--data-dir={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert prepare.main(flags) == 0
    found, labels, names = shards.open(tmp_path / "out", "train").load()
    np.testing.assert_array_equal(found, images[..., None])
    assert (labels[:4].tolist(), names) == ([0, 1, 2, 0], ("0", "1", "2"))


def test_the_flags_have_the_defaults_of_the_config(default):
    config, _, _ = prepare._parse(["--out=x"])
    assert set(config) == {
        *("name", "dir", "svhn", "tfds", "synthetic", "pictures", "folder", "csv")
    }
    for name, value in config.to_dict().items():
        assert value == default.data.to_dict()[name]


def test_a_switch_is_true_or_false():
    for text, expected in (("True", True), ("false", False)):
        assert prepare._parse(["--out=x", f"--svhn-extra={text}"])[0].svhn.extra is expected
    with pytest.raises(UsageError, match="svhn-extra"):
        prepare._parse(["--out=x", "--svhn-extra=yes"])


@pytest.mark.parametrize("split", sources.SPLITS)
def test_an_interruption_leaves_nothing_and_the_same_command_goes_on(
    monkeypatch, capsys, flags, config, tmp_path, split
):
    real = sources.examples

    def interrupted(config, name):
        if name == split:
            os.kill(os.getpid(), signal.SIGINT)
        return real(config, name)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "examples", interrupted)
        assert prepare.main(flags) == 130
    assert capsys.readouterr().err.endswith("Interrupted.\n")
    assert not list(tmp_path.iterdir())
    assert prepare.main(flags) == 0
    check_complete(tmp_path / "out", config)


def test_a_killed_one_is_started_again(flags, config, tmp_path):
    code = (
        "import os, sys\n"
        "from cifar_jax.data import prepare, sources\n"
        "real = sources.examples\n"
        "sources.examples = lambda c, split: os._exit(9) if split == 'test' else real(c, split)\n"
        "prepare.main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True)
    assert done.returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == ["out.part"]  # with a whole split in it
    assert (tmp_path / "out.part" / "train" / shards.MANIFEST).exists()
    assert prepare.main(flags) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check_complete(tmp_path / "out", config)


def test_complete_shards_stay_and_incomplete_ones_do_not(capsys, flags, config, tmp_path):
    out = tmp_path / "out"
    assert prepare.main(flags) == 0
    before = (out / "train" / shards.MANIFEST).stat().st_mtime_ns
    capsys.readouterr()
    assert prepare.main(flags) == 1
    assert capsys.readouterr().err.startswith(f"{out} already holds shards")
    assert (out / "train" / shards.MANIFEST).stat().st_mtime_ns == before
    next((out / "test").glob("*.array_record")).unlink()
    assert prepare.main(flags) == 0
    check_complete(out, config)


def test_a_folder_with_something_else_stays(capsys, flags, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("all of it")
    assert prepare.main(flags) == 1
    assert "holds thesis.tex" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "The following arguments are required: --out"),
        (["--out="], "--out is empty"),
        (["--out=x", "--source=cifar"], "Unknown --source 'cifar'. Did you mean 'cifar10'?"),
        (["--out=x", "--num-shards=many"], "Argument --num-shards: invalid int value: 'many'"),
        (["--out=x", "--num-shards=0"], "--num-shards = 0, expected 1 or more."),
        (
            ["--out=x", "--source=synthetic", "--synthetic-train=0"],
            "config.data.synthetic.train = 0, expected 1 or more.",
        ),
        (
            ["--out=x", "--source=synthetic", "--synthetic-seed=-1"],
            "config.data.synthetic.seed = -1, expected 0 or more.",
        ),
        (["--out=x", "--shards=3"], "Unrecognized arguments: --shards=3"),
    ],
)
def test_usage_errors_are_a_line_and_exit_2(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    assert prepare.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_not_there_is_a_line_and_exit_1(capsys, tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    flags = ["--source=cifar10", f"--data-dir={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert prepare.main(flags) == 1
    error = capsys.readouterr().err
    assert "data_batch_1.bin: No such file" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]


def test_a_terminal_gets_a_bar(monkeypatch, capsys, flags):
    class Terminal(progress.Console):
        def __init__(self, stderr):
            super().__init__(stderr=stderr, force_terminal=True, width=80)

    monkeypatch.setattr(progress, "Console", Terminal)
    assert prepare.main(flags) == 0
    error = capsys.readouterr().err
    assert "100%" in error
    assert "of 90 images" not in error
