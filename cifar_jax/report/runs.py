"""What is known of a run: the records in its workdir, and its newest checkpoint's predictions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax import files
from cifar_jax.errors import UserError, reason
from cifar_jax.models.overview import LayerRow
from cifar_jax.telemetry import predictions
from cifar_jax.workdir import description, records

_MAX_DEPTH = 20  # of a config


class Evaluation(NamedTuple):
    """Predictions on the test split by the EMA of a checkpoint."""

    step: int
    predictions: predictions.Predictions
    images: np.ndarray  # uint8 [N, H, W, C]
    class_names: tuple[str, ...]
    params: Any  # nested dicts of numpy arrays
    layers: Sequence[LayerRow]
    class_counts: Sequence[int] = ()  # training images by class, where they are known


class Run(NamedTuple):
    name: str
    workdir: Path
    record: dict[str, Any]  # config.json
    records: list[records.Record]
    evaluation: Evaluation | None
    missing: str  # why there is no evaluation


def load(workdir: Path, evaluate: Callable[[Path], Evaluation]) -> Run:
    """What `workdir` holds and what `evaluate` finds, whose UserError is kept for the page.

    Raises UserError where nothing was trained, or what is there cannot be read.
    """
    try:
        record = _record(workdir)
        lines = records.read(workdir / records.FILE)
    except FileNotFoundError:
        raise UserError(
            f"{workdir} has no {description.FILE}: nothing was trained there."
        ) from None
    except OSError as error:
        raise UserError(f"{workdir} cannot be read: {reason(error)}.") from error
    evaluation, missing = None, ""
    try:
        evaluation = evaluate(workdir)
    except UserError as error:
        missing = str(error)
    except FileNotFoundError:
        missing = "Its newest checkpoint was deleted before it was read."
    return Run(workdir.resolve().name, workdir, record, lines, evaluation, missing)


def _record(workdir: Path) -> dict[str, Any]:
    """config.json, which is untrusted: besides the config, values of an unexpected type are left
    out."""
    path = workdir / description.FILE
    try:
        record = files.read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not a config of cifar_jax ({reason(error)}).") from error
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(config, dict) or _deeper(config, _MAX_DEPTH):
        raise UserError(
            f"{path} is not a config of cifar_jax (it has no fields, or too deep ones)."
        )
    description.load(workdir)  # refuses what is not a config otherwise
    dataset = description.load_dataset(workdir)
    if dataset is None:
        raise FileNotFoundError(path)  # deleted meanwhile
    versions = record.get("versions")
    changes = record.get("changes")
    return {
        "config": config,
        "dataset": dataset.to_json(),
        "versions": _texts(versions) if isinstance(versions, dict) else {},
        "changes": [c for c in changes if _is_change(c)] if isinstance(changes, list) else [],
        **{name: v for name in ("git_commit", "device") if isinstance(v := record.get(name), str)},
    }


def _deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return False
    return depth == 0 or any(_deeper(each, depth - 1) for each in inner)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _is_change(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and type(found.get("step")) is int
        and isinstance(found.get("was"), dict)
        and isinstance(found.get("is"), dict)
        and not _deeper(found, _MAX_DEPTH)
    )


def with_unique_names(runs: Iterable[Run]) -> list[Run]:
    """A workdir once; names that are the same grow by the folders above until they differ."""
    unique = {run.workdir.resolve(): run for run in runs}
    names, depth = [run.name for run in unique.values()], 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in unique]
    return [run._replace(name=name) for run, name in zip(unique.values(), names, strict=True)]
