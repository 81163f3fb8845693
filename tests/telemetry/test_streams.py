"""Printing where nobody reads, nothing fits, or the terminal knows ASCII alone."""

import os
import subprocess
import sys
import types

import pytest

from cifar_jax.telemetry import streams
from tests.conftest import ROOT

CHATTY = """
import sys
from cifar_jax.telemetry import streams
streams.protect()
for n in range(3):
    print("x" * 100_000, flush=True)
    print("y" * 100_000, file=sys.stderr)
"""


def run(code, redirect="", options="", **environment):
    """Runs `code` under a shell that redirects it; stdout, stderr and the exit code."""
    command = f'exec "$0" {options} -c "$1" {redirect}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONUNBUFFERED": ""} | environment,
    )


@pytest.mark.parametrize("options", ["", "-u"])
@pytest.mark.parametrize(
    "redirect", [">/dev/full 2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1", ""]
)
def test_output_that_goes_nowhere_costs_nothing_else(redirect, options):
    done = run(CHATTY, redirect, options)
    assert done.returncode == 0
    assert len(done.stdout) == (0 if redirect else 300_003)
    assert len(done.stderr) == (0 if redirect else 300_003)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_that_is_closed_or_full(blocking):
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    if blocking:
        os.close(reader)
    command = [sys.executable, "-c", CHATTY + "sys.exit(7)"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=writer, timeout=60)
    assert done.returncode == 7


def test_no_later_file_becomes_stdout(tmp_path):
    code = f"""
from cifar_jax.telemetry import streams
streams.protect()
file = open({str(tmp_path / "data")!r}, "w")
print("a line")
assert file.fileno() > 2, file.fileno()
"""
    done = run(code, "<&- >&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "data").read_text() == ""


def test_what_the_terminal_cannot_show_is_escaped():
    code = (
        r"from cifar_jax.telemetry import streams; streams.protect(); print('\udcff é'); print('–')"
    )
    done = run(code, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stdout) == (0, "\\udcff \\xe9\n\\u2013\n")


def test_a_terminal_stays_one():
    leader, follower = os.openpty()
    code = "import sys; from cifar_jax.telemetry import streams; streams.protect()\n"
    code += "print(sys.stdout.isatty(), sys.stdout.fileno(), sys.stdout.line_buffering)\n"
    code += "print(sys.stderr.isatty(), sys.stderr.fileno(), sys.stderr.line_buffering)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=follower,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    os.close(follower)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.read(leader, 100).decode().split() == ["True", "1", "True", "False", "2", "True"]


def test_a_closed_event_loop_is_not_told_and_all_else_is(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    streams._drop_closed_loops()

    def unraisable(error, of=None):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error, object=of))

    unraisable(RuntimeError("Event loop is closed"))
    assert told == []
    unraisable(RuntimeError("Event loop is closed"), of=print)
    unraisable(RuntimeError("another"))
    unraisable(ValueError("Event loop is closed"))
    assert len(told) == 3
