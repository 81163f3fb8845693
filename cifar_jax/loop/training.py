"""A run ready to start: its data, model and step, made from its config."""

import math
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import inputs as inputs_lib
from cifar_jax import models, optim, steps
from cifar_jax.data import batches, splits
from cifar_jax.data.dataset import Description, Images
from cifar_jax.devices import replicas
from cifar_jax.errors import UsageError
from cifar_jax.steps import proxy

_FIT_DRAW = np.array(2**64 - 2, np.uint64)  # the permutation for parameters from data: no epoch's


class Training(NamedTuple):
    """A run ready to start: what its config and its data determine. Nothing is written yet."""

    config: ConfigDict
    data: Images
    dataset: Description
    num_steps: int
    step: partial  # steps.train_step or that of steps.proxy, bound
    state: steps.TrainState  # before the first step

    @property
    def mesh(self) -> Mesh:
        return self.step.keywords["mesh"]

    @property
    def device(self) -> str:
        return replicas.describe(self.mesh, self.config.num_devices)

    def loss_bound(self) -> float:
        """The mean loss above which training has diverged: config.divergence.factor times that of
        uniform predictions with the initial L2 penalty; the same in every start, and so of the
        drawn parameters where config.init_from has others for the first one."""
        l2 = float(optim.l2_penalty(self.state.params, self.config.optim))
        return self.config.divergence.factor * (math.log(len(self.data.class_names)) + l2)


class Result(NamedTuple):
    """What a run comes to."""

    state: steps.TrainState
    checkpoint: Path  # the last one, which holds it


def prepare(config: ConfigDict, known: Description | None = None) -> Training:
    """Opens the data, and binds and initialises what trains on it. `known` is what the run knows of
    its dataset since its first start. Raises UserError."""
    data = splits.open(config.data, "train", config.seed)
    _check_same(data)
    dataset = splits.describe(config.data, data, known)
    num_steps = config_lib.num_steps(config, len(data))
    steps_per_epoch = len(data) / config.batch_size
    model = steps.make_model(config, len(data.class_names))
    inputs = inputs_lib.make(config.inputs, data.shape, dataset.mean, dataset.std, config.seed)
    optimizer = optim.make_optimizer(config.optim, steps_per_epoch, num_steps)
    step = partial(
        steps.train_step,
        config=config,
        model=model,
        inputs=inputs,
        optimizer=optimizer,
        schedule=optim.make_schedule(config.optim, steps_per_epoch, num_steps),
        num_steps=num_steps,
        mesh=replicas.make_mesh(config.num_devices),
        class_weights=dataset.class_weights() if config.data.balance else None,
        curriculum=inputs_lib.curriculum(config.inputs, steps_per_epoch),
    )
    if config.proxy.model:
        step = proxy.bind(step, steps_per_epoch, num_steps, int(config_lib.num_kept(config)))
    state = first_state(step, data, config.seed)
    channels = inputs.image_shape[-1]
    models.check_sizes(model, state.variables, step.keywords["curriculum"].sizes, channels)
    return Training(config, data, dataset, num_steps, step, state)


def first_state(step: partial, data: Images, seed: int) -> steps.TrainState:
    """The state before the first step, whose parameters the seed draws."""
    key = jax.random.key(seed)
    state = _first_state(step, data, seed, key)
    if other := step.keywords.get("proxy"):
        return proxy.with_proxy(state, _first_state(other, data, seed, jax.random.split(key)[0]))
    return state


def _first_state(step: partial, data: Images, seed: int, key: jax.Array) -> steps.TrainState:
    model, inputs = step.keywords["model"], step.keywords["inputs"]
    variables = models.init(model, key, inputs.image_shape)
    if count := models.images_to_fit(model):
        # Drawn, as a dataset may be sorted by class; and of one process, to the last bit.
        drawn = np.arange(min(count, len(data)))
        images, _ = data.read(np.sort(batches.permute(drawn, len(data), seed, _FIT_DRAW)))
        seen = inputs.evaluate(jnp.asarray(images))[0]
        variables = replicas.broadcast(models.init_from_data(model, variables, seen))
    return steps.init_state(variables, step.keywords["optimizer"])


def _check_same(data: Images) -> None:
    """Raises UsageError, on every process, where one has other images than process 0."""
    described = repr((len(data), data.shape, list(data.class_names)))
    for process, known in enumerate(replicas.gather(np.uint32(zlib.crc32(described.encode())))):
        if process == 0:
            first = known
        elif known != first:
            raise UsageError(
                f"Process {process} has other training images than process 0, in number, size or "
                "classes. Check --config.data.dir on its machine."
            )
