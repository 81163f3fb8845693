"""Read, validate, store and load a config. Its fields and defaults: `configs/default.py`."""

import importlib.metadata
import json
import math
import platform
import re
import runpy
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from cifar_jax import augment, files, models, optim, parallel
from cifar_jax.data import feeds, sources
from cifar_jax.errors import UsageError, UserError, reason, unknown

FILE = "config.json"
DTYPES = ("float32", "bfloat16", "float16")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# A workdir belongs to one model on one dataset, drawn and optimised in one way. Everything else may
# change when a run is resumed: its length, the rate, the batch size, how often it is saved.
_IDENTITY = (
    "seed",
    "model",
    "data",
    "augment.crop_size",
    "optim.name",
    "optim.decoupled_decay",
    "optim.muon_layers",
)
# Where the same images lie on this machine, and how they get to the device.
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
DATASET_FIELDS = (  # which images are read
    *("data.source", "data.dir", "data.shards", "data.tfds_name", "data.tfds_train_split"),
    *("data.tfds_test_split", "data.synthetic_train", "data.synthetic_test", "data.synthetic_seed"),
)
# What decides whether the optimiser's state holds a velocity, or a loss scale.
_STATE = {"optim.momentum": bool, "dtype": lambda dtype: dtype == "float16"}


def from_flags(argv: list[str], default_file: str) -> tuple[ConfigDict, dict[str, Any], list[str]]:
    """Parses all flags; returns the config of --config, what --config.a.b=c set in it, and the
    arguments that are no flags.

    Raises UsageError for anything that absl or ml_collections cannot make sense of.
    """
    if not any(arg.lstrip("-").partition("=")[0] == "config" for arg in argv[1:]):
        argv = [argv[0], f"--config={default_file}", *argv[1:]]
    argv = [_config_path(arg) for arg in argv]
    try:
        config_flags.DEFINE_config_file("config", help_string="Recipe.", sys_argv=argv)
        rest = flags.FLAGS(argv)[1:]
        config = ConfigDict(flags.FLAGS.config.to_dict())  # a file that failed to load fails here
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        raise _parse_error(error) from error
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"--config cannot be read: {error}") from error
    check_fields(config, read_default(default_file))
    return config, config_flags.get_override_values(flags.FLAGS["config"]), rest


def _config_path(arg: str) -> str:
    """--config with the whole path: `quickstart` is configs/quickstart.py, `~` a home folder."""
    flag, _, value = arg.partition("=")
    name, colon, argument = value.partition(":")
    if flag.lstrip("-") != "config" or not name:
        return arg
    path = files.resolve(name, "--config")
    ours = Path(__file__).parent.parent / "configs" / f"{name}.py"
    if not path.exists() and ours.is_file():
        path = ours
    return f"{flag}={path}{colon}{argument}"


def read_default(default_file: str) -> ConfigDict:
    return runpy.run_path(default_file)["get_config"]()


def _parse_error(error: Exception) -> UsageError:
    text = " ".join(str(error).replace("\\n", " ").split())
    if text.endswith("has no attribute 'get_config'"):
        return UsageError("The file of --config has no function get_config.")
    if place := re.search(r'File "([^"]+)", line (\d+), in get_config', text):
        last = str(error).strip().splitlines()[-1].partition(": ")[2]
        return UsageError(f"--config={place[1]}, line {place[2]}: {last}")
    field = re.search(r'Key "(\w+)"', text) or re.search(r"'(\w+)", text)
    if isinstance(error, AttributeError | KeyError) and field:
        near = re.search(r'Did you mean "(\w+)"', text)
        hint = f" Did you mean '{near[1]}'?" if near else ""
        return UsageError(
            f"Unknown config field '{field[1]}'.{hint} configs/default.py names them all."
        )
    return UsageError(text.removeprefix("Configuration is not available because of an earlier "))


def check_fields(config: ConfigDict, default: ConfigDict) -> None:
    """Raises UsageError unless `config` has exactly the fields of `default`, with their types."""
    expected, found = flat(default), flat(config)
    for path in found.keys() - expected.keys():
        raise unknown("config field", path, expected)
    for path in expected.keys() - found.keys():
        raise UsageError(f"Config field '{path}' is missing. Start from configs/default.py.")
    for path, value in found.items():
        wanted = type(expected[path])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UsageError(
                f"config.{path} = {value!r} is of type {type(value).__name__}, "
                f"expected {wanted.__name__}."
            )


