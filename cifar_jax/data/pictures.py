"""Picture files and their labels as a dataset: listed, decoded once, and what was skipped.

The files are only read. Which of them make up the dataset is a `Listing`; `load` turns it into
arrays, from the cache where these very files were decoded before.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cifar_jax.data import picture_cache, progress
from cifar_jax.data.dataset import Split
from cifar_jax.data.decode import Unreadable, decode
from cifar_jax.data.picture_cache import Decoded
from cifar_jax.errors import UserError, reason

VERSION = 2  # of what `decode` makes of a file: another one, and all are decoded again
_MAX_BYTES = 1 << 28  # of a file, which is read whole
_SHOWN = 3  # names that a line lists
SPLITS = ("train", "test")

_said: set[str] = set()  # listings whose summary this process has printed
_unsaved: dict[str, Decoded] = {}  # where the cache cannot be written: for the other split


@dataclasses.dataclass(frozen=True)
class Picture:
    name: str  # its path relative to the dataset's folder
    path: Path
    label: int
    state: tuple[int, int, int]  # size in bytes, time of change of content and of inode in ns


@dataclasses.dataclass(frozen=True)
class Listing:
    what: str  # as "folder D"
    folder: Path  # the user's, that nothing is written to
    pictures: Mapping[str, Sequence[Picture]]  # by split, in the order of the dataset
    class_names: tuple[str, ...]
    skipped: Mapping[str, Sequence[str]]  # what was not a picture: names by reason

    def key(self, shape: tuple[int, ...]) -> str:
        """SHA-256 of all that decides the decoded arrays; the state of a file stands for its
        content, so that a start does not read them all. Labels and class names are not in it."""
        text = hashlib.sha256(f"{VERSION} {shape}".encode())
        for split in SPLITS:
            for each in self.pictures[split]:
                text.update(b"\0%b\0%b\0" % (split.encode(), os.fsencode(each.name)))
                text.update(repr(each.state).encode())
        return text.hexdigest()


def load(listing: Listing, shape: tuple[int, ...], split: str, cache: Path) -> Split:
    """The pictures of the split that can be read, each of `shape` [H, W, C], and their labels.
    Raises UserError as `decoded`."""
    return split_of(listing, decoded(listing, shape, split, cache), split)


def split_of(listing: Listing, found: Decoded, split: str) -> Split:
    """The images of the split, which `found` has, with their labels."""
    labels = [each.label for each in readable(listing, found, split)]
    return Split(found.images[split], np.array(labels, np.int32), listing.class_names)


def readable(listing: Listing, found: Decoded, split: str) -> list[Picture]:
    """The split's pictures whose images `found` has, in their order."""
    damaged = found.damaged[split]
    return [each for i, each in enumerate(listing.pictures[split]) if i not in damaged]


def decoded(listing: Listing, shape: tuple[int, ...], split: str, cache: Path) -> Decoded:
    """The images of the split, each of `shape` [H, W, C], and what was damaged in both.

    Decodes both splits where the folder `cache` does not have them, and keeps them there. The first
    call for a listing prints what was found and skipped. Raises UserError where a class has no
    training picture.
    """
    key = listing.key(shape)
    found = _unsaved.pop(key, None) or _kept_or_decoded(listing, shape, split, cache / key)
    check_classes(listing, found.damaged["train"])
    if key not in _said:
        _said.add(key)
        print(summary(listing, found, shape), flush=True)
    return found


def state(path: Path) -> tuple[int, int, int]:
    """Of a file, links followed, as `Picture` has it. Raises OSError where there is none."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is not a file")
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


# -- listing -------------------------------------------------------------------------------------


def clean(name: str) -> str:
    """A name of a file or class as it can be printed and stored: composed (NFC), without control
    characters or bytes that are no text."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_names(what: str, names: Sequence[str]) -> None:
    """Raises UserError for fewer than two classes, and for two that differ by case only."""
    if len(names) < 2:
        found = f"only the class {names[0]}" if names else "no class"
        raise UserError(
            f"{what} has {found} with training pictures, expected two or more. "
            "docs/your_data.md shows the layouts."
        )
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise UserError(
                f"{what} has the classes {other} and {name}, which differ by case only. Make them "
                "one, or give one another name."
            )


