"""Pictures of a command line: `main.py --mode=predict`."""

import contextlib
import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cifar_jax import files
from cifar_jax.data.decode import SUFFIXES, Unreadable, decode
from cifar_jax.errors import UsageError, UserError, reason
from cifar_jax.predict import heat_map
from cifar_jax.predict.predictor import MAX_BATCH, Predictor, load
from cifar_jax.telemetry import display

STDIN = "-"
FORMATS = ("table", "json", "csv")
_TOP = 3  # classes that are told of a picture
_WIDTH = 60  # of the names in a table, but for longer ones
_MAX_BYTES = 1 << 28  # of standard input


class Answer(NamedTuple):
    name: str
    classes: list[tuple[str, float]]  # all, the most probable first; [] for what is unreadable
    image: np.ndarray | None = None  # as it was decoded, uint8; None for what is unreadable
    problem: str = ""


def classify(
    predictor: Predictor, pictures: Iterable[str], stdin: Callable[[int], bytes] | None = None
) -> Iterator[Answer]:
    """The answer for each of `pictures`, in their order: names of files, or "-" for what `stdin`
    gives. They are decoded in threads while the device computes, a few batches ahead."""
    size, names = MAX_BATCH // 8, iter(pictures)

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
    images, problems = {}, {}
    for place, (_, future) in enumerate(batch):
        try:
            images[place] = future.result()
        except (Unreadable, OSError) as error:
            problems[place] = reason(error)
    probabilities = iter(predictor(np.stack(list(images.values()))) if images else ())
    for place, (name, _) in enumerate(batch):
        if problem := problems.get(place):
            yield Answer(name, [], problem=problem)
        else:
            yield Answer(name, predictor.ranked(next(probabilities)), images[place])


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
    workdir: str | os.PathLike[str],
    arguments: Sequence[str],
    form: str,
    *,
    step: int | str | None = None,
    ema: bool = True,
    show: str = "",
) -> None:
    """Prints the classes of the pictures that `arguments` name (`find`), as one of `FORMATS`; with
    `show`, a folder, draws there what the network saw of each (`heat_map.draw`).

    `step` and `ema` are those of `load`. A picture that cannot be read is named on stderr, and the
    others are answered; UserError is raised at the end then, and otherwise as `find` and `load` do.
    """
    pictures = find(arguments)
    drawings = _Drawings(show) if show else None
    predictor = load(workdir, step=step, ema=ema)
    unreadable = 0

    def readable() -> Iterator[Answer]:
        nonlocal unreadable
        for answer in classify(predictor, pictures, sys.stdin.buffer.read):
            if answer.problem:
                unreadable += 1
                print(f"{display.plain(answer.name)}: {answer.problem}.", file=sys.stderr)
            else:
                if drawings:
                    drawings.add(predictor, answer)
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


class _Drawings:
    """PNG files of what the network saw, one for each picture, named after it."""

    def __init__(self, folder: str):
        """Raises UserError where the folder cannot be made."""
        self._folder = files.resolve(folder, "--show")
        self._count: dict[str, int] = {}  # by name: pictures of several folders may share theirs
        with self._reported():
            self._folder.mkdir(parents=True, exist_ok=True)

    def add(self, predictor: Predictor, answer: Answer) -> None:
        """Raises UserError where the folder cannot be written to."""
        assert answer.image is not None
        name = "stdin" if answer.name == STDIN else Path(answer.name).name
        count = self._count[name] = self._count.get(name, 0) + 1
        file = io.BytesIO()
        picture = heat_map.draw(*predictor.look(answer.image), answer.classes[:_TOP])
        Image.fromarray(picture).save(file, "PNG")
        number = f".{count}" if count > 1 else ""
        with self._reported():
            # No picture has such a name but one that was drawn by an earlier call.
            files.write(self._folder / f"{name}{number}.seen.png", file.getvalue())

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"Cannot write to {self._folder}: {reason(error)}.") from error
