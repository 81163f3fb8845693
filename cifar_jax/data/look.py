"""Writes a page about a dataset, to look at before anybody trains on it.

    python -m cifar_jax.data.look DIR

DIR is a folder of pictures with a folder for each class, one with train.csv and test.csv or with
train.npz and test.npz, or one of CIFAR-10, CIFAR-100 or SVHN. It is only read.
"""

import concurrent.futures
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax import errors, files
from cifar_jax.data import decode, flags, page, pictures, sources
from cifar_jax.data.page import Dataset, Size
from cifar_jax.data.sources.pictures import PictureSource
from cifar_jax.errors import UsageError, UserError, reason, unknown
from cifar_jax.loop import signals
from cifar_jax.telemetry import streams

_NAMES = ("folder", "csv", "npz", "cifar10", "cifar100", "svhn")  # with files at hand


def look(config: ConfigDict, out: Path) -> None:
    """Writes the page about the dataset of `config` (config.data) to the file `out`: whole, or not
    at all. Raises UserError as the sources do, and where `out` cannot be written."""
    _check_out(out)
    text = page.render(load(config))
    try:
        files.write(out, text)
    except OSError as error:
        raise _not_writable(out, error) from error
    print(f"The page is {out}")


def load(config: ConfigDict) -> Dataset:
    """The dataset of `config` (config.data), whose folder is only read. Prints what was skipped."""
    source, folder = sources.find(config), sources.data_dir(config)
    if not source.holds(folder):  # others would download it into the user's folder
        raise UserError(
            f"{folder} is not laid out as '{config.name}'. docs/your_data.md shows the layouts."
        )
    if isinstance(source, PictureSource):
        return _of_pictures(config, source)
    splits = {"train": sources.load(config, "train"), "test": source.load(config, "test")}
    names = {split: [f"{split} {i}" for i in range(len(found))] for split, found in splits.items()}
    train, test = splits["train"], splits["test"]
    summary = (
        f"{config.name} {folder}: {len(train):,} training and {len(test):,} test pictures of "
        f"{len(train.class_names):,} classes. Nothing was skipped."
    )
    print(summary.partition(". ")[0], flush=True)
    sizes: Counter[Size] = Counter()
    for split in splits.values():
        sizes[split.images.shape[1:3]] += len(split)
    return Dataset(config.name, folder, splits, names, summary, +sizes)


def _of_pictures(config: ConfigDict, source: PictureSource) -> Dataset:
    listing, shape, cache = source.listing(config), source.shape(config), source.cache()
    splits, names, summary = {}, {}, ""
    sizes: Counter[Size] = Counter()
    for split in sources.SPLITS:
        found = pictures.decoded(listing, shape, split, cache)
        splits[split] = pictures.split_of(listing, found, split)
        readable = pictures.readable(listing, found, split)
        names[split] = [each.name for each in readable]
        sizes += _sizes([each.path for each in readable])
        summary = pictures.summary(listing, found, shape)
    return Dataset(config.name, listing.folder, splits, names, summary, sizes)


def _sizes(paths: Sequence[Path]) -> Counter[Size]:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return Counter(filter(None, pool.map(_size, paths)))


def _size(path: Path) -> Size | None:
    try:
        return decode.size(path)
    except decode.Unreadable:  # since it was decoded
        return None


# -- the command line ----------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> tuple[ConfigDict, Path]:
    """The dataset as config.data describes it, and the page's file. Raises UserError."""
    config = flags.defaults()
    parser = flags.Parser("cifar_jax.data.look", __doc__)
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument("--name", metavar="|".join(_NAMES), help="what DIR is; else as it looks")
    parser.add_argument("--out", default="look.html", metavar="FILE", help="the page")
    parser.add_argument("--size", type=flags.numbers, default=config.pictures.size, metavar="H,W")
    for flag, of, field in (
        ("--channels", config.pictures, "channels"),
        ("--folder-test", config.folder, "test"),
        ("--csv-path", config.csv, "path"),
        ("--csv-label", config.csv, "label"),
    ):
        parser.add_argument(flag, type=type(of[field]), default=of[field], metavar="VALUE")
    args = parser.parse_args(argv)
    folder, out = files.resolve(args.dir, "DIR"), files.resolve(args.out, "--out")
    config.pictures.update(size=args.size * (3 - len(args.size[:2])), channels=args.channels)
    config.folder.test = args.folder_test
    config.csv.update(path=args.csv_path, label=args.csv_label)
    config.update(dir=str(folder), name=args.name or _recognised(folder))
    if config.name not in _NAMES:
        raise unknown("--name", config.name, _NAMES)
    sources.check(config)
    if out.suffix.lower() not in (".html", ".htm"):  # least of all one of the pictures
        raise UsageError(f"--out={out}, expected a name that ends in .html.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"--out={out} is in {folder}, which is only read. Choose another place.")
    return config, out


def _recognised(folder: Path) -> str:
    """The source that `folder` is laid out for. Raises UserError for none or several."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, expected one that holds a dataset.")
    found = sources.recognise(folder)
    if len(found) > 1:
        raise UsageError(
            f"{folder} holds {' and '.join(found)}. Choose one of them with --name={found[0]}."
        )
    if not found:
        raise UserError(
            f"{folder} holds no dataset, expected folders of pictures, train.csv, train.npz or "
            "CIFAR-10's or CIFAR-100's folder. docs/your_data.md shows the layouts."
        )
    return found[0]


def _check_out(out: Path) -> None:
    """Raises UserError where the page will not be writable, before long work is done for it."""
    if out.is_dir():
        raise _not_writable(out, IsADirectoryError("it is a folder"))
    if not out.parent.is_dir():
        raise _not_writable(out, FileNotFoundError(f"there is no folder {out.parent}"))
    if not os.access(out.parent, os.W_OK):
        raise _not_writable(out, PermissionError("permission denied"))


def _not_writable(out: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write to {out}: {reason(error)}. Expected a writable folder with free space: make "
        "one there or choose another."
    )


def main(argv: Sequence[str]) -> int:
    return errors.exit_code(lambda: signals.until_left(lambda: look(*_parse(argv))))


if __name__ == "__main__":
    streams.protect()
    signals.listen()
    signals.unwind()
    code = main(sys.argv[1:])
    if code > 128:
        signals.leave(code)
    sys.exit(code)
