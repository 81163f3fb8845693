"""`main.py` as a user starts it: both modes, bad input, signals; exit codes and one line each."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from cifar_jax.workdir import checkpoint
from tests.conftest import NUM_TEST, ROOT

MAIN = [sys.executable, str(ROOT / "main.py")]


@pytest.fixture
def tiny(data_dir):
    """Flags for 6 steps of 16 on the tiny dataset."""
    return [
        f"--config.data.dir={data_dir}",
        "--config.batch_size=16",
        "--config.num_steps=6",
        "--config.eval.batch_size=16",
        "--config.checkpoint.every_steps=3",
        "--config.log_every_steps=2",
        "--config.summaries.scalars=2",
        "--config.summaries.images=0",
        "--config.summaries.histograms=0",
    ]


def run(*flags, cwd=None, **environment):
    return subprocess.run(
        [*MAIN, *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=300,
    )


def test_train_then_evaluate(tiny, tmp_path):
    """From another folder, with relative paths; evaluation needs the workdir alone."""
    config = f"--config={ROOT / 'configs' / 'default.py'}"
    done = run(config, "--workdir=run", *tiny, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r": step 0, loss = 4\.[67]\d \(\d+\.\d examples/sec; \d+\.\d{3} sec/batch\)", done.stdout
    )
    assert done.stderr == ""

    done = run("--mode=eval", "--workdir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"^\S+ \S+: precision @ 1 = 0\.\d{3}$", done.stdout, re.M)
    written = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert written == ["checkpoints", "config.json", "metrics.jsonl", "tensorboard"]
    kinds = [
        (record["kind"], record["step"])
        for record in map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    ]
    assert kinds == [("start", 0), ("train", 0), ("train", 2), ("train", 4), ("eval", 6)]


def test_train_and_eval_in_one_process(tiny, tmp_path):
    done = run("--mode=train_and_eval", "--noema", f"--workdir={tmp_path / 'run'}", *tiny)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("precision @ 1 = ") == 2
    again = run("--mode=train_and_eval", f"--workdir={tmp_path / 'run'}", *tiny)
    assert "Training has already ended at step 6." in again.stdout
    assert again.stdout.count("precision @ 1 = ") == 1


@contextlib.contextmanager
def running(*flags, **pipes):
    """A process that is killed in the end, and after two minutes whatever happens."""
    process = subprocess.Popen([*MAIN, *flags], text=True, **pipes)
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_evaluation_follows_a_training_that_is_stopped_and_resumed(tiny, tmp_path, number):
    workdir = f"--workdir={tmp_path / 'run'}"
    flags = [*tiny, workdir, "--config.eval.poll_seconds=0.1", "--config.num_steps=100000"]
    with (
        running("--mode=eval", workdir, stdout=subprocess.PIPE) as follower,
        running(*flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as trainer,
    ):
        assert any("precision @ 1 = " in line for line in follower.stdout)  # while training runs
        trainer.send_signal(number)
        _, error = trainer.communicate()
        name = signal.Signals(number).name
        assert re.fullmatch(
            rf"{name}: saving, then leaving. Once more leaves at once.\n"
            rf"Stopped by {name}: step (\d+) is saved in \S+. The same .*\n",
            error,
        )
        assert trainer.returncode == 128 + number
        stopped = int(re.search(r"step (\d+)", error)[1])
        assert checkpoint.newest(tmp_path / "run" / "checkpoints", print) == stopped
        assert follower.poll() is None  # training has not ended
        done = run(*flags, f"--config.num_steps={stopped + 3}")
        assert done.returncode == 0, done.stderr
        assert f"Resuming from step {stopped} in" in done.stdout
        assert follower.wait() == 0


@pytest.mark.slow
def test_killed_at_any_moment_the_bytes_are_those_of_the_whole_run(tiny, tmp_path):
    """SIGKILL again and again, wherever it strikes, until the run gets through."""
    flags = [*tiny, "--config.num_steps=60", "--config.checkpoint.every_steps=1"]
    whole = run(*flags, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed" / "checkpoints"
    kills, seen = 0, 0
    while checkpoint.status(folder).finished is None:
        process = subprocess.Popen(
            [*MAIN, *flags, f"--workdir={tmp_path / 'killed'}"], stdout=subprocess.DEVNULL
        )
        while process.poll() is None and max(checkpoint.steps(folder), default=0) < seen + 9:
            time.sleep(0.003)
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
        seen, kills = max(checkpoint.steps(folder), default=0), kills + 1
    assert kills > 3
    compare = (
        "import sys, numpy, orbax.checkpoint as ocp\n"
        "import jax\n"
        "a, b = (ocp.StandardCheckpointer().restore(path) for path in sys.argv[1:])\n"
        "same = [x.tobytes() == y.tobytes() for x, y in zip(*map(jax.tree.leaves, (a, b)))]\n"
        "assert len(same) > 20 and all(same), same\n"
    )
    paths = [str(tmp_path / name / "checkpoints" / "60") for name in ("whole", "killed")]
    subprocess.run([sys.executable, "-c", compare, *paths], check=True)


BAD_USAGE = [
    (
        ["--config.optim.learning_rat=1"],
        "Unknown config field 'learning_rat'. Did you mean 'learning_rate'?",
    ),
    (["--config.optm.momentum=1"], "Unknown config field 'optm'. Did you mean 'optim'?"),
    (["--config.batch_size=many"], "flag --config.batch_size=many: invalid literal for int"),
    (["--config.inputs.flip.alternating=perhaps"], "Non-boolean argument"),
    (["--config.model.name=cnnn"], "Unknown config.model.name 'cnnn'. Did you mean 'cnn'?"),
    (["--config.optim.decay_factor=0"], "config.optim.decay_factor = 0.0, expected more than 0."),
    (["--config.inputs.size=33"], "larger than the images"),
    (["--config=configs/nothing.py"], "nothing.py"),
    (["--mode=evaluate"], "--mode=evaluate: value should be one of <train|eval|"),
    (["--workdirr=x"], "Unknown command line flag 'workdirr'. Did you mean: workdir ?"),
    (["train"], "Unexpected argument 'train'"),
    (["--workdir="], "--workdir is empty"),
    (
        ["--mode=eval", "--coordinator=host:1"],
        "--coordinator is for training; --mode=eval is one process.",
    ),
    (["--process_id=1"], "--num_processes and --process_id need --coordinator=HOST:PORT."),
]


def one_line(done, code):
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(("flags", "message"), BAD_USAGE, ids=lambda value: str(value)[:40])
def test_bad_usage_is_one_line_and_exit_code_2(flags, message, tmp_path):
    done = run(*flags, cwd=tmp_path)
    assert message in one_line(done, 2)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line_and_exit_code_1(tiny, tmp_path):
    (tmp_path / "data" / "cifar-10-batches-bin").mkdir(parents=True)
    flags = [*tiny, "--workdir=run", "--config.data.dir=data"]
    done = run(*flags, cwd=tmp_path)
    assert "data_batch_1.bin: No such file" in one_line(done, 1)
    assert not (tmp_path / "run").exists()

    done = run("--mode=eval", "--once", "--workdir=run", cwd=tmp_path)
    assert "run has no config.json: nothing was trained there." in one_line(done, 1)
    done = run("--mode=report", "--workdir=run", "other", cwd=tmp_path)
    assert "run has no config.json: nothing was trained there." in one_line(done, 1)

    done = run("--mode=train", "--debug", *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_offline_the_first_use_says_what_to_do(tmp_path):
    """No proxy answers at this address; the error names URL, folder, file and the way without."""
    closed = "http://127.0.0.1:9"
    done = run(
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.dir={tmp_path / 'data'}",
        https_proxy=closed,
        HTTPS_PROXY=closed,
        no_proxy="",
    )
    assert done.returncode == 1
    announced, error = done.stderr.splitlines()
    assert announced.startswith("Downloading https://www.cs.toronto.edu")
    for part in (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "cifar-10-binary.tar.gz into " + str(tmp_path / "data"),
        "--config=configs/quickstart.py",
    ):
        assert part in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("config.optim.lerning_rate = 3", "'lerning_rate'. Did you mean 'learning_rate'?"),
        ("config.batch_size = 'many'", "recipe.py, line 6: Could not override field 'batch_size'"),
        ("config.seed = (", "--config cannot be read: "),
        ("del get_config", "no function get_config"),
    ],
)
def test_a_recipe_with_a_mistake(recipe, message, tmp_path):
    (tmp_path / "recipe.py").write_text(
        "from cifar_jax.config import recipe\n\n\n"
        "def get_config():\n    config = recipe('default')\n"
        f"    {recipe}\n    return config\n"
        if "del" not in recipe
        else ""
    )
    done = run("--config=recipe.py", cwd=tmp_path)
    assert message in one_line(done, 2)


def test_help_names_every_flag():
    done = run("--help")
    assert done.returncode == 0
    for flag in ("config", "workdir", "mode", "[no]once", "[no]ema", "split", "num_examples"):
        assert f"  --{flag}: " in done.stdout


@pytest.mark.slow
def test_evaluation_of_the_training_split(tiny, tmp_path):
    assert run(f"--workdir={tmp_path}", *tiny).returncode == 0
    options = ["--mode=eval", f"--workdir={tmp_path}", "--once"]
    done = run(*options, "--split=train", "--num_examples=20")
    assert done.returncode == 0, done.stderr
    done = run(*options, f"--num_examples={NUM_TEST + 1}")
    assert "but the test split has 37" in one_line(done, 2)
