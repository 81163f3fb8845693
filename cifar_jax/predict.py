"""Classifies pictures with a trained network: `main.py --mode=predict`, and `load` from Python."""

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cifar_jax import files, models, steps
from cifar_jax import inputs as inputs_lib
from cifar_jax.data.dataset import Description
from cifar_jax.data.decode import SUFFIXES, Unreadable, decode
from cifar_jax.errors import UsageError, UserError, reason
from cifar_jax.telemetry import display
from cifar_jax.workdir import checkpoint, description, pytrees

STDIN = "-"
FORMATS = ("table", "json", "csv")
_BATCHES = (1, 8, 64, 512)  # sizes for which the network is compiled, where they are needed
_TOP = 3  # classes that are told of a picture
_WIDTH = 60  # of the names in a table, but for longer ones
_MAX_BYTES = 1 << 28  # of standard input


class Predictor:
    """A trained network that classifies images. Threads may share it."""

    def __init__(
        self,
        dataset: Description,
        predict: Callable[[jax.Array], jax.Array],
        step: int,
    ):
        """`predict` takes images uint8 [n, *dataset.image_shape] to logits [n, classes]."""
        self.class_names, self.image_shape = dataset.class_names, dataset.image_shape
        self.step = step  # of the checkpoint
        self._predict = jax.jit(lambda images: jax.nn.softmax(predict(images)))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [N, H, W, C] of `image_shape` -> float32 probabilities [N, classes].

        Raises UsageError for images of another type or shape.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise UsageError(
                f"The images are {images.dtype} {list(images.shape)}, expected uint8 "
                f"[N, {', '.join(map(str, self.image_shape))}], as those of the training."
            )
        found = [np.empty((0, len(self.class_names)), np.float32)]
        for start in range(0, len(images), _BATCHES[-1]):
            part = images[start : start + _BATCHES[-1]]
            size = next(size for size in _BATCHES if size >= len(part))
            padded = np.concatenate([part, np.zeros((size - len(part), *self.image_shape), "u1")])
            found.append(np.asarray(self._predict(padded))[: len(part)])
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
    workdir: str | os.PathLike[str], *, step: int | None = None, ema: bool = True
) -> Predictor:
    """The network of a run, from its workdir alone: of its newest whole checkpoint or that of
    `step`, with the EMA of the parameters or, without `ema`, the raw ones.

    Raises UserError where nothing was trained, or the checkpoint is missing or damaged.
    """
    workdir = files.resolve(workdir, "--workdir")
    config = description.load_for_eval(workdir, {}, wait=False)
    dataset, folder = description.load_dataset(workdir), workdir / "checkpoints"
    if step is None:
        step = checkpoint.newest(folder, lambda line: print(line, file=sys.stderr))
    elif problem := _problem(folder / str(step)):
        raise UserError(f"Checkpoint {step} in {folder}: {problem}.")
    if step is None or dataset is None:
        raise UserError(f"No checkpoint in {folder} yet. Train a network there first.")
    model = steps.make_model(config, len(dataset.class_names))
    moments = dataset.mean, dataset.std
    inputs = inputs_lib.make(config.inputs, dataset.image_shape, *moments, config.seed)
    like = jax.eval_shape(lambda: models.init(model, jax.random.key(0), inputs.image_shape))
    variables = jax.device_put(pytrees.restore_variables(folder, step, like, ema=ema))

    def predict(images: jax.Array) -> jax.Array:
        return steps.predict(model, variables, inputs.evaluate(images)[0])

    return Predictor(dataset, predict, step)


def _problem(path: Path) -> str:
    try:
        return checkpoint.check(path)
    except FileNotFoundError:
        return "there is none"


# -- pictures of a command line ------------------------------------------------------------------


class Answer(NamedTuple):
    name: str
    classes: list[tuple[str, float]]  # all, the most probable first; [] for what is unreadable
    problem: str = ""


def classify(
    predictor: Predictor, pictures: Iterable[str], stdin: Callable[[int], bytes] | None = None
) -> Iterator[Answer]:
    """The answer for each of `pictures`, in their order: names of files, or "-" for what `stdin`
    gives. They are decoded in threads while the device computes, a few batches ahead."""
    size, names = _BATCHES[-1] // 8, iter(pictures)

    def read(name: str) -> np.ndarray:
        source = Path(name) if name != STDIN or stdin is None else stdin(_MAX_BYTES)
        return decode(source, predictor.image_shape)

    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def start(count: int) -> list[tuple[str, Future[np.ndarray]]]:
            return [(name, pool.submit(read, name)) for name in islice(names, count)]

        ahead = [start(size) for _ in range(4)]
        try:
            while batch := ahead.pop(0):
                ahead.append(start(size))
                yield from _answers(predictor, batch)
        finally:
            pool.shutdown(cancel_futures=True)


