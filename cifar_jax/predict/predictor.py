"""A trained network that classifies images, from its workdir alone."""

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from cifar_jax import files, models, steps
from cifar_jax import inputs as inputs_lib
from cifar_jax.data.dataset import Description
from cifar_jax.data.decode import decode
from cifar_jax.errors import UsageError, UserError
from cifar_jax.predict import heat_map
from cifar_jax.workdir import checkpoint, description, pytrees

MAX_BATCH = 512
_BATCHES = (1, 8, 64, MAX_BATCH)  # sizes for which the network is compiled, where they are needed


class Predictor:
    """A trained network that classifies images. Threads may share it."""

    def __init__(
        self,
        dataset: Description,
        look: Callable[[jax.Array], jax.Array],
        predict: Callable[[jax.Array], jax.Array],
        step: int,
    ):
        """`look` takes images uint8 [n, *dataset.image_shape] to what the network sees, float32
        [n, h, w, C], and `predict` that to logits [n, classes]."""
        self.class_names, self.image_shape = dataset.class_names, dataset.image_shape
        self.step = step  # of the checkpoint
        self._look = jax.jit(look)
        self._predict = jax.jit(lambda images: jax.nn.softmax(predict(look(images))))
        self._predict_seen = jax.jit(lambda seen: jax.nn.softmax(predict(seen)))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [N, H, W, C] of `image_shape` -> float32 probabilities [N, classes].

        Raises UsageError for images of another type or shape.
        """
        return self._in_batches(self._predict, self._checked(images))

    def look(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(What the network sees of an image uint8 `image_shape`, standardised float32 [h, w, C];
        its heat map, float32 [h, w]): see `heat_map.occlusion`. Raises UsageError as a call does.
        """
        seen = np.asarray(self._look(self._checked(image[None])))[0]
        found = heat_map.occlusion(lambda x: self._in_batches(self._predict_seen, x), seen)
        return seen, found

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise UsageError(
                f"The images are {images.dtype} {list(images.shape)}, expected uint8 "
                f"[N, {', '.join(map(str, self.image_shape))}], as those of the training."
            )
        return images

    def _in_batches(
        self, predict: Callable[[np.ndarray], jax.Array], images: np.ndarray
    ) -> np.ndarray:
        found = [np.empty((0, len(self.class_names)), np.float32)]
        for start in range(0, len(images), MAX_BATCH):
            part = images[start : start + MAX_BATCH]
            size = next(size for size in _BATCHES if size >= len(part))
            padding = np.zeros((size - len(part), *images.shape[1:]), images.dtype)
            found.append(np.asarray(predict(np.concatenate([part, padding])))[: len(part)])
        return np.concatenate(found)

    def classify(self, picture: str | os.PathLike[str] | bytes) -> list[tuple[str, float]]:
        """All classes with their probabilities for a picture file, or its bytes, the most probable
        first. Raises Unreadable for what is no picture, and UserError for what is no path."""
        if not isinstance(picture, bytes):
            picture = files.resolve(picture, "The picture")
        (probabilities,) = self(decode(picture, self.image_shape)[None])
        return self.ranked(probabilities)

    def ranked(self, probabilities: np.ndarray) -> list[tuple[str, float]]:
        """The classes with their `probabilities` [classes], the most probable first."""
        order = np.argsort(-probabilities, kind="stable")
        return [(self.class_names[i], float(probabilities[i])) for i in order]


def load(
    workdir: str | os.PathLike[str], *, step: int | str | None = None, ema: bool = True
) -> Predictor:
    """The network of a run, from its workdir alone, as `restore` finds it; of several that train
    together their ensemble, whose probabilities are the means of theirs."""
    path = files.resolve(workdir, "--workdir")
    folders = description.members(path)
    living = [each for each in folders if not checkpoint.status(each / "checkpoints").diverged]
    every = [restore(each, step=step, ema=ema) for each in living or [path]]
    found, several = every[0], len(every) > 1
    if len({each.step for each in every}) > 1:
        at = ", ".join(str(each.step) for each in every)
        raise UserError(f"The networks of {path} are at the steps {at}. Name one with --step.")
    variables = found.variables
    if several:
        variables = jax.tree.map(lambda *all: np.stack(all), *[each.variables for each in every])
    variables = jax.device_put(variables)

    def predict(seen: jax.Array) -> jax.Array:
        if not several:
            return steps.predict(found.model, variables, seen)
        logits = lax.map(lambda own: steps.predict(found.model, own, seen), variables)
        return steps.mean_of_logs(jax.nn.log_softmax(logits))

    return Predictor(
        found.dataset,
        look=lambda images: found.inputs.evaluate(images)[0],
        predict=predict,
        step=found.step,
    )


class Trained(NamedTuple):
    """What a workdir holds of a trained network."""

    config: ConfigDict
    dataset: Description
    step: int  # of the checkpoint
    model: nn.Module
    inputs: inputs_lib.Inputs
    variables: steps.Variables


def restore(
    workdir: str | os.PathLike[str], *, step: int | str | None = None, ema: bool = True
) -> Trained:
    """Of its newest whole checkpoint, that of `step`, or the "best" one; with the EMA of the
    parameters or, without `ema`, the raw ones.

    Raises UserError where nothing was trained, or the checkpoint is missing or damaged.
    """
    workdir = files.resolve(workdir, "--workdir")
    config = description.load_for_eval(workdir, {}, wait=False)
    if count := len(description.members(workdir)):
        raise UserError(
            f"{workdir} holds {count} networks. Name one with --member, from 0 to {count - 1}."
        )
    dataset, folder = description.load_dataset(workdir), workdir / "checkpoints"
    chosen = checkpoint.choose(folder, step, lambda line: print(line, file=sys.stderr))
    if chosen is None or dataset is None:
        raise UserError(f"No checkpoint in {folder} yet. Train a network there first.")
    model = steps.make_model(config, len(dataset.class_names))
    moments = dataset.mean, dataset.std
    inputs = inputs_lib.make(config.inputs, dataset.image_shape, *moments, config.seed)
    like = jax.eval_shape(lambda: models.init(model, jax.random.key(0), inputs.image_shape))
    variables = pytrees.restore_variables(folder, chosen, like, ema=ema)
    return Trained(config, dataset, chosen, model, inputs, variables)
