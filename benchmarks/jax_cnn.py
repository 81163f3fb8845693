"""The tasks in this project: its models and optimisers. Run by `python -m benchmarks.compare`.

Whoever imports this module calls `cifar_jax.devices.runtime.start()` first, before JAX starts.

Variants: "cnn float32", "cnn bfloat16", "airbench float32" and "airbench bfloat16" take images that
are standardised, as the other frameworks do; "program" is the step that `main.py` runs, from uint8
images on the device, gathered and distorted.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from benchmarks import airbench_task, task
from cifar_jax import config as config_lib
from cifar_jax import models, optim, steps
from cifar_jax.data import feeds
from cifar_jax.devices import replicas
from cifar_jax.inputs import Targets
from cifar_jax.loop import training
from cifar_jax.loop.calls import compile_steps
from cifar_jax.optim import ema, paths

_NUM_TRAIN = 50_000  # for the schedule


def gradients(
    params: Any,
    model_state: Any,
    images: jax.Array,
    labels: jax.Array,
    *,
    model: nn.Module,
    smoothing: float,
) -> tuple[jax.Array, Any, Any]:
    """(the mean loss of all replicas' images, its gradient, the model's new state)."""

    def loss_fn(params):
        variables = {"params": params, **model_state}
        logits, state, _ = models.forward(model, variables, images, train=True)
        return steps.losses(logits, Targets(labels), smoothing)[1].mean(), state

    params = lax.pcast(params, replicas.AXIS, to="varying")
    (loss, state), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return *lax.pmean((loss, gradient), replicas.AXIS), state


def train_step(
    state: steps.TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
) -> tuple[steps.TrainState, jax.Array]:
    """`steps.train_step` of images that are standardised already; with the loss alone as metric."""
    smoothing = config.optim.label_smoothing
    loss, gradient, model_state = gradients(
        state.params, state.model_state, images, labels, model=model, smoothing=smoothing
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    loss += optim.l2_penalty(state.params, config.optim)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    variables = {"params": params, **model_state}
    average = ema.update(state.ema, variables, step, config.optim.ema_decay)
    return steps.TrainState(step, params, model_state, opt_state, average), loss


class JaxContender:
    """A task.Contender: the network and the optimiser of a recipe."""

    def __init__(
        self, config: ConfigDict, params: Any, batches: list[task.Batch], steps_per_epoch: float
    ):
        self._config = config
        self._model = model = steps.make_model(config, task.NUM_CLASSES)
        num_steps = max(1, round(config.num_epochs * steps_per_epoch))
        self._optimizer = optim.make_optimizer(config.optim, steps_per_epoch, num_steps)
        self._mesh = replicas.make_mesh(config.num_devices)
        self._batches = [tuple(map(jnp.asarray, batch)) for batch in batches]
        _, height, width, channels = self._batches[0][0].shape
        variables = models.init(model, jax.random.key(0), (height, width, channels))
        _, model_state = steps.split_variables(variables)
        self._first = {"params": params, **model_state}
        step = partial(train_step, config=config, model=model, optimizer=self._optimizer)
        self._train_step = replicas.data_parallel(
            step, self._mesh, sharded={1: 0, 2: 0}, donate=True
        )
        self._logits = jax.jit(partial(steps.predict, model))
        self._eval_step = jax.jit(lambda *args: steps.predict(model, *args).argmax(-1))
        self.reset()

    def reset(self) -> None:
        variables = jax.tree.map(jnp.array, self._first)  # copies, for the step to reuse
        state = steps.init_state(variables, self._optimizer)
        self._state = replicas.replicate(state, self._mesh)

    def train(self, steps: int) -> None:
        for number in range(steps):
            batch = self._batches[number % len(self._batches)]
            self._state, _ = self._train_step(self._state, *batch)
        jax.block_until_ready(self._state)

    def evaluate(self, steps: int) -> None:
        for number in range(steps):
            images, _ = self._batches[number % len(self._batches)]
            classes = self._eval_step(self._state.variables, images)
        jax.block_until_ready(classes)

    def outcome(self) -> task.Outcome:
        self.reset()
        state, (images, labels) = self._state, self._batches[0]
        smoothing = self._config.optim.label_smoothing
        compiled = replicas.data_parallel(
            partial(gradients, model=self._model, smoothing=smoothing),
            self._mesh,
            sharded={2: 0, 3: 0},
        )
        _, gradient, _ = compiled(state.params, state.model_state, images, labels)
        decay = jax.grad(optim.l2_penalty)(state.params, self._config.optim)
        gradient = jax.tree.map(jnp.add, gradient, decay)
        variables = state.variables
        logits, classes = self._logits(variables, images), self._eval_step(variables, images)
        self._state, loss = self._train_step(state, images, labels)
        trees = {"gradient": gradient, "updated": self._state.params}
        flat = {
            f"{name}/{path}": np.asarray(array)
            for name, tree in trees.items()
            for path, array in paths.flatten(tree).items()
        }
        return {**jax.device_get({"logits": logits, "classes": classes, "loss": loss}), **flat}


class ProgramStep:
    """The step of `main.py` on the built-in dataset, in a plain loop around it.

    Which images form a step is decided before the clock starts: what the loop of the program adds
    to its compiled step is what `whole_program.py` is there to see.
    """

    def __init__(self, config: ConfigDict):
        run = training.prepare(config)
        mesh, batch_size, count = run.mesh, config.batch_size, len(run.data)
        # Copies, as a step reuses the memory of the state that it is given.
        self._first = lambda: replicas.replicate(jax.tree.map(jnp.copy, run.state), mesh)
        images, labels, _ = run.data.load()
        self._dataset = replicas.replicate({"image": images, "label": labels}, mesh)
        self.steps_per_call = config.steps_per_call or replicas.steps_per_call(mesh)
        sharding = NamedSharding(mesh, P(None, replicas.AXIS))
        feed = feeds.DeviceFeed(count, batch_size, config.seed, sharding)
        self._calls = [
            feed.get(first, self.steps_per_call)
            for first in range(0, max(1, count // batch_size), self.steps_per_call)
        ]
        self._no_request = replicas.request(0, mesh)
        self.reset()
        self._train = compile_steps(
            run.step, steps.Detail.NONE, mesh, self._state, self._calls[0], self._dataset
        )

        first = {"image": images[:batch_size], "label": labels[:batch_size]}
        batch = replicas.replicate(first, mesh)
        bound = run.step.keywords
        predict = partial(steps.predict_step, inputs=bound["inputs"], model=bound["model"])
        compiled = replicas.data_parallel(predict, mesh, sharded={1: 0}, per_image=True)
        self._evaluate = lambda variables: compiled(variables, batch)

    def as_text(self) -> str:
        """The training step as XLA compiled it."""
        return str(self._train.as_text())

    def reset(self) -> None:
        self._state = self._first()

    def train(self, steps: int) -> int:
        """At least `steps` steps, in whole calls; how many."""
        calls = -(-steps // self.steps_per_call)
        for number in range(calls):
            batches = self._calls[number % len(self._calls)]
            self._state, *_ = self._train(self._state, batches, self._dataset, self._no_request)
        jax.block_until_ready(self._state)
        return calls * self.steps_per_call

    def evaluate(self, steps: int) -> None:
        for _ in range(steps):
            found = self._evaluate(self._state.variables)
        jax.block_until_ready(found)


def program_config(**fields: object) -> ConfigDict:
    """The default config on the built-in dataset, with `fields` set."""
    config = config_lib.recipe("default")
    config.update_from_flattened_dict({"data.name": "synthetic", **fields})
    return config


def make(variant: str, batch_size: int) -> JaxContender | ProgramStep:
    if variant == "program":
        return ProgramStep(program_config(batch_size=batch_size))
    name, dtype = variant.split()
    if name == "airbench":
        config = config_lib.recipe(f"airbench94:batch={batch_size}")
        weights = paths.unflatten(airbench_task.make_weights())
        batches = airbench_task.make_batches(batch_size)
        steps_per_epoch = airbench_task.STEPS_PER_EPOCH
    else:
        config = config_lib.recipe("default")
        weights, batches = task.make_weights(), task.make_batches(batch_size)
        steps_per_epoch = _NUM_TRAIN / config.batch_size
    config.dtype = dtype
    return JaxContender(config, weights, batches, steps_per_epoch)
