"""The launcher as a user starts it, with a small program in place of main.py."""

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

from tests.conftest import ROOT

AGAIN = "Start all processes again to go on from the last checkpoint."
LAUNCHER = [sys.executable, str(ROOT / "launch" / "local.py")]

# What the programs share: their flags, and notes that the test reads. None waits for ever.
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
me, folder = int(flags["process_id"]), Path(__file__).parent
start = len(list(folder.glob(f"{me}.*.json")))
def note(name, **what):
    (folder / "part").with_suffix(f".{me}").write_text(json.dumps({"pid": os.getpid(), **what}))
    (folder / "part").with_suffix(f".{me}").rename(folder / name)
note(f"{me}.{start}.json", flags=flags, ids=os.environ["JAX_LOCAL_DEVICE_IDS"],
     xla=os.environ.get("XLA_FLAGS"))
def wait_for(name):
    for _ in range(3000):
        if (folder / name).exists():
            return
        time.sleep(0.01)
    sys.exit(print("Waited in vain."))
"""


@pytest.fixture
def launch(tmp_path):
    """Starts the launcher on a program; what a test has not ended is killed."""
    program = tmp_path / "program.py"
    with contextlib.ExitStack() as stack:

        def start(body, *options, flags=(), processes=2, **environment):
            program.write_text(PRELUDE + body)
            command = [*LAUNCHER, f"--processes={processes}", f"--program={program}", *options]
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, "--", *flags],
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    process_group=0,
                    env={**os.environ, **environment},
                )
            )
            stack.callback(process.kill)
            timer = threading.Timer(60, process.kill)
            stack.callback(timer.cancel)
            timer.start()
            return process

        yield start


def finish(process):
    """Its exit code and lines. Ends when all that hold its stdout have: so no process is left."""
    out, errors = process.communicate(timeout=60)
    assert "Waited in vain." not in out
    return process.returncode, out, errors.splitlines()


def noted(folder, name):
    """What a program notes under this name, as soon as it has."""
    deadline = time.monotonic() + 60
    while not (folder / name).exists():
        assert time.monotonic() < deadline, f"no {name}"
        time.sleep(0.01)
    return json.loads((folder / name).read_text())


def test_every_process_gets_the_flags_and_its_own_number(launch, tmp_path):
    process = launch(
        r"sys.stdout.write('hello\n')", flags=["--config=x y", "--workdir=z"], processes=3
    )
    code, out, errors = finish(process)
    assert (code, out, errors) == (0, "hello\n" * 3, [])
    flags = [noted(tmp_path, f"{index}.0.json")["flags"] for index in range(3)]
    assert [each.pop("process_id") for each in flags] == ["0", "1", "2"]
    assert flags[0] == flags[1] == flags[2]
    host, port = flags[0].pop("coordinator").split(":")
    assert host == "127.0.0.1"
    assert 0 < int(port) < 2**16
    assert flags[0] == {"config": "x y", "workdir": "z", "num_processes": "3"}


def test_without_another_program_it_is_main(launch):
    done = subprocess.run(
        [*LAUNCHER, "--processes=1", "--", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "  --workdir: " in done.stdout


@pytest.mark.parametrize(
    ("devices", "before", "xla", "ids"),
    [
        (1, None, None, ["0", "1"]),
        (1, "--a=b", "--a=b", ["0", "1"]),
        (2, None, "--xla_force_host_platform_device_count=2", ["0,1", "2,3"]),
        (2, "--a=b", "--a=b --xla_force_host_platform_device_count=2", ["0,1", "2,3"]),
    ],
)
def test_devices_of_each_process(launch, tmp_path, monkeypatch, devices, before, xla, ids):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    set_by_user = {} if before is None else {"XLA_FLAGS": before}
    assert finish(launch("", f"--devices={devices}", **set_by_user)) == (0, "", [])
    notes = [noted(tmp_path, f"{index}.0.json") for index in range(2)]
    assert [note["xla"] for note in notes] == [xla, xla]
    assert [note["ids"] for note in notes] == ids


def test_every_line_of_an_error_names_its_process(launch):
    """Also those that are still under way when the process has ended, and one without an end."""
    code, _, errors = finish(launch("sys.stderr.write('\\n'.join(map(str, range(4000))))"))
    assert code == 0
    for index in range(2):
        own = [line for line in errors if line.startswith(f"[{index}] ")]
        assert own == [f"[{index}] {number}" for number in range(4000)]
    assert len(errors) == 8000


def test_a_process_is_killed_and_the_other_ends_by_itself(launch, tmp_path):
    body = """
if me == 1:
    os.kill(os.getpid(), signal.SIGKILL)
