"""The accuracy of the checkpoints of a workdir."""

import functools
import hashlib
import os
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import files, models, steps
from cifar_jax import inputs as inputs_lib
from cifar_jax.data import batches, splits
from cifar_jax.data.dataset import Description, Split
from cifar_jax.devices import replicas
from cifar_jax.errors import UsageError
from cifar_jax.telemetry import display, pictures, summaries
from cifar_jax.telemetry.predictions import (
    Predictions,
    calibration,
    confusion,
    recalls,
    worst_mistakes,
)
from cifar_jax.workdir import checkpoint, description, pytrees, records


class Evaluator:
    """Measures the accuracy (top-1) of checkpoints on one split, every image counted once."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | os.PathLike[str],
        *,
        ema: bool = True,
        split: str = "test",
        num_examples: int = 0,
        progress: bool = False,
        own_data: bool = True,
        like: "Evaluator | None" = None,
        title: str = "",
    ):
        """With `progress`, a bar while it evaluates, where there is a terminal to itself. Without
        `own_data`, the images are others than those that the run names. `like` has the images and
        the compiled programs already; the `title` of what is evaluated ends each printed line.

        Of several networks that train together, it is their ensemble that is evaluated: the mean of
        their probabilities.
        """
        config, workdir = config_lib.resolve(config), files.resolve(workdir, "--workdir")
        self._config, self._ema, self._split, self._progress = config, ema, split, progress
        self._ensemble, self._printed = config_lib.several(config), f" ({title})" if title else ""
        opened = splits.open(config.data, split, config.seed)
        self.data: Split = like.data if like else Split(*opened.load())
        self._title = splits.title(config.data, opened)
        self._num_examples = num_examples or len(self.data)
        if not 0 < self._num_examples <= len(self.data):
            raise UsageError(
                f"--num_examples={num_examples}, but the {split} split has {len(self.data):,}."
            )
        self.model = steps.make_model(config, len(self.data.class_names))
        self._mesh = replicas.make_mesh(config.num_devices)
        # By their number of views, and whether of an ensemble.
        self._steps: dict[tuple[int, bool], Callable] = like._steps if like else {}
        self._workdir, self._own_data = workdir, own_data
        self.accuracies: dict[int, float] = {}  # of the last evaluation, by number of views
        self._facts: dict[str, str | int] = {}  # what is measured, known once there is a writer
        self._writer: summaries.Writer | None = None  # opened by the first evaluation

    @functools.cached_property
    def inputs(self) -> inputs_lib.Inputs:
        """By the dataset that the workdir describes, from its run's first step on. Raises
        UsageError where the images are not of its classes and shape."""
        dataset, config = description.load_dataset(self._workdir), self._config
        if dataset:
            self._check_like(dataset)
        mean, std = (dataset.mean, dataset.std) if dataset else (None, None)
        return inputs_lib.make(config.inputs, self.data.shape, mean, std, config.seed)

    def _check_like(self, trained: Description) -> None:
        for what, was, now in (
            ("classes", trained.class_names, tuple(self.data.class_names)),
            ("images of shape", trained.image_shape, tuple(self.data.shape)),
        ):
            if was != now:
                raise UsageError(
                    f"{self._workdir} was trained on {what} {splits.short(was)}, these images have "
                    f"{splits.short(now)}. Name images of the same classes and shape."
                )

    @functools.cached_property
    def _like(self) -> steps.Variables:
        shape = self.inputs.image_shape
        return jax.eval_shape(lambda: models.init(self.model, jax.random.key(0), shape))

    def _step(self, views: int) -> Callable:
        key = views, self._ensemble
        if key not in self._steps:
            step = partial(
                steps.predict_step,
                model=self.model,
                inputs=self.inputs,
                views=views,
                ensemble=self._ensemble,
            )
            self._steps[key] = replicas.data_parallel(
                step, self._mesh, sharded={1: 0}, per_image=True
            )
        return self._steps[key]

    def restore(self, step: int) -> steps.Variables:
        """The EMA of the checkpoint `step`, or the raw parameters and model state where they were
        asked for. Raises FileNotFoundError where it has been deleted meanwhile."""
        folders = description.members(self._workdir) if self._ensemble else [self._workdir]
        found = [
            pytrees.restore_variables(each / "checkpoints", step, self._like, ema=self._ema)
            for each in folders
            if not (self._ensemble and checkpoint.status(each / "checkpoints").diverged)
        ]
        return (
            jax.tree.map(lambda *leaves: np.stack(leaves), *found) if self._ensemble else found[0]
        )

    def predict(self, variables: steps.Variables, views: int = 1) -> Predictions:
        """Of the first `num_examples` images of the split, in its order."""
        variables, size = replicas.replicate(variables, self._mesh), self._config.eval.batch_size
        sharding = NamedSharding(self._mesh, P(replicas.AXIS))
        found: list[dict[str, np.ndarray]] = []
        every = batches.eval_batches(self.data, size, self._num_examples)
        if self._progress:
            every = display.track(every, -(-self._num_examples // size), "Evaluating")
        for image, label, mask in every:
            batch = replicas.put({"image": image, "label": label}, sharding)
            batch = self._step(views)(variables, batch)
            found.append({name: values[mask] for name, values in jax.device_get(batch).items()})
        labels = self.data.labels[: self._num_examples]
        return Predictions(
            labels, **{name: np.concatenate([part[name] for part in found]) for name in found[0]}
        )

    def evaluate(self, step: int) -> float:
        """The accuracy of the checkpoint `step`; prints the tutorial's line, writes summaries.

        Raises FileNotFoundError where the checkpoint has been deleted meanwhile.
        """
        variables = self.restore(step)
        found = self.predict(variables)
        suffix = "" if self._ema else "_raw"
        scalars = {
            f"accuracy{suffix}": found.accuracy,
            f"cross_entropy{suffix}": float(found.cross_entropy.mean()),
        }
        print(display.precision_line(found.accuracy) + self._printed, flush=True)
        self.accuracies = {1: found.accuracy}
        if (views := self._config.eval.views) > 1:
            accuracy = self.accuracies[views] = self.predict(variables, views).accuracy
            scalars[f"accuracy_of_{views}_views{suffix}"] = accuracy
            print(display.precision_line(accuracy, views) + self._printed, flush=True)
        if self._num_examples == len(self.data):  # a part is not a point of the curve
            self._write(step, scalars, found)
        return found.accuracy

    def _open(self) -> summaries.Writer:
        """Opens the writer. Every record says what was measured; evaluations on other images than
        the run's earlier ones are recorded as another kind, a curve of their own."""
        digest = _digest(self.data)
        self._facts = {
            "parameters": "ema" if self._ema else "raw",
            "split": self._split,
            "images": len(self.data),
            "dataset": f"{self._title}-{digest}",
        }
        kind = "eval" if self._split == "test" else f"eval_{self._split}"
        try:
            earlier = records.read(self._workdir / records.FILE)
        except OSError:  # the writer will report it
            earlier = []
        known = [r.get("dataset") for r in earlier if r["kind"] == kind]  # None: an old record's
        digests = {name.rpartition("-")[2] for name in known if name is not None}
        if digest not in digests and (digests or not (self._own_data or known)):
            kind = f"eval_{digest}"
            if jax.process_index() == 0:
                print(
                    "These images are not those of the run's evaluations: what is measured on them "
                    f"is recorded as '{kind}'.",
                    flush=True,
                )
        return summaries.Writer(self._workdir, kind)

    def _write(self, step: int, scalars: dict[str, float], predictions: Predictions) -> None:
        if self._writer is None:
            self._writer = self._open()
        names = self.data.class_names
        matrix = confusion(predictions, len(names))
        suffix = "" if self._ema else "_raw"
        scalars[f"calibration_error{suffix}"] = calibration(predictions).error
        for name, recall in zip(names, recalls(matrix), strict=True):
            scalars[f"recall{suffix}/{name}"] = float(recall)
        self._writer.scalars(step, scalars, self._facts)
        shown = [display.plain(name)[:60] for name in names]
        draw = partial(pictures.confusion, matrix, shown)
        self._writer.image(step, f"confusion{suffix}", draw, matrix.nbytes)
        worst = worst_mistakes(predictions, 16)
        if len(worst):
            captions = [
                f"{shown[label]}, taken for\n{shown[classes[0]]}, {probabilities[0]:.0%}"
                for label, classes, probabilities in zip(
                    *(array[worst] for array in predictions[:3]), strict=True
                )
            ]
            images = self.data.images[worst]
            draw = partial(pictures.grid, images, captions)
            self._writer.image(step, f"mistakes{suffix}", draw, images.nbytes)

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _digest(data: Split) -> str:
    """The first 12 hex digits of the SHA-256 over images and labels."""
    found = hashlib.sha256()
    for array in (data.images, data.labels):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:12]
