"""The task in this project: its model, optimiser, replicas. Run by `python -m benchmarks.compare`.

Whoever imports this module calls `cifar_jax.devices.runtime.start()` first, before JAX starts.

Variants: "bare" takes standardised images, as the other frameworks do; "program" is the step that
`main.py` runs, from uint8 images on the device, gathered and distorted.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from benchmarks import task
from cifar_jax import config as config_lib
from cifar_jax import models, optim, steps, train
from cifar_jax.data import feeds
from cifar_jax.devices import replicas
from cifar_jax.loop.calls import compile_steps
from cifar_jax.optim import ema

_NUM_TRAIN, _NUM_STEPS = 50_000, 100_000  # the tutorial's, for the schedule


def gradients(params: Any, images: jax.Array, labels: jax.Array, *, model: nn.Module) -> Any:
    """The mean cross-entropy of all replicas' images, and its gradient."""

    def loss_fn(params):
        logits, *_ = models.forward(model, {"params": params}, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params = lax.pcast(params, replicas.AXIS, to="varying")
    return lax.pmean(jax.value_and_grad(loss_fn)(params), replicas.AXIS)


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
    cross_entropy, gradient = gradients(state.params, images, labels, model=model)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    loss = cross_entropy + optim.l2_penalty(state.params, config.optim)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    average = ema.update(state.ema, {"params": params}, step, config.optim.ema_decay)
    return steps.TrainState(step, params, {}, opt_state, average), loss


class JaxCNN:
    """A task.Contender."""

    def __init__(self, weights: task.Weights, batches: list[task.Batch]):
        self._config = config = config_lib.recipe("default")
        steps_per_epoch = _NUM_TRAIN / config.batch_size
        self._model = model = steps.make_model(config, task.NUM_CLASSES)
        self._optimizer = optim.make_optimizer(config.optim, steps_per_epoch, _NUM_STEPS)
        self._mesh = replicas.make_mesh(config.num_devices)
        self._first = weights
        self._batches = [tuple(map(jnp.asarray, batch)) for batch in batches]
        step = partial(train_step, config=config, model=model, optimizer=self._optimizer)
        self._train_step = replicas.data_parallel(
            step, self._mesh, sharded={1: 0, 2: 0}, donate=True
        )
        self._logits = jax.jit(partial(steps.predict, model))
        self._eval_step = jax.jit(lambda *args: steps.predict(model, *args).argmax(-1))
        self.reset()

    def reset(self) -> None:
        params = jax.tree.map(jnp.array, self._first)  # copies, for the step to reuse
        state = steps.init_state({"params": params}, self._optimizer)
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
        params, (images, labels) = self._state.params, self._batches[0]
        compiled = replicas.data_parallel(
            partial(gradients, model=self._model), self._mesh, sharded={1: 0, 2: 0}
        )
        _, gradient = compiled(params, images, labels)
        decay = jax.grad(optim.l2_penalty)(params, self._config.optim)
        gradient = jax.tree.map(jnp.add, gradient, decay)
        variables = self._state.variables
        logits, classes = self._logits(variables, images), self._eval_step(variables, images)
        self._state, loss = self._train_step(self._state, images, labels)
        return {
            **jax.device_get({"logits": logits, "classes": classes, "loss": loss}),
            **task.flat_names("gradient", jax.device_get(gradient)),
            **task.flat_names("updated", jax.device_get(self._state.params)),
        }


class ProgramStep:
    """The step of `main.py` on the built-in dataset, in a plain loop around it.

    Which images form a step is decided before the clock starts: what the loop of the program adds
    to its compiled step is what `whole_program.py` is there to see.
    """

    def __init__(self, config: ConfigDict):
        run = train.prepare(config)
        mesh, batch_size, count = run.mesh, config.batch_size, len(run.data)
        self._first = lambda: replicas.replicate(run.state, mesh)
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


def make(variant: str, batch_size: int) -> JaxCNN | ProgramStep:
    if variant == "program":
        return ProgramStep(program_config(batch_size=batch_size))
    return JaxCNN(task.make_weights(), task.make_batches(batch_size))