wait_for("noticed")
sys.exit("Process 1 is lost.")
"""
    process = launch(body)
    assert process.stderr.readline() == "Process 1 was ended by SIGKILL.\n"
    (tmp_path / "noticed").touch()
    assert finish(process) == (137, "", ["[0] Process 1 is lost.", AGAIN])


# Process 1 fails when process 0 waits.
HANGS = """
note(f"ready{me}")
if me == 1:
    wait_for("ready0")
    sys.exit(3)
wait_for("never")
"""


def test_who_does_not_end_is_ended(launch):
    code, _, errors = finish(launch(HANGS, "--grace=0.5"))
    assert code == 3
    assert errors == ["Process 1 ended with exit code 3.", "Still running: 0. Sending SIGTERM."]


def test_who_does_not_heed_it_is_killed(launch):
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code, _, errors = finish(launch(f"{ignore}\n{HANGS}", "--grace=0.1"))
    assert code == 3
    assert errors[1:] == [
        "Still running: 0. Sending SIGTERM.",
        "Still running: 0. Sending SIGKILL.",
    ]


def test_after_a_failure_all_start_again(launch, tmp_path):
    body = """
if start < 2 and me == 1:
    print("failed", file=sys.stderr)
    sys.exit(5)
"""
    assert finish(launch(body, "--restarts=3")) == (
        0,
        "",
        [
            "[1] failed",
            "Process 1 ended with exit code 5.",
            "Starting all 2 processes again (restart 1 of 3).",
            "[1] failed",
            "Process 1 ended with exit code 5.",
            "Starting all 2 processes again (restart 2 of 3).",
        ],
    )
    assert len(list(tmp_path.glob("0.*.json"))) == len(list(tmp_path.glob("1.*.json"))) == 3


def test_restarts_come_to_an_end(launch, tmp_path):
    code, _, errors = finish(launch("os.kill(os.getpid(), signal.SIGABRT)", "--restarts=1"))
    assert code == 134
    assert [re.sub(r"\d", "N", line, count=1) for line in errors] == [
        "Process N was ended by SIGABRT.",
        "Starting all N processes again (restart 1 of 1).",
        "Process N was ended by SIGABRT.",
        AGAIN,
    ]


@pytest.mark.parametrize("code", [2, 3, 130, 143])
def test_what_a_restart_cannot_mend_ends_the_run(launch, tmp_path, code):
    assert finish(launch(f"sys.exit({code})", "--restarts=3"))[0] == code
    assert not list(tmp_path.glob("*.1.json"))


# Saves and ends at the signal, as main.py does; a second signal would show.
OBEDIENT = """
def stop(number, frame):
    os.write(1, f"{me} saved\\n".encode())
    note(f"saved{me}")
    wait_for("saved0"), wait_for("saved1")
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGTERM, stop)
note(f"ready{me}")
wait_for("never")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once(launch, tmp_path, number):
    process = launch(OBEDIENT, "--restarts=3")
    noted(tmp_path, "ready0"), noted(tmp_path, "ready1")
    process.send_signal(number)
    code, out, errors = finish(process)
    assert (code, sorted(out.splitlines()), errors) == (128 + number, ["0 saved", "1 saved"], [])
    assert not list(tmp_path.glob("*.1.json"))


def test_ctrl_c_in_the_terminal_reaches_every_process_once(launch, tmp_path):
    """A terminal sends it to the launcher's process group."""
    process = launch(OBEDIENT)
    noted(tmp_path, "ready0"), noted(tmp_path, "ready1")
    os.killpg(process.pid, signal.SIGINT)
    code, out, _ = finish(process)
    assert (code, sorted(out.splitlines())) == (130, ["0 saved", "1 saved"])


def test_the_third_signal_kills(launch, tmp_path):
    body = """
def deaf(number, frame):
    global count
    count += 1
    note(f"signal{count}.{me}")
count = 0
signal.signal(signal.SIGINT, deaf), signal.signal(signal.SIGTERM, deaf)
note(f"ready{me}")
wait_for("never")
"""
    process = launch(body)
    for name, number in (("ready", signal.SIGINT), ("signal1.", signal.SIGTERM)):
        noted(tmp_path, f"{name}0"), noted(tmp_path, f"{name}1")
        process.send_signal(number)
    noted(tmp_path, "signal2.0"), noted(tmp_path, "signal2.1")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 130


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_killed_it_leaves_no_process(launch, tmp_path):
    process = launch("note(f'ready{me}'); wait_for('never')")
    noted(tmp_path, "ready0"), noted(tmp_path, "ready1")
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "required: --processes"),
        (["--processes=0"], "--processes=0, expected 1 or more"),
        (["--processes=two"], "argument --processes: invalid int value: 'two'"),
        (["--processes=2", "--devices=0"], "--devices=0, expected 1 or more"),
        (["--processes=2", "--restarts=-1"], "--restarts=-1, expected 0 or more"),
        (["--processes=2", "--workdir=x"], "unrecognized arguments: --workdir=x"),
    ],
)
def test_bad_usage(options, message):
    done = subprocess.run([*LAUNCHER, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
