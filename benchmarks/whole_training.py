"""Whole trainings of one recipe in one process, each a single compiled program over images that are
on the device: what records of time to an accuracy count.

Their clock, airbench's, runs from images in the device's memory to the accuracy on the test images:
initialisation with whitening, the order of the images, training, and the evaluation over several
views. Outside of it are compilation, reading the files and a first training as warm-up.
"""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import models, steps
from cifar_jax.data import feeds, splits
from cifar_jax.devices import replicas
from cifar_jax.loop import training
from cifar_jax.loop.calls import compile_steps
from cifar_jax.steps import proxy

EVAL_BATCH = 2_000  # images; as the records have it


class Training(NamedTuple):
    """One training: seconds of each part, and the accuracies it came to."""

    initialisation: float
    training: float
    evaluation: float
    accuracy: float  # over config.eval.views views
    single_view: float  # top-1 accuracy of the image as it is; not in the clock

    @property
    def seconds(self) -> float:
        return self.initialisation + self.training + self.evaluation


class WholeTraining:
    """A recipe, compiled once, to be trained with one seed after the other.

    A seed decides the initial parameters and the order of the images. The distortions of the n-th
    place in the order are those of `config.seed` in every training, as they are part of the
    program: another order gives them to other images.
    """

    def __init__(self, config: ConfigDict):
        config = config_lib.resolve(config)
        self._run = run = training.prepare(config)
        self._mesh, self._views = run.mesh, config.eval.views
        images, labels, _ = run.data.load()
        self._dataset = replicas.replicate({"image": images, "label": labels}, run.mesh)
        self._test = self._batches(splits.open(config.data, "test", config.seed))
        bound = run.step.keywords
        self._model, self._inputs = bound["model"], bound["inputs"]
        self._init = jax.jit(models.init, static_argnums=(0, 2))
        fit = images[: models.images_to_fit(self._model)]
        self._to_fit = jax.device_put(fit)
        self._standardize = jax.jit(lambda images: self._inputs.evaluate(images)[0])
        self._train = compile_steps(
            run.step,
            steps.Detail.NONE,
            run.mesh,
            self._state(0),
            self._order(0),
            self._dataset,
        )
        self._predict = {views: self._compile(views) for views in {1, self._views}}
        self(0)

    def _batches(self, test: Any) -> list[dict[str, jax.Array]]:
        (images, labels, _), size = test.load(), EVAL_BATCH
        return [
            replicas.replicate(
                {"image": images[start : start + size], "label": labels[start : start + size]},
                self._mesh,
            )
            for start in range(0, len(labels), size)
        ]

    def _compile(self, views: int) -> Any:
        step = partial(steps.predict_step, model=self._model, inputs=self._inputs, views=views)
        return replicas.data_parallel(step, self._mesh, sharded={1: 0}, per_image=True)

    def _state(self, seed: int) -> steps.TrainState:
        keys = jax.random.split(jax.random.key(seed))
        state = self._first_state(self._run.step, keys[0])
        if other := self._run.step.keywords.get("proxy"):
            state = proxy.with_proxy(state, self._first_state(other, keys[1]))
        return replicas.replicate(state, self._mesh)

    def _first_state(self, step: partial, key: jax.Array) -> steps.TrainState:
        model = step.keywords["model"]
        variables = self._init(model, key, self._inputs.image_shape)
        if len(self._to_fit):
            seen = self._standardize(self._to_fit)
            variables = models.init_from_data(model, variables, seen)
        return steps.init_state(variables, step.keywords["optimizer"])

    def _order(self, seed: int) -> dict[str, jax.Array]:
        sharding = NamedSharding(self._mesh, P(None, replicas.AXIS))
        batch_size = self._run.config.batch_size
        feed = feeds.DeviceFeed(len(self._run.data), batch_size, seed, sharding)
        return feed.get(0, self._run.num_steps)

    def _accuracy(self, variables: steps.Variables, views: int) -> float:
        right = [
            (self._predict[views](variables, batch)["classes"][:, 0] == batch["label"]).sum()
            for batch in self._test
        ]
        return int(jnp.stack(right).sum()) / sum(len(batch["label"]) for batch in self._test)

    def __call__(self, seed: int) -> Training:
        times = [time.perf_counter()]
        state = jax.block_until_ready(self._state(seed))
        times.append(time.perf_counter())
        no_request = replicas.request(0, self._mesh)
        state, *_ = self._train(state, self._order(seed), self._dataset, no_request)
        jax.block_until_ready(state)
        times.append(time.perf_counter())
        accuracy = self._accuracy(state.ema, self._views)
        times.append(time.perf_counter())
        first, second, third = np.diff(times).tolist()
        return Training(first, second, third, accuracy, self._accuracy(state.ema, 1))


def measure(recipe: str, data: str | None, seeds: int, **fields: object) -> list[Training]:
    """A recipe by name, with `fields` set, on CIFAR-10 in the folder `data`."""
    config = config_lib.recipe(recipe)
    config.update_from_flattened_dict({**({"data.dir": data} if data else {}), **fields})
    training = WholeTraining(config)
    return [training(seed) for seed in range(1, 1 + seeds)]
