"""Replicas: how many, what a step on them sees, and what lies where."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from cifar_jax.devices import replicas


def test_more_devices_than_there_are_means_those_there_are():
    assert replicas.num_devices(0) == replicas.num_devices(99) == 1
    assert replicas.make_mesh(99).size == 1


@pytest.mark.parametrize(
    ("processes", "wanted", "line"),
    [
        ([0], 0, "1 GPU device"),
        ([0], 2, "1 GPU device (2 were asked for)"),
        ([0, 0], 2, "2 GPU devices"),
        ([0, 0, 1, 1], 0, "4 GPU devices of 2 processes"),
    ],
)
def test_a_mesh_is_described(processes, wanted, line):
    devices = [SimpleNamespace(platform="gpu", process_index=i) for i in processes]
    mesh = SimpleNamespace(size=len(devices), devices=np.array(devices))
    assert replicas.describe(mesh, wanted) == line


def test_a_step_averages_over_the_axis_and_gets_its_share():
    def step(state, batch):
        return state + lax.pmean(batch.sum(), replicas.AXIS)

    compiled = replicas.data_parallel(step, replicas.make_mesh(1), sharded={1: 0})
    state = replicas.replicate(np.float32(1), replicas.make_mesh(1))
    assert float(compiled(state, jnp.arange(4.0))) == 7.0


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((16, 64), P(None, replicas.AXIS)),
        ((64, 16), P(replicas.AXIS)),
        ((16, 30), P(replicas.AXIS)),  # the longest axis is not to be divided
        ((10,), P()),
        ((0,), P()),
        ((), P()),
    ],
)
def test_the_longest_axis_that_8_devices_divide_is_split(shape, spec):
    mesh = AbstractMesh((8,), (replicas.AXIS,))
    found = replicas.zero1_shardings({"a": jax.ShapeDtypeStruct(shape, jnp.float32)}, mesh)
    assert found["a"].spec == spec


def test_a_mesh_takes_as_many_devices_of_each_process(monkeypatch):
    devices = {process: [f"{process}/{i}" for i in range(4)] for process in range(2)}
    taken = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "local_devices", lambda process_index: devices[process_index])
    monkeypatch.setattr(
        replicas, "Mesh", lambda chosen, *args, **kwargs: taken.append(chosen) or SimpleNamespace()
    )
    replicas.make_mesh(4)
    replicas.make_mesh(0)
    assert taken == [["0/0", "0/1", "1/0", "1/1"], devices[0] + devices[1]]
