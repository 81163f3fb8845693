"""What a shell completes, by asking one."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

_ASK = """
COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); _cifar_jax
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script():
    command = [sys.executable, "-m", "cifar_jax", "completion"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ex"], ["export"]),
        (["e"], ["eval", "export"]),
        (["train", "--rest"], ["--restart"]),
        (["train", "--work"], ["--workdir="]),
        (["train", "--config", "=", "air"], ["airbench94"]),  # as readline breaks it
        (["train", "--config=air"], ["--config=airbench94"]),  # as zsh has it
        (["train", "--config.optim.le"], ["--config.optim.learning_rate="]),
        (["eval", "--split", "="], ["train", "validation", "test"]),
        (["export", "--weights", "=", "int"], ["int8"]),
        (["predict", "cat"], [""]),  # a path: the shell's own
        (["eval", "--workdir", "=", "r"], [""]),
    ],
)
def test_it_completes(script, words, expected):
    quoted = " ".join(f"'{word}'" for word in ["cifar-jax", *words])
    code = f"{script}\nwords=({quoted})\n{_ASK}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")
