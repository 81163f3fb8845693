"""Replicas: how many, and what a step on them sees."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_jax import parallel


def test_more_devices_than_there_are_means_those_there_are():
    assert parallel.num_devices(0) == parallel.num_devices(99) == 1
    assert parallel.make_mesh(99).size == 1


def test_a_step_averages_over_the_axis_and_gets_its_share():
    def step(state, batch):
        return state + lax.pmean(batch.sum(), parallel.AXIS)

    compiled = parallel.data_parallel(step, parallel.make_mesh(1), sharded={1: 0})
    state = parallel.replicate(np.float32(1), parallel.make_mesh(1))
    assert float(compiled(state, jnp.arange(4.0))) == 7.0
