"""Your own pictures in a table: train.csv and test.csv, with a file and its class on each line.

Either may be a Parquet file in its place: train.parquet, test.parquet. Paths are relative to the
table's folder. Classes are sorted by name, whole numbers by value.
"""

import csv
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.data import pictures
from cifar_jax.data.pictures import Listing, Picture
from cifar_jax.data.sources.pictures import PictureSource
from cifar_jax.errors import UsageError, UserError, reason

Rows = list[tuple[str, str]]  # path and class


class Csv(PictureSource):
    def holds(self, folder: Path) -> bool:
        names = (f"{split}.{kind}" for split in pictures.SPLITS for kind in ("csv", "parquet"))
        return any((folder / name).is_file() for name in names)

    def listing(self, config: ConfigDict) -> Listing:
        return find(self.dir(config), config.csv.path, config.csv.label)


def find(folder: Path, path: str, label: str) -> Listing:
    """The pictures that the tables in `folder` name in the columns `path` and `label`.

    Raises UserError for a table that cannot be read or lacks a column, for a file that does not
    exist, for a test class without training pictures, and for fewer than two classes.
    """
    what = f"csv {folder}"
    rows = {split: _rows(folder, split, path, label) for split in pictures.SPLITS}
    names = _sorted({name for _, name in rows["train"]})
    pictures.check_names(what, names)
    pictures.check_test(what, names, (name for _, name in rows["test"]))
    labels = {name: number for number, name in enumerate(names)}
    listings: dict[str, list[Picture]] = {}
    missing = []
    for split, found in rows.items():
        listings[split] = of_split = []
        for name, each in found:
            full = folder / name
            try:
                of_split.append(Picture(name, full, labels[each], pictures.state(full)))
            except (OSError, ValueError) as error:  # ValueError: a null character
                missing.append(f"{pictures.clean(name)} of {split}: {reason(error)}")
    if missing:
        raise UserError(
            f"{what}: {len(missing):,} files cannot be found ({pictures.listed(missing)}). "
            f"Expected paths relative to {folder}."
        )
    return Listing(what, folder, listings, tuple(names), {})


def _sorted(names: set[str]) -> list[str]:
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _rows(folder: Path, split: str, *columns: str) -> Rows:
    """What the split's table has in the two columns; raises UserError."""
    file = folder / f"{split}.csv"
    if not file.exists() and file.with_suffix(".parquet").exists():
        file = file.with_suffix(".parquet")
    rows = (_parquet if file.suffix == ".parquet" else _csv)(file)
    if absent := [name for name in columns if name not in rows]:
        raise UserError(
            f"{file} has no column '{absent[0]}', but {pictures.listed(list(rows))}. Name yours "
            "with --config.data.csv.path and --config.data.csv.label."
        )
    found = [
        (str(p), pictures.clean(str(n))) for p, n in zip(*(rows[c] for c in columns), strict=True)
    ]
    for number, row in enumerate(found, 1):
        if "" in row:
            raise UserError(f"{file}: picture {number} has no path or no class. Complete its line.")
    return found


def _csv(file: Path) -> dict[str, list[Any]]:
    """The columns by their names."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, restval="")
            rows = list(reader)
            return {name: [row[name] for row in rows] for name in reader.fieldnames or ()}
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(file, error) from error


def _parquet(file: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"{file} needs pyarrow, which is not installed: pip install pyarrow, or write a CSV."
        ) from error
    try:
        found = pyarrow.parquet.read_table(file).to_pydict()
        return {name: ["" if v is None else v for v in values] for name, values in found.items()}
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file}: {reason(error)}. Expected a table in UTF-8 with a header, a picture a line."
    )
