"""From Python, as in a notebook: the verbs check, leave nothing behind, and say what came of it."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax.errors import Interrupted, UsageError
from cifar_jax.evaluate import Evaluator, evaluate
from cifar_jax.loop.calls import Calls, NotCompiled
from cifar_jax.telemetry.log import Log
from cifar_jax.train import train
from cifar_jax.workdir import checkpoint, description
from tests.conftest import DATASET, ROOT


def left_behind():
    """What a run must give back: threads, handlers of signals, the streams."""
    ours = {t.name for t in threading.enumerate() if t.name != "compile_0"}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return ours, handlers, sys.stdout, sys.stderr


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optim.name", "adm", "Unknown config.optim.name 'adm'. Did you mean 'adam'?"),
        (
            "optim.schedule",
            "cosin",
            "Unknown config.optim.schedule 'cosin'. Did you mean",
        ),
        (
            "optim.learning_rat",
            0.1,
            "Unknown config field 'optim.learning_rat'. Did you mean",
        ),
        ("batch_size", "16", "config.batch_size = '16' is of type str, expected int."),
        ("cluster", "auto", "config.cluster = 'auto', but only main.py joins the processes"),
    ],
)
def test_what_cannot_work_is_a_line_before_anything_is_written(config, home, field, value, message):
    config = ConfigDict(config.to_dict(), type_safe=False)
    config.update_from_flattened_dict({field: value})
    verbs = [train] if field == "cluster" else [train, evaluate, Evaluator]
    for verb in verbs:
        with pytest.raises(UsageError, match=re.escape(message)) as caught:
            verb(config, "~/run")
        assert caught.value._render_traceback_() == [f"UsageError: {caught.value}"]
    assert list(home.iterdir()) == []


def test_a_recipe_s_name_is_no_config(config, home):
    description.store(config, home / "run", 0, "1 CPU device", DATASET)
    for verb in (train, evaluate, Evaluator):
        with pytest.raises(UsageError, match="The config is of type str, expected a ConfigDict"):
            verb("quickstart", "~/run")
    assert [path.name for path in (home / "run").iterdir()] == [description.FILE]


def test_overrides_are_for_the_config_of_the_workdir(config, home):
    description.store(config, home / "run", 0, "1 CPU device", DATASET)
    with pytest.raises(UsageError, match="overrides change the config that the workdir holds"):
        evaluate(config, "~/run", overrides={"data.dir": "~/other"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.dri": "x"}, "Unknown config field 'data.dri'. Did you mean 'data.dir'?"),
        ({"seeds": 1}, "Unknown config field 'seeds'. Did you mean 'seed'?"),
        ({"seed.x": 1}, "Unknown config field 'seed.x'."),
        ({"data": 1}, "Unknown config field 'data'."),
        ({3: 1}, "Unknown config field '3'."),
        ({"data.dir": 1}, "config.data.dir = 1 is of type int, expected str."),
        ({"seed": True}, "config.seed = True is of type bool, expected int."),
        ({"inputs.size": "24"}, "config.inputs.size = '24' is of type str, expected tuple."),
        (["data.dir"], "overrides are of type list, expected a dict"),
    ],
)
def test_overrides_that_cannot_work_are_a_line_before_anything_is_waited_for(
    home, overrides, message
):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        evaluate(None, "~/run", overrides=overrides)
    assert "\n" not in str(caught.value)


def test_two_runs_in_one_process(config, home):
    config.batch_size, config.per_device_batch_size = 48, 16  # of one device
    given, before = config.to_dict(), left_behind()
    for name in ("first", "second"):
        state, path = train(config, f"~/{name}")
        assert path == home / name / "checkpoints" / "6"
        assert int(state.step) == 6 and checkpoint.check(path) == ""
        assert left_behind() == before
    (accuracy,) = evaluate(config, "~/first").values()
    assert evaluate(None, home / "first", once=True) == {6: accuracy}
    assert left_behind() == before
    assert train(config, "~/first").checkpoint == home / "first" / "checkpoints" / "6"
    assert config.to_dict() == given
    config.model.name = "resnet18"
    with pytest.raises(UsageError, match="model.name is 'cnn' there, 'resnet18' now"):
        evaluate(config, "~/first")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_broke_leaves_nothing_and_goes_on(config, tmp_path, monkeypatch, error):
    before, original = left_behind(), Log.note

    def note(self, number, *rest):
        original(self, number, *rest)
        if number == 4:
            raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(Log, "note", note)
        train(config, tmp_path)
    assert left_behind() == before
    assert int(train(config, tmp_path).state.step) == 6


def test_stopped_while_it_compiles_a_run_keeps_the_checkpoint_that_it_has(
    config, tmp_path, monkeypatch
):
    config.num_steps = 3
    train(config, tmp_path)
    config.num_steps = 6

    def compile_(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise NotCompiled

    with monkeypatch.context() as patch:
        patch.setattr(Calls, "_compile", compile_)
        with pytest.raises(Interrupted, match="Stopped by SIGINT: step 3 is saved in"):
            train(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]
    assert int(train(config, tmp_path).state.step) == 6


def test_recipes_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").touch()  # no recipe of ours
    assert config_lib.recipe("default").seed == 0
    assert config_lib.recipe("fast:5").num_epochs == 5
    own = tmp_path / "own.py"
    own.write_text((ROOT / "configs" / "quickstart.py").read_text())
    assert config_lib.recipe(own).to_dict() == config_lib.recipe("quickstart").to_dict()
    own.write_text("config = 1")
    with pytest.raises(UsageError, match="own.py has no function get_config."):
        config_lib.recipe(own)
    with pytest.raises(UsageError, match="Unknown recipe 'quikstart'. Did you mean 'quickstart'?"):
        config_lib.recipe("quikstart")


def run(code, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_has_every_recipe(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    out = run(
        "import cifar_jax\n"
        "from cifar_jax.config import recipe\n"
        f"print(cifar_jax.__file__, *[recipe(name).seed for name in {names}])",
        tmp_path,
    )
    assert out.split() == [str(tmp_path / "cifar_jax" / "__init__.py"), *["0"] * len(names)]


@pytest.mark.slow
def test_the_lines_of_the_readme(tmp_path):
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    small = (
        "config.num_steps, config.batch_size = 2, 16\n"
        "config.data.synthetic.update(train=60, test=20)\n"
        "config.summaries.update(scalars=0, images=0, histograms=0)\n"
    )
    assert lines.count("config.num_epochs = 1.0\n") == 1
    code = lines.replace("config.num_epochs = 1.0\n", small)
    code += "print(int(state.step), checkpoint, list(accuracies))"
    out = run(code, tmp_path, HOME=tmp_path, CIFAR_JAX_DATA=tmp_path, PYTHONPATH=ROOT)
    last = tmp_path / "runs" / "first" / "checkpoints" / "2"
    assert out.splitlines()[-1] == f"2 {last} [2]"