def settle(config: ConfigDict) -> None:
    """Sets what depends on the machine, the global batch where it is given by the device, and
    validates."""
    if config.per_device_batch_size:
        devices = parallel.num_devices(config.num_devices)
        config.batch_size = config.per_device_batch_size * devices
    validate(config)


def validate(config: ConfigDict) -> None:
    """Raises UsageError for a value, name or combination that cannot work."""
    for path, choices in (
        ("cluster", ("", "auto")),
        ("dtype", DTYPES),
        ("model.name", models.NAMES),
        ("data.source", sources.NAMES),
        ("data.placement", feeds.PLACEMENTS),
        ("optim.name", optim.NAMES),
        ("optim.schedule", optim.SCHEDULES),
        ("divergence.action", ("stop", "continue")),
        ("eval.views", augment.VIEWS),
    ):
        if (name := _get(config, path)) not in choices:
            raise unknown(f"config.{path}", name, choices)
    _validate_numbers(config)
    _validate_combinations(config)


def _validate_numbers(config: ConfigDict) -> None:
    positive = (
        "batch_size",
        "accumulate",
        "join_seconds",
        "heartbeat_seconds",
        "num_epochs",
        "log_every_steps",
        "data.synthetic_train",
        "data.synthetic_test",
        "data.num_threads",
        "data.prefetch",
        "augment.crop_size",
        "optim.learning_rate",
        "optim.decay_epochs",
        "optim.decay_factor",
        "optim.loss_scale",
        "checkpoint.keep",
        "divergence.factor",
        "eval.batch_size",
        "eval.poll_seconds",
    )
    not_negative = (
        "seed",
        "num_steps",
        "num_devices",
        "per_device_batch_size",
        "steps_per_call",
        "data.synthetic_seed",
        "augment.max_shift",
        "augment.brightness_delta",
        "augment.contrast_lower",
        "augment.contrast_upper",
        "optim.momentum",
        "optim.final_factor",
        "optim.warmup_epochs",
        "optim.label_smoothing",
        "optim.weight_decay",
        "optim.muon_sgd_rate",
        "optim.average_decay",
        "summaries.scalars",
        "summaries.images",
        "summaries.histograms",
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep_every_steps",
    )
    for path in (*positive, *not_negative):
        value = _get(config, path)
        if not math.isfinite(value) or value < 0 or (path in positive and value == 0):
            expected = "more than 0" if path in positive else "0 or more"
            raise UsageError(f"config.{path} = {value}, expected {expected}.")
    for path in ("optim.momentum", "optim.label_smoothing", "optim.average_decay"):
        if (value := _get(config, path)) >= 1:
            raise UsageError(f"config.{path} = {value}, expected less than 1.")
    if config.seed >= 2**32:
        raise UsageError(f"config.seed = {config.seed}, expected less than 2**32.")


def _validate_combinations(config: ConfigDict) -> None:
    devices = parallel.num_devices(config.num_devices)
    for path in ("batch_size", "eval.batch_size"):
        if _get(config, path) % devices:
            raise UsageError(
                f"config.{path} = {_get(config, path)} is not divisible by {devices} devices. "
                f"Set a multiple of {devices}, or config.num_devices."
            )
    if devices % jax.process_count():
        raise UsageError(
            f"config.num_devices = {config.num_devices} cannot be shared by "
            f"{jax.process_count()} processes evenly. Set a multiple of {jax.process_count()}."
        )
    if config.batch_size % (devices * config.accumulate):
        raise UsageError(
            f"config.accumulate = {config.accumulate} does not divide the "
            f"{config.batch_size // devices} images of a device."
        )
    size = sources.image_size(config.data.source)
    if size and config.augment.crop_size > size:
        raise UsageError(
            f"config.augment.crop_size = {config.augment.crop_size} is larger than the images "
            f"of '{config.data.source}', {size}x{size}."
        )
    if config.data.placement == "stream" and not config.data.shards:
        raise UsageError(
            "config.data.placement = 'stream' needs config.data.shards, a folder that "
            "`python -m cifar_jax.data.prepare` wrote."
        )
    if config.augment.contrast_lower > config.augment.contrast_upper:
        raise UsageError(
            f"config.augment.contrast_lower = {config.augment.contrast_lower} is above "
            f"contrast_upper = {config.augment.contrast_upper}."
        )
    profile = config.profile.steps
    if len(profile) != 2 or not all(isinstance(n, int) for n in profile) or profile[0] > profile[1]:
        raise UsageError(f"config.profile.steps = {profile}, expected two steps as in (100, 110).")
    if config.optim.nesterov and not config.optim.momentum:
        raise UsageError("config.optim.nesterov is set without config.optim.momentum.")


