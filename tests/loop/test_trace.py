"""Where a trace begins and ends; that one is written, tests/test_train.py shows."""

import contextlib
import errno
import math
import types

import jax
import pytest

from cifar_jax.loop import trace


def test_a_call_ends_where_a_trace_begins_or_ends(config, tmp_path):
    config.profile.steps = (13, 17)
    found = trace.Trace(config, tmp_path, types.SimpleNamespace(writes=True))
    assert [found.next_due(step) for step in (0, 12, 13, 16, 17)] == [13, 13, 17, 17, math.inf]


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def nothing(*args, **options):
    pass


@pytest.mark.parametrize("start", [full, nothing])
@pytest.mark.parametrize("stop", [full, nothing])  # `nothing` leaves no folder to be named
def test_a_trace_that_fails_costs_a_line(config, tmp_path, monkeypatch, start, stop):
    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    config.profile.steps = (1, 2)
    lines = []
    log = types.SimpleNamespace(writes=True, line=lines.append, paused=contextlib.nullcontext)
    with trace.Trace(config, tmp_path, log) as found:
        for number in range(4):
            found.before(number)
            found.after(number + 1, None)
    why = "No such file or directory" if start is stop is nothing else "No space left on device"
    assert lines == [f"The trace could not be written: {why}. Training goes on without."]


def test_a_trace_that_is_cut_short_and_fails(config, tmp_path, monkeypatch):
    monkeypatch.setattr(jax.profiler, "start_trace", nothing)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    config.profile.steps = (1, 9)
    lines = []
    with trace.Trace(config, tmp_path, types.SimpleNamespace(writes=True, line=lines.append)) as t:
        t.before(1)
    assert len(lines) == 1