def check_test(what: str, train: Iterable[str], test: Iterable[str]) -> None:
    """Raises UserError for a class of the test pictures that no training picture has."""
    if unknown := sorted(set(test) - set(train)):
        raise UserError(
            f"{what} has test pictures of {listed(unknown)}, of which there is no training "
            "picture. Add some, or take the test pictures out."
        )


def check_classes(listing: Listing, damaged: Mapping[int, str]) -> None:
    """Raises UserError where no training picture of a class is left."""
    pictures = listing.pictures["train"]
    left = {each.label for i, each in enumerate(pictures) if i not in damaged}
    if empty := [name for i, name in enumerate(listing.class_names) if i not in left]:
        raise UserError(
            f"{listing.what} has no training picture that can be read of {listed(empty)}. Add "
            "some, or take the class out."
        )


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join([*names[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])])


def summary(listing: Listing, found: Decoded, shape: tuple[int, ...]) -> str:
    """A few lines: how many pictures, what was skipped and why, and what is in both splits."""
    counts = {k: len(listing.pictures[k]) - len(found.damaged[k]) for k in SPLITS}
    lines = [
        f"{listing.what}: {counts['train']:,} training and {counts['test']:,} test pictures of "
        f"{len(listing.class_names)} classes, as {'x'.join(map(str, shape))}"
    ]
    damaged = [
        f"{clean(listing.pictures[k][i].name)}: {why}"
        for k in SPLITS
        for i, why in sorted(found.damaged[k].items())
    ]
    skipped = {**listing.skipped, "unreadable": damaged}
    if parts := [f"{len(n):,} {why} ({listed(n)})" for why, n in skipped.items() if n]:
        lines.append(f"skipped {sum(map(len, skipped.values())):,}: {'; '.join(parts)}")
    if found.duplicates:
        lines.append(
            f"{len(found.duplicates):,} test pictures are training pictures, too, byte for byte "
            f"({listed([clean(name) for name in found.duplicates])}): the accuracy will look "
            "better than it is"
        )
    return "\n".join(lines)


def _kept_or_decoded(listing: Listing, shape: tuple[int, ...], split: str, entry: Path) -> Decoded:
    """From the cache's `entry`. Where it is not there, this process decodes, or waits for the one
    that does."""
    counts = {name: len(listing.pictures[name]) for name in SPLITS}
    with picture_cache.locked(entry, listing.folder, shared=True):
        found = picture_cache.read(entry, split, counts, shape)
    if found is not None:
        return found
    with picture_cache.locked(entry, listing.folder):
        # Another one may have written it since.
        found = picture_cache.read(entry, split, counts, shape, report=False)
        if found is None:
            found = _decode(listing, shape)
            if not picture_cache.write(entry, found, listing.folder):
                _unsaved[entry.name] = found
    return found


# -- decoding ------------------------------------------------------------------------------------


def _decode(listing: Listing, shape: tuple[int, ...]) -> Decoded:
    """All pictures of both splits, in threads: Pillow decodes without Python's lock."""
    work = [(split, i) for split in SPLITS for i in range(len(listing.pictures[split]))]
    images = {k: np.empty((len(listing.pictures[k]), *shape), np.uint8) for k in SPLITS}
    sums: dict[tuple[str, int], bytes] = {}
    damaged: dict[str, dict[int, str]] = {k: {} for k in SPLITS}

    def one(place: tuple[str, int]) -> None:
        split, i = place
        try:
            content = _content(listing.pictures[split][i])
            images[split][i] = decode(content, shape)
            sums[place] = hashlib.sha256(content).digest()
        except (Unreadable, OSError) as error:
            damaged[split][i] = reason(error)

    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        with progress.shown("decoding") as report:
            for done, _ in enumerate(pool.map(one, work), 1):
                report(done, len(work))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for those that are left
    trained = {digest for (split, _), digest in sums.items() if split == "train"}
    duplicates = [
        each.name
        for i, each in enumerate(listing.pictures["test"])
        if sums.get(("test", i)) in trained
    ]
    for split, bad in damaged.items():
        if bad:
            images[split] = np.delete(images[split], list(bad), axis=0)
    return Decoded(images, damaged, duplicates)


def _content(picture: Picture) -> bytes:
    if picture.state[0] > _MAX_BYTES:
        raise Unreadable(f"it has {picture.state[0]:,} bytes, expected at most {_MAX_BYTES:,}")
    return picture.path.read_bytes()
