"""What keeps a process from joining others, before and after they have met."""

import contextlib
import socket
import threading

import jax
import numpy as np
import pytest

from cifar_jax.devices import cluster, replicas
from cifar_jax.errors import UsageError, UserError


@pytest.fixture(autouse=True)
def no_initialize(monkeypatch):
    """None of these gets as far as to join."""

    def fail(*args, **kwargs):
        raise AssertionError("joined")

    monkeypatch.setattr(jax.distributed, "initialize", fail)


def join(config, *flags):
    with cluster.joined(config, *flags):
        return True


def test_one_process_is_left_alone(default):
    assert join(default, "", -1, -1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("", 2, -1), "need --coordinator=HOST:PORT"),
        (("", -1, 0), "need --coordinator=HOST:PORT"),
        (("here", 2, 1), "--coordinator=here, expected HOST:PORT"),
        ((":1234", 2, 1), "--coordinator=:1234, expected HOST:PORT"),
        (("here:http", 2, 1), "--coordinator=here:http, expected HOST:PORT"),
        (("here:1234", -1, 1), "--process_id=1 of --num_processes=-1"),
        (("here:1234", 2, -1), "--process_id=-1 of --num_processes=2"),
        (("here:1234", 2, 2), "--process_id=2 of --num_processes=2"),
    ],
)
def test_flags_that_cannot_work(default, flags, message):
    with pytest.raises(UsageError, match=message):
        join(default, *flags)


def test_a_port_in_use(default):
    with contextlib.closing(socket.create_server(("", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at localhost:{port}: .*in use.*port"):
            join(default, f"localhost:{port}", 2, 0)


def test_nothing_to_detect_is_said_in_a_line(default, monkeypatch):
    def nothing(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.\nMore.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing)
    default.cluster = "auto"
    with pytest.raises(UsageError) as error:
        join(default, "", -1, -1)
    assert "should be defined. More. Expected Slurm, Kubernetes or Open MPI, or else" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    late = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    assert all(t.finished.is_set() for t in late)  # else it would end the process later


def test_what_may_pass_is_no_usage_error(default, monkeypatch):
    """The job's manager starts the processes again after it."""

    def unknown_host(*args, **kwargs):
        raise RuntimeError("")

    monkeypatch.setattr(jax.distributed, "initialize", unknown_host)
    default.cluster = "auto"
    with pytest.raises(UserError, match="could not be joined: RuntimeError. Expected") as error:
        join(default, "", -1, -1)
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Gloo all-reduce failed"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed"), True),
        (ValueError("Gloo all-reduce failed"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (ValueError("a mistake"), False),
    ],
)
def test_which_errors_are_of_a_lost_connection(error, lost):
    assert cluster._is_lost_connection(error) is lost


def gathered(monkeypatch, *configs):
    """Each of the processes asks `_check_same` of its config; returns what all of them tell."""
    calls: list[list] = []
    for config in configs:
        calls.append([])
        monkeypatch.setattr(replicas, "gather", lambda v: (calls[-1].append(v), v[None])[1])
        cluster._check_same(config)
    answers = map(np.stack, zip(*calls, strict=True))
    monkeypatch.setattr(replicas, "gather", lambda value: next(answers))


def test_the_config_that_differs_is_named(default, monkeypatch):
    other = default.copy_and_resolve_references()
    other.optim.learning_rate, other.seed = 0.5, 3
    other.data.dir, other.data.shards = "/there", "/elsewhere"  # may differ
    gathered(monkeypatch, default, default, other)
    with pytest.raises(UsageError, match=r"Process 2 .* process 0: optim.learning_rate, seed\."):
        cluster._check_same(default)


def test_where_the_images_are_may_differ(default, monkeypatch):
    other = default.copy_and_resolve_references()
    other.data.dir, other.data.shards = "/there", "/elsewhere"
    gathered(monkeypatch, default, other)
    cluster._check_same(default)


def test_another_version_has_other_fields(default, monkeypatch):
    other = default.copy_and_resolve_references()
    with other.unlocked():
        other.new = 1
    gathered(monkeypatch, default, other)
    with pytest.raises(UsageError, match="different versions of cifar_jax"):
        cluster._check_same(default)


def test_unequal_devices_are_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        jax, "local_devices", lambda process_index: [0] * (4 if process_index == 2 else 8)
    )
    with pytest.raises(UsageError, match="Process 0 has 8 devices and process 2 has 4"):
        cluster._check_devices()
