"""Your own pictures in folders, one a class.

    D/train/<class>/…  and  D/test/<class>/…   or   D/<class>/…

In the second layout a share of each class, config.data.folder.test, is drawn as the test split: by
the files' names, so that a picture stays where it is when others are added. Pictures lie in a class
folder at any depth, and come in the order of their files' names, whatever their class. Links are
followed; hidden files and folders are not looked at.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax.data import pictures
from cifar_jax.data.decode import SUFFIXES
from cifar_jax.data.pictures import Listing, Picture
from cifar_jax.data.sources.pictures import PictureSource
from cifar_jax.errors import UsageError, UserError, reason

_REASONS = "not pictures", "not in a class's folder", "not to be opened"
File = tuple[str, Path, tuple[int, int, int]]  # name below the folder, path, state
Skipped = dict[str, list[str]]  # names by reason
_HIDDEN = ".", "__MACOSX"  # what the names of folders and files begin with that nobody made


class Folder(PictureSource):
    def check(self, config: ConfigDict) -> None:
        super().check(config)
        if not 0 < (share := config.folder.test) < 1:
            raise UsageError(
                f"config.data.folder.test = {share}, expected a share between 0 and 1."
            )

    def holds(self, folder: Path) -> bool:
        return any(_is_folder(entry) for entry in _entries(folder))

    def listing(self, config: ConfigDict) -> Listing:
        return find(self.dir(config), config.folder.test)


def find(folder: Path, share: float) -> Listing:
    """The pictures in `folder`, of which `share` are for the test where no folder says which.

    Raises UserError for folders that cannot be read or are laid out otherwise, for a class without
    training pictures, and for fewer than two classes.
    """
    what = f"folder {folder}"
    skipped: Skipped = {why: [] for why in _REASONS}
    top = [entry.name for entry in _entries(folder) if _is_folder(entry)]
    if "train" in top or "test" in top:
        if missing := {"train", "test"} - set(top):
            raise UserError(
                f"{what} has no folder {min(missing)} beside the other one. Expected train and "
                "test, each with a folder a class, or the classes' folders alone."
            )
        found = {s: _classes(folder, s, skipped) for s in ("train", "test")}
    else:
        found = _drawn(_classes(folder, "", skipped), share)
    if empty := [name for name, files in found["train"].items() if not files]:
        raise UserError(
            f"{what} has no training picture of {pictures.listed(empty)}. Put pictures there, or "
            "take the folder away."
        )
    names = sorted(found["train"])
    pictures.check_names(what, names)
    pictures.check_test(what, names, found["test"])
    labels = {name: label for label, name in enumerate(names)}
    listings = {
        split: sorted(
            (
                Picture(name, path, labels[each], state)
                for each, of_class in classes.items()
                for name, path, state in of_class
            ),
            # So a dataset that was written out with rising numbers comes back in its order, and
            # trains to the same parameters.
            key=lambda picture: (picture.path.name, picture.name),
        )
        for split, classes in found.items()
    }
    return Listing(what, folder, listings, tuple(names), skipped)


def _classes(folder: Path, below: str, skipped: Skipped) -> dict[str, list[File]]:
    """The pictures of each class whose folder is in `folder`/`below`, sorted by their names."""
    found: dict[str, list[File]] = {}
    for entry in _entries(folder / below):
        name = str(Path(below, entry.name))
        if _is_folder(entry):
            files = sorted(_pictures(folder, name, skipped))
            found.setdefault(pictures.clean(entry.name), []).extend(files)
        else:
            skipped["not in a class's folder"].append(pictures.clean(name))
    return found


def _pictures(folder: Path, below: str, skipped: Skipped) -> Iterator[File]:
    """The pictures at any depth of `folder`/`below`. Each folder is entered once, as links
    may make loops."""
    open_folders, seen = [below], set()
    while open_folders:
        below = open_folders.pop()
        if (real := (folder / below).resolve()) in seen:
            continue
        seen.add(real)
        for entry in _entries(folder / below):
            name = str(Path(below, entry.name))
            if _is_folder(entry):
                open_folders.append(name)
            elif Path(name).suffix.lower() not in SUFFIXES:
                skipped["not pictures"].append(pictures.clean(name))
            else:
                try:
                    yield name, Path(entry.path), pictures.state(Path(entry.path))
                except OSError as error:  # a link to nowhere
                    skipped["not to be opened"].append(f"{pictures.clean(name)}: {reason(error)}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in the folder, sorted by name, without what is hidden."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(_HIDDEN)]
    except OSError as error:
        raise UserError(
            f"{folder}: {reason(error)}. Expected a folder of pictures that can be read."
        ) from error
    return sorted(found, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _drawn(classes: dict[str, list[File]], share: float) -> dict[str, dict[str, list[File]]]:
    """Splits each class: `share` of it for the test, and at least one picture where it has two."""
    found: dict[str, dict[str, list[File]]] = {"train": {}, "test": {}}
    for name, files in classes.items():
        count = min(max(1, round(share * len(files))), len(files) - 1)
        order = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file[0])).digest())
        found["test"][name] = sorted(order[: max(count, 0)])
        found["train"][name] = sorted(order[max(count, 0) :])
    return found
