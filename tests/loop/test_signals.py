"""Signals: heard at once, noted where something is to be saved, and given back."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cifar_jax.loop import signals
from tests.conftest import ROOT

# A main thread that C code keeps busy, as XLA does: no Python handler runs meanwhile.
PROGRAM = """
import ctypes, sys, time
from cifar_jax.loop import signals
signals.listen()
mode = sys.argv[1]
busy = lambda seconds: ctypes.CDLL(None).usleep(int(seconds * 1e6))
ready = lambda: print("ready", flush=True)
if mode == "importing":
    ready()
    [busy(0.9) for _ in range(30)]
signals.unwind()
if mode == "collecting":  # where an exception would be dropped
    import gc
    gc.callbacks.append(lambda *_: [ready(), [time.sleep(0.01) for _ in range(3000)]])
    gc.collect()
if mode == "replaced":
    from cifar_jax import errors
    def program():
        try:
            ready()
            [time.sleep(0.01) for _ in range(3000)]
        except BaseException:
            raise errors.UserError("Cannot write: Bad file descriptor.")
    signals.leave(errors.exit_code(lambda: signals.until_left(program)))
if mode == "unwinding":
    try:
        ready()
        [time.sleep(0.01) for _ in range(3000)]
    finally:
        print("closed", flush=True)
with signals.Stop() as stop:
    stop.unsaved = mode == "unsaved"
    ready()
    while not stop.signal:
        time.sleep(0.01)
    print("saved", flush=True)
    if len(sys.argv) > 2:
        [busy(0.9) for _ in range(30)]
signals.leave(128 + stop.signal)
"""


@pytest.fixture
def start():
    processes = []

    def start(*mode, **options):
        command = [sys.executable, "-c", PROGRAM, *mode]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, **pipes, **options)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_what_is_unsaved_is_saved_and_the_line_comes_at_once(start, number):
    process = start("unsaved")
    process.send_signal(number)
    name = signal.Signals(number).name
    out, error = process.communicate(timeout=20)
    assert error == f"{name}: saving, then leaving. Once more leaves at once.\n"
    assert (out, process.returncode) == ("saved\n", 128 + number)


@pytest.mark.parametrize("mode", ["importing", "saved", "unwinding", "collecting"])
def test_where_nothing_is_unsaved_it_leaves(start, mode):
    process = start(mode)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "Stopped by SIGTERM.\n"
    out, error = process.communicate(timeout=20)
    assert "saved" not in out
    if mode in ("importing", "collecting"):  # where no exception would come through
        assert (error, process.returncode) == ("", 143)
    if mode == "unwinding":
        assert out == "closed\n"  # by an exception


def test_an_error_that_a_signal_has_made_is_the_signal(start):
    process = start("replaced")
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert (error, process.returncode) == ("Stopped by SIGTERM.\n", 143)


def test_the_second_leaves_at_once(start):
    process = start("unsaved", "long")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1].endswith("Left at once.\n")
    assert process.returncode == 130


def test_what_nohup_turned_off_stays_off(start):
    process = start("unsaved", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


def test_in_a_notebook_the_second_signal_does_what_it_did_before():
    before = signal.getsignal(signal.SIGINT)
    with signals.Stop() as noted:
        os.kill(os.getpid(), signal.SIGINT)
        assert noted.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