def flat(config: ConfigDict) -> dict[str, Any]:
    """All fields by their path, as "optim.name"."""
    return dict(_leaves(config))


def num_steps(config: ConfigDict, num_train: int) -> int:
    """The run's length in steps of the global batch, from num_steps or else num_epochs."""
    return config.num_steps or max(1, int(config.num_epochs * num_train / config.batch_size))


# -- the workdir's copy --------------------------------------------------------------------------


def store(config: ConfigDict, workdir: Path, step: int, device: str) -> None:
    """Writes the resolved config with versions, git commit and `device`, as what holds from `step`
    on; what held before stays on record under "changes".

    The data folder is written in full: evaluation may start elsewhere, or without $CIFAR_JAX_DATA.

    Of several processes, the first one does it. Raises UserError where `workdir` cannot be made or
    written.
    """
    if jax.process_index():
        return
    fields = config.to_dict()
    fields["data"]["dir"] = str(sources.data_dir(config.data))
    if config.data.shards:
        fields["data"]["shards"] = str(sources.shards_dir(config.data))
    record = {
        "config": fields,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        "git_commit": _git_commit(),
        "device": device,
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        record["changes"] = _changes(workdir / FILE, record, step)
        files.write(workdir / FILE, files.to_json(record))
    except OSError as error:
        raise _unusable(workdir, error) from error


def _changes(path: Path, record: dict[str, Any], step: int) -> list[dict[str, Any]]:
    """What has changed in the course of the run until `record` holds from `step` on: for each
    change the step, and the fields as they were and are. What a run went back over is not kept."""
    try:
        stored = files.read_json(path)
        changes = list(stored.pop("changes", []))
        held = _flat_json(stored)
        while changes and changes[-1]["step"] >= step:
            held |= changes.pop()["was"]
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return []  # there is none, or none of ours
    now = _flat_json(json.loads(json.dumps(record)))
    different = [name for name in held | now if held.get(name) != now.get(name)]
    if not step or not different:
        return changes
    was, now = ({name: of.get(name) for name in different} for of in (held, now))
    return [*changes, {"step": step, "was": was, "is": now}]


def _flat_json(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        nested = isinstance(value, dict)
        flat |= _flat_json(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _unusable(workdir: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot use the workdir {workdir}: {reason(error)}. Choose another with --workdir=DIR."
    )


def load(workdir: Path) -> ConfigDict:
    """The stored config. Raises FileNotFoundError without one, UserError for a damaged one."""
    path = workdir / FILE

    def with_tuples(fields: dict[str, Any]) -> dict[str, Any]:  # JSON knows lists only
        return {
            k: with_tuples(v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v
            for k, v in fields.items()
        }

    try:
        return ConfigDict(with_tuples(dict(files.read_json(path)["config"])))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(workdir, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a config of cifar_jax ({reason(error)}). Put back a copy; or rename "
            "it, and start with all flags of the run to have it made again."
        ) from error


def load_for_eval(
    workdir: Path, default: ConfigDict, overrides: dict[str, Any], *, wait: bool
) -> ConfigDict:
    """The stored config with `overrides` from the command line, and defaults for newer fields.

    Where there is none yet it is waited for, or UserError raised without `wait`.
    """
    if wait and not (workdir / FILE).exists():
        print(f"Waiting for training to start in {workdir}", flush=True)
        while not (workdir / FILE).exists():
            time.sleep(1.0)
    try:
        stored = load(workdir)
    except FileNotFoundError:
        raise UserError(f"{workdir} has no {FILE}: nothing was trained there.") from None
    config = ConfigDict(default.to_dict())
    try:
        config.update(stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{workdir / FILE} has a field of another type: {error}.") from error
    config.update_from_flattened_dict(overrides)
    check_fields(config, default)
    validate(config)
    return config


def check_same_run(config: ConfigDict, workdir: Path) -> list[str]:
    """Compares with what the workdir holds, if anything; returns the differences a resume accepts.

    Raises UsageError where the workdir belongs to another model, dataset or seed.
    """
    try:
        stored = flat(load(workdir))
    except FileNotFoundError:
        return []
    changes = [
        (path, stored.get(path), value)
        for path, value in flat(config).items()
        if stored.get(path) != value and path not in _MACHINE
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


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _get(config: ConfigDict, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config
