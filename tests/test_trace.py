"""Where a trace begins and ends; that one is written, tests/test_train.py shows."""

import math
import types

from cifar_jax import trace


def test_a_call_ends_where_a_trace_begins_or_ends(config, tmp_path):
    config.profile.steps = (13, 17)
    found = trace.Trace(config, tmp_path, types.SimpleNamespace(writes=True))
    assert [found.next_due(step) for step in (0, 12, 13, 16, 17)] == [13, 13, 17, 17, math.inf]
