"""One HTML page about a dataset, which holds all that it shows: bars of its classes, the pictures'
sizes, what was skipped, examples, and test pictures that are training pictures, too."""

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cifar_jax import files
from cifar_jax.data import duplicates
from cifar_jax.data.dataset import Split
from cifar_jax.data.duplicates import Pair
from cifar_jax.data.pictures import clean

_CLASSES, _EXAMPLES = 20, 10  # of which examples are shown, and how many of each
_SEED = 0  # that draws them
_SIZES = 10  # the most frequent ones
_PAIRS = 60
_LEVELS = (0.999, 0.995, duplicates.THRESHOLD, 0.98)  # of similarity, whose pairs are counted
_MAX_SIDE = 96  # of a picture on the page, in pixels of its own

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Dataset:
    source: str  # as config.data.name has it
    folder: Path
    splits: Mapping[str, Split]  # 'train' and 'test', which may be empty
    names: Mapping[str, Sequence[str]]  # by split: each image's file, or its number
    summary: str  # lines: how many were found, and what was skipped and why
    sizes: Counter[Size]  # of the pictures before they were resized


class Bar(NamedTuple):
    name: str
    train: int
    test: int


class Shown(NamedTuple):
    """A picture on the page."""

    png: bytes
    label: str
    name: str


class Match(NamedTuple):
    train: Shown
    test: Shown
    pair: Pair


def render(dataset: Dataset) -> str:
    """The page; names that are not text are escaped in it."""
    pairs = duplicates.find(dataset.splits["train"], dataset.splits["test"], min(_LEVELS))
    near = [p for p in pairs if p.similarity >= duplicates.THRESHOLD]
    bars = _bars(dataset)
    counts = {
        "train": [bar.train for bar in bars],
        "test": [bar.test for bar in bars],
    }
    frequent = sorted(dataset.sizes.items(), key=lambda item: (-item[1], item[0]))
    ordered = sorted(dataset.sizes, key=lambda size: (size[0] * size[1], size))
    template = files.template(
        Path(__file__).with_name("page.html.j2"), data=_data_uri, thousands="{:,}".format
    )
    return template.render(
        dataset=dataset,
        bars=bars,
        counts=counts,
        empty=[bar.name for bar in bars if not bar.train],
        sizes=frequent[:_SIZES],
        smallest=ordered[0],
        largest=ordered[-1],
        shape="x".join(map(str, dataset.splits["train"].shape)),
        examples=_examples(dataset),
        near=near,
        levels=_levels(pairs),
        threshold=duplicates.THRESHOLD,
        flat=duplicates.FLAT,
        matches=[_match(dataset, pair) for pair in near[:_PAIRS]],
    )


def _bars(dataset: Dataset) -> list[Bar]:
    names = dataset.splits["train"].class_names
    train, test = (
        np.bincount(dataset.splits[split].labels, minlength=len(names)).tolist()
        for split in ("train", "test")
    )
    return [Bar(clean(name), *found) for name, *found in zip(names, train, test, strict=True)]


def _examples(dataset: Dataset) -> dict[str, list[Shown]]:
    """Training pictures of the first classes, drawn by a fixed seed."""
    rng, train = np.random.default_rng(_SEED), dataset.splits["train"]
    found = {}
    for label, name in enumerate(train.class_names[:_CLASSES]):
        places = rng.permutation(np.flatnonzero(train.labels == label))[:_EXAMPLES]
        found[clean(name)] = [_shown(dataset, "train", place) for place in np.sort(places)]
    return found


def _levels(pairs: Sequence[Pair]) -> dict[str, tuple[int, int]]:
    """How many pairs are equal, and how many as similar as each level; of them, with two labels."""
    groups = {"equal": [pair for pair in pairs if pair.equal]}
    for level in _LEVELS:
        groups[f"{level} or more"] = [pair for pair in pairs if pair.similarity >= level]
    return {name: (len(group), sum(p.two_labels for p in group)) for name, group in groups.items()}


def _match(dataset: Dataset, pair: Pair) -> Match:
    shown = _shown(dataset, "train", pair.train), _shown(dataset, "test", pair.test)
    return Match(*shown, pair)


def _shown(dataset: Dataset, split: str, place: int) -> Shown:
    found = dataset.splits[split]
    label = found.class_names[found.labels[place]]
    return Shown(_png(found.images[place]), clean(label), clean(dataset.names[split][place]))


def _png(image: np.ndarray) -> bytes:
    """Of uint8 [H, W, C], made smaller where it is large."""
    file, picture = (
        io.BytesIO(),
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image),
    )
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    picture.save(file, "PNG")
    return file.getvalue()


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