def _answers(
    predictor: Predictor, batch: Sequence[tuple[str, Future[np.ndarray]]]
) -> Iterator[Answer]:
    images, problems = [], {}
    for place, (_, future) in enumerate(batch):
        try:
            images.append(future.result())
        except (Unreadable, OSError) as error:
            problems[place] = reason(error)
    probabilities = iter(predictor(np.stack(images))) if images else iter(())
    for place, (name, _) in enumerate(batch):
        if problem := problems.get(place):
            yield Answer(name, [], problem)
        else:
            yield Answer(name, predictor.ranked(next(probabilities)))


def find(arguments: Sequence[str]) -> list[str]:
    """The pictures that a command line names: files, "-", patterns, and all in folders at any
    depth, but for hidden files and suffixes of other things. Nothing is opened.

    Raises UsageError for none, for a URL, and for a folder without any; a file that does not exist
    is left for its answer to say.
    """
    found: list[str] = []
    for argument in arguments:
        if argument == STDIN:
            found.append(STDIN)
            continue
        path = files.resolve(argument, "The picture")
        if path.is_dir():
            within = sorted(_in_folder(path))
            if not within:
                raise UsageError(f"{path} holds no pictures. Name files, or another folder.")
            found += within
        elif not path.exists() and glob.has_magic(argument):
            matches = sorted(glob.glob(str(path)))  # noqa: PTH207  (an absolute pattern)
            if not matches:
                raise UsageError(f"{argument} matches no file. Name files, folders or patterns.")
            found += matches
        else:
            found.append(argument)
    if not found:
        raise UsageError(
            "No picture is named. Expected files, folders or patterns after the flags, or - for "
            "standard input."
        )
    return found


def _in_folder(folder: Path) -> Iterator[str]:
    for below, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield str(Path(below, name))


def run(
    workdir: str | os.PathLike[str], arguments: Sequence[str], form: str, *, ema: bool = True
) -> None:
    """Prints the classes of the pictures that `arguments` name (`find`), as one of `FORMATS`.

    A picture that cannot be read is named on stderr, and the others are answered; UserError is
    raised at the end then, and otherwise as `find` and `load` do.
    """
    pictures = find(arguments)
    predictor = load(workdir, ema=ema)
    unreadable = 0

    def readable() -> Iterator[Answer]:
        nonlocal unreadable
        for answer in classify(predictor, pictures, sys.stdin.buffer.read):
            if answer.problem:
                unreadable += 1
                print(f"{display.plain(answer.name)}: {answer.problem}.", file=sys.stderr)
            else:
                yield answer

    width = min(max(len(display.plain(name)) for name in pictures), _WIDTH)
    if form == "table":
        _table(readable(), width)
    else:
        {"json": _json, "csv": _csv}[form](readable())
    if unreadable:
        raise UserError(f"{unreadable:,} of {len(pictures):,} pictures could not be read.")


def _table(answers: Iterable[Answer], width: int) -> None:
    """A line for each picture, as soon as it is known; names are padded to `width`."""
    for answer in answers:
        top = (f"{display.plain(name)} {p:.1%}" for name, p in answer.classes[:_TOP])
        cells = "  ".join(f"{cell:<18}" for cell in top)
        print(f"{display.plain(answer.name):<{width}}  {cells}".rstrip())


def _json(answers: Iterable[Answer]) -> None:
    for answer in answers:
        classes = [{"name": name, "probability": p} for name, p in answer.classes]
        name = answer.name.encode(errors="backslashreplace").decode()
        print(json.dumps({"file": name, "classes": classes}))


def _csv(answers: Iterable[Answer]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, answer in enumerate(answers):
        if not number:
            top = range(1, min(_TOP, len(answer.classes)) + 1)
            writer.writerow(["file", *(f"{what}{n}" for n in top for what in ("class", "p"))])
        name = answer.name.encode(errors="backslashreplace").decode()
        cells = [cell for each, p in answer.classes[:_TOP] for cell in (each, f"{p:.6f}")]
        writer.writerow([name, *cells])
