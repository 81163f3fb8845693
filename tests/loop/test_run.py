"""The steps of a run."""

import types

from cifar_jax.devices import replicas
from cifar_jax.loop import run


def test_calls_are_as_long_as_what_is_due_allows(config):
    mesh, saver = replicas.make_mesh(1), types.SimpleNamespace(next_due=lambda _: 70)

    def steps_per_call(scalars, images, wanted=0, on_device=True):
        config.summaries.update({"scalars": scalars, "images": images, "histograms": 0})
        config.steps_per_call = wanted
        return run._steps_per_call(config, mesh, on_device, saver)

    assert steps_per_call(10, 50) == 1  # a CPU
    assert steps_per_call(10, 50, 100) == 50
    assert steps_per_call(20, 50, 100) == 40
    assert steps_per_call(20, 0, 100) == 60
    assert steps_per_call(100, 0, 100) == 70
    assert steps_per_call(0, 0, 100) == 70
