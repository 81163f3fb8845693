"""Turns a dataset into shards, from which training can read more images than memory holds.

    python -m cifar_jax.data.prepare --source=cifar10 --out=DIR

Both splits go to DIR, which appears when it is complete; what was interrupted is started again with
the same command. The flags of the sources are the fields of config.data, and have their defaults.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from cifar_jax import errors, files
from cifar_jax.data import flags, progress, shards, sources
from cifar_jax.errors import UsageError, unknown
from cifar_jax.loop import signals
from cifar_jax.telemetry import streams

_FLAGS = {"name": "--source", "dir": "--data-dir"}  # others have the names of their fields


def prepare(config: ConfigDict, out: Path, num_shards: int) -> None:
    """Writes the splits of the dataset of `config` (config.data) to `out`: both, or nothing.

    Raises UserError as `sources.examples` and `shards.write` do.
    """
    name = sources.find(config).title(config)
    with shards.appearing(out) as part:
        for split in sources.SPLITS:
            examples = sources.examples(config, split)
            with progress.shown(split) as report:
                shards.write(part, split, examples, num_shards, report, name)
    print(f"The shards are in {out}")


def _parse(argv: Sequence[str]) -> tuple[ConfigDict, Path, int]:
    """The source's config, the folder and the number of shards; raises UsageError."""
    parser = flags.Parser("cifar_jax.data.prepare", __doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="where the shards go")
    parser.add_argument("--num-shards", type=int, default=8, metavar="N", help="files a split")
    fields = _source_fields()
    for path, default in fields.items():
        flag = _FLAGS.get(path) or "--" + path.replace(".", "-").replace("_", "-")
        parser.add_argument(flag, dest=path, type=flags.reader(default), default=default)
    args = vars(parser.parse_args(argv))
    config = ConfigDict(
        traverse_util.unflatten_dict({path: args[path] for path in fields}, sep=".")
    )
    if config.name not in sources.SOURCES:
        raise unknown("--source", config.name, sources.SOURCES)
    sources.check(config)
    if args["num_shards"] < 1:
        raise UsageError(f"--num-shards = {args['num_shards']}, expected 1 or more.")
    return config, files.resolve(args["out"], "--out"), args["num_shards"]


def _source_fields() -> dict[str, Any]:
    """What the sources read of config.data by its path there, with the defaults: the name, the
    folder, and the fields of single sources."""
    flat = traverse_util.flatten_dict(flags.defaults().to_dict(), sep=".")
    return {path: value for path, value in flat.items() if path in _FLAGS or "." in path}


def main(argv: Sequence[str]) -> int:
    return errors.exit_code(lambda: signals.until_left(lambda: prepare(*_parse(argv))))


if __name__ == "__main__":
    streams.protect()
    signals.listen()
    signals.unwind()
    code = main(sys.argv[1:])
    if code > 128:
        signals.leave(code)
    sys.exit(code)
