"""What a shell completes, by asking one."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_ASK = """
COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); _cifar_jax
printf '%s\\n' "${COMPREPLY[@]}"
"""


# zsh completes nowhere but on the line of a terminal, where what is typed is echoed.
_ZSH_RC = """
autoload -Uz compinit; compinit -D -u
. ./script
show() print -r "<$BUFFER>"
zle -N show; bindkey "^X" show
print READY
"""
_ASK_ZSH = """
zmodload zsh/zpty
zpty shell env PS1= zsh -f -i
zpty -w shell '. ./rc'
zpty -r -m shell line "*READY*" || exit 1
zpty -w -n shell "$1"$'\\t\\x18'
zpty -r -m shell line "*<*>*" || exit 1
print -r -- "${${line##*<}%%>*}"
zpty -d shell
"""


def _script(shell):
    command = [sys.executable, "-m", "cifar_jax", "completion", shell]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def script():
    return _script("bash")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ex"], ["export"]),
        (["e"], ["eval", "export"]),
        (["train", "--rest"], ["--restart"]),
        (["train", "--work"], ["--workdir="]),
        (["train", "--config", "=", "air"], ["airbench94", "airbench96"]),  # as readline breaks it
        (
            ["train", "--config=air"],
            ["--config=airbench94", "--config=airbench96"],
        ),  # as zsh has it
        (["train", "--config.optim.le"], ["--config.optim.learning_rate="]),
        (["eval", "--split", "="], ["train", "validation", "test"]),
        (["export", "--weights", "=", "int"], ["int8"]),
        (["predict", "cat"], [""]),  # a path: the shell's own
        (["eval", "--workdir", "=", "r"], [""]),
        (["completion", "f"], ["fish"]),
        (["look", "--rest"], [""]),  # which has flags of its own
    ],
)
def test_it_completes(script, words, expected):
    quoted = " ".join(f"'{word}'" for word in ["cifar-jax", *words])
    code = f"{script}\nwords=({quoted})\n{_ASK}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ex", ["export"]),
        ("train --rest", ["--restart"]),
        ("train --config=airbench94", ["--config=airbench94"]),
        ("train --config=r", ["--config=resnet", "--config=runs/"]),
        ("train --config.optim.learning_r", ["--config.optim.learning_rate"]),
        ("eval --split ", ["test", "train", "validation"]),
        ("eval --workdir=r", ["--workdir=runs/"]),
        ("predict ru", ["runs/"]),
        ("completion z", ["zsh"]),
        ("look --rest", []),
    ],
)
@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes(folder, line, expected):
    (folder / "script").write_text(_script("fish"))
    code = f"source script; complete -C 'cifar-jax {line}'"
    command = ["fish", "--no-config", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (sorted(done.stdout.split()), done.stderr) == (expected, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ex", "export"),
        ("train --config=lo", "train --config=local"),
        ("eval --workdir=ru", "eval --workdir=runs/"),
        ("predict ru", "predict runs/"),
    ],
)
@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_completes(folder, line, expected):
    (folder / "script").write_text(_script("zsh"))
    (folder / "rc").write_text(_ZSH_RC)
    command = ["zsh", "-f", "-c", _ASK_ZSH, "zsh", f"cifar-jax {line}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"cifar-jax {expected}", done.stderr


def test_it_is_written_without_jax():
    code = (
        "import sys\n"
        "sys.argv = ['cifar-jax', 'completion', 'fish']\n"
        "from cifar_jax.__main__ import console\n"
        "assert console() == 0 and 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)


def test_a_shell_that_it_does_not_know_is_a_line():
    command = [sys.executable, "-m", "cifar_jax", "completion", "zsch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Unknown shell 'zsch'. Did you mean 'zsh'? Choices: bash, zsh, fish.\n"
