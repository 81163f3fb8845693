"""A workdir's config.json: the config of the run, its dataset, versions and devices."""

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.config import check_fields, flat, recipe, resolve
from cifar_jax.data import sources, splits
from cifar_jax.data.dataset import Description
from cifar_jax.errors import UsageError, UserError, reason, unknown

FILE = "config.json"
MEMBERS = "members"  # the workdirs of several networks that train together
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
OPTIONAL = "onednn-cpu-gomp"  # its operations are used where it is installed

# A workdir belongs to one model on one dataset, drawn and optimised in one way. Everything else may
# change when a run is resumed: its length, the rate, the batch size, how often it is saved.
_IDENTITY = (
    "seed",
    "num_seeds",
    "sweep",
    "model",
    "data",
    "inputs.size",
    "inputs.standardize.by",
    "optim.name",
    "optim.decoupled_decay",
)
# Where the same images are stored on this machine, and how they get to the device.
_MACHINE = (
    "cluster",
    "join_seconds",
    "heartbeat_seconds",
    "data.dir",
    "data.shards",
    "data.placement",
    "data.num_threads",
    "data.prefetch",
)
_FIRST_START = ("init_from",)  # means nothing to a run that has a checkpoint of its own
# Of these, only what decides which arrays the optimiser's state holds.
_STATE: dict[str, Callable[[Any], Any]] = {
    "optim.momentum": bool,
    "optim.groups": lambda groups: [
        {name: bool(value) if name == "momentum" else value for name, value in group.items()}
        | dict.fromkeys(("learning_rate", "weight_decay", "epochs", "nesterov", "betas"))
        for group in groups
        if isinstance(group, dict)
    ],
}


def store(config: ConfigDict, workdir: Path, step: int, device: str, dataset: Description) -> None:
    """Writes the resolved config with `dataset`, versions, git commit and `device`, as valid
    from `step` on; earlier values are kept under "changes".

    The data folder is written in full: evaluation may start elsewhere, or without $CIFAR_JAX_DATA.

    Of several processes, the first one does it. Raises UserError where `workdir` cannot be made or
    written.
    """
    if jax.process_index():
        return
    fields = config.to_dict()
    fields["data"]["dir"] = str(sources.data_dir(config.data))
    if config.data.shards:
        fields["data"]["shards"] = str(splits.shards_dir(config.data))
    record = {
        "config": fields,
        "dataset": dataset.to_json(),
        "versions": _versions(),
        "git_commit": _git_commit(),
        "device": device,
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        record["changes"] = _changes(workdir / FILE, record, step)
        files.write(workdir / FILE, files.to_json(record))
    except OSError as error:
        raise _unusable(workdir, error) from error


def _versions() -> dict[str, str]:
    """Of what a run's bits depend on."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found[OPTIONAL] = importlib.metadata.version(OPTIONAL)
    return {"python": platform.python_version(), **found}


def member(workdir: Path, number: int) -> Path:
    """The workdir of one of several networks that train together."""
    return workdir / MEMBERS / str(number)


def members(workdir: Path) -> list[Path]:
    """The workdirs of all of them, in their order; [] where there is one network."""
    found = [path for path in (workdir / MEMBERS).glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def _changes(path: Path, record: dict[str, Any], step: int) -> list[dict[str, Any]]:
    """The changes in the course of the run, up to `record` from `step` on: for each the step, and
    the fields as they were and are. Those of steps that the run went back before are dropped."""
    try:
        stored = files.read_json(path)
        changes = list(stored.pop("changes", []))
        held = flat(stored)
        while changes and changes[-1]["step"] >= step:
            held |= changes.pop()["was"]
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return []  # no config.json, or not ours
    now = flat(json.loads(json.dumps(record)))
    different = [name for name in held | now if held.get(name) != now.get(name)]
    if not step or not different:
        return changes
    was, now = ({name: of.get(name) for name in different} for of in (held, now))
    return [*changes, {"step": step, "was": was, "is": now}]


def _unusable(workdir: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot use the workdir {workdir}: {reason(error)}. Choose another with --workdir=DIR."
    )


def load(workdir: Path) -> ConfigDict:
    """The stored config. Raises FileNotFoundError without one, UserError for a damaged one and for
    that of an earlier version."""

    def with_tuples(value: Any) -> Any:  # JSON knows lists only
        if isinstance(value, dict):
            return {name: with_tuples(entry) for name, entry in value.items()}
        return tuple(map(with_tuples, value)) if isinstance(value, list) else value

    with _reading(workdir):
        record = files.read_json(workdir / FILE)
        _check_version(workdir, record)
        return ConfigDict(with_tuples(dict(record["config"])))


def load_dataset(workdir: Path) -> Description | None:
    """The dataset that the run is trained on, as its first start has measured it; None where there
    is no run yet. Raises UserError as `load` does."""
    with contextlib.suppress(FileNotFoundError), _reading(workdir):
        record = files.read_json(workdir / FILE)
        _check_version(workdir, record)
        return Description.from_json(record["dataset"])
    return None


@contextlib.contextmanager
def _reading(workdir: Path) -> Iterator[None]:
    """Turns any error that a damaged config.json causes into a UserError; not FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(workdir, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{workdir / FILE} is not a config of cifar_jax ({reason(error)}). Put back a copy; or "
            "rename it, and start with all flags of the run to have it made again."
        ) from error


def _check_version(workdir: Path, record: dict[str, Any]) -> None:
    """Raises UserError where `record` is from before datasets described themselves."""
    data = record["config"].get("data")
    if "dataset" not in record or (isinstance(data, dict) and "source" in data):
        raise UserError(
            f"{workdir} was made by an earlier version: its {FILE} does not describe the dataset. "
            "Train anew with another --workdir, or go on with the version that made it."
        )


def load_for_eval(workdir: Path, overrides: Mapping[str, Any], *, wait: bool) -> ConfigDict:
    """The stored config with `overrides` by path, and defaults for newer fields.

    Where there is none yet it is waited for, or UserError raised without `wait`. Raises UsageError
    for overrides that cannot work, before it waits.
    """
    _override(recipe("default"), overrides)
    if wait and not (workdir / FILE).exists():
        print(f"Waiting for training to start in {workdir}", flush=True)
        while not (workdir / FILE).exists():
            time.sleep(1.0)
    try:
        stored = load(workdir)
    except FileNotFoundError:
        raise UserError(f"{workdir} has no {FILE}: nothing was trained there.") from None
    config = recipe("default")
    try:
        config.update(stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{workdir / FILE} has a field of another type: {error}.") from error
    trained = flat(config)
    _override(config, overrides)
    config = resolve(config)
    if config.data.validation:
        _check_held_out(config, trained)
    return config


def _override(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Sets those fields. Raises UsageError for what is not a field, and for another type."""
    if not isinstance(overrides, Mapping):
        raise UsageError(
            f"overrides are of type {type(overrides).__name__}, expected a dict as "
            "{'data.dir': '~/other'}."
        )
    fields = flat(config)
    for path, value in overrides.items():
        try:
            config.update_from_flattened_dict({path: value})
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if path not in fields:
                raise unknown("config field", path, fields) from error
            raise UsageError(
                f"config.{path} = {value!r} is of type {type(value).__name__}, "
                f"expected {type(fields[path]).__name__}."
            ) from error
    check_fields(config, recipe("default"))


def _check_held_out(config: ConfigDict, trained: dict[str, Any]) -> None:
    """Raises UsageError where `config` draws other validation images than were left out of the
    training: some of them were trained on."""
    for path in ("seed", "data.validation"):
        if (value := flat(config)[path]) != trained[path]:
            raise UsageError(
                f"config.{path} = {value!r}, but {trained[path]!r} in training: these validation "
                "images are not those that were held out. Leave it out."
            )


def check_same_run(config: ConfigDict, workdir: Path) -> list[str]:
    """Compares with what the workdir holds, if anything; returns the differences a resume accepts.

    Raises UsageError where the workdir belongs to another model, dataset or seed.
    """
    try:
        # A field that is newer than the run had its default then.
        stored = flat(recipe("default")) | flat(load(workdir))
    except FileNotFoundError:
        return []
    changes = [
        (path, stored.get(path), value)
        for path, value in flat(config).items()
        if stored.get(path) != value and path not in (*_MACHINE, *_FIRST_START)
    ]
    refused = [
        f"{path} is {old!r} there, {new!r} now"
        for path, old, new in changes
        if path in _IDENTITY
        or path.split(".")[0] in _IDENTITY
        or (path in _STATE and _STATE[path](old) != _STATE[path](new))
    ]
    if refused:
        raise UsageError(
            f"{workdir} holds a run of another config: {'; '.join(refused)}. "
            "Choose another --workdir."
        )
    return [f"{path} was {old!r}, is {new!r}" for path, old, new in changes]


def _git_commit() -> str:
    """The commit of this checkout, with '-dirty' where files differ; '' outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
