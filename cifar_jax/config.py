"""Read, resolve and validate a config. Its fields and defaults: `configs/default.py`."""

import itertools
import math
import os
import re
import runpy
from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict, config_flags

from cifar_jax import files, inputs, models, optim
from cifar_jax.data import feeds, sources, splits
from cifar_jax.devices import replicas
from cifar_jax.errors import UsageError, unknown

DTYPES = ("float32", "bfloat16")
_SWEPT = tuple(f"optim.{name}" for name in optim.SWEPT)
_DATASET_FIELDS = ("data.name", "data.dir", "data.shards", "data.validation")


def recipe(name: str | os.PathLike[str]) -> ConfigDict:
    """The config of a recipe: by its name, as "quickstart" or "fast:5", or by the path of its file.

    Raises UsageError where there is no such recipe.
    """
    name, _, argument = os.fspath(name).partition(":")
    path = _recipe_path(name, "The recipe")
    if not path.is_file():
        raise unknown("recipe", name, sorted(each.stem for each in files.RECIPES.glob("*.py")))
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise UsageError(f"The recipe {path} has no function get_config.")
    return get_config(argument) if argument else get_config()


def _recipe_path(name: str, what: str) -> Path:
    """`quickstart` is configs/quickstart.py, wherever the program was started."""
    ours = files.RECIPES / f"{name}.py"
    return ours if ours.is_file() else files.resolve(name, what)


def from_flags(argv: list[str]) -> tuple[ConfigDict, dict[str, Any], list[str]]:
    """Parses all flags; returns the config of --config, what --config.a.b=c set in it, and the
    arguments that are not flags.

    Raises UsageError for anything that absl or ml_collections cannot make sense of.
    """
    if not any(arg.lstrip("-").partition("=")[0] == "config" for arg in argv[1:]):
        argv = [argv[0], f"--config={files.RECIPES / 'default.py'}", *argv[1:]]
    argv = [_config_path(arg) for arg in argv]
    try:
        config_flags.DEFINE_config_file("config", help_string="Recipe.", sys_argv=argv)
        rest = flags.FLAGS(argv)[1:]
        config = ConfigDict(flags.FLAGS.config.to_dict())  # a file that failed to load fails here
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError, OSError) as error:
        raise _parse_error(error) from error
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"--config cannot be read: {error}") from error
    check_fields(config, recipe("default"))
    return config, config_flags.get_override_values(flags.FLAGS["config"]), rest


def _config_path(arg: str) -> str:
    """--config with the whole path of the recipe."""
    flag, _, value = arg.partition("=")
    name, colon, argument = value.partition(":")
    if flag.lstrip("-") != "config" or not name:
        return arg
    return f"{flag}={_recipe_path(name, '--config')}{colon}{argument}"


def _parse_error(error: Exception) -> UsageError:
    text = " ".join(str(error).replace("\\n", " ").split())
    if text.endswith("has no attribute 'get_config'"):
        return UsageError("The recipe of --config has no function get_config.")
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


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy of `config` in which what depends on the machine is set: the global batch, where it is
    given by the device. Raises UsageError for a field, type, value, name or combination that cannot
    work."""
    if not isinstance(config, ConfigDict):
        raise UsageError(
            f"The config is of type {type(config).__name__}, expected a ConfigDict, as "
            "cifar_jax.config.recipe('default') gives one."
        )
    config = ConfigDict(config.to_dict())
    check_fields(config, recipe("default"))
    if config.per_device_batch_size:
        devices = replicas.num_devices(config.num_devices)
        config.batch_size = config.per_device_batch_size * devices
    validate(config)
    return config


def members(config: ConfigDict) -> list[ConfigDict]:
    """For each of the networks of config.num_seeds and config.sweep, the config of the single run
    that it is. Raises UsageError for a sweep that cannot be."""
    found = []
    for values in sweep(config):
        for number in range(config.num_seeds):
            own = ConfigDict(config.to_dict())
            own.update_from_flattened_dict(values)
            own.num_seeds, own.sweep, own.seed = 1, "", config.seed + number
            found.append(own)
    return found


def several(config: ConfigDict) -> bool:
    """Whether it is of several networks that train together."""
    return config.num_seeds > 1 or bool(config.sweep)


def sweep(config: ConfigDict) -> list[dict[str, float]]:
    """The values of config.sweep, by path: the product of its parts, which ";" separates. Within a
    part, fields with "&" between them take their values together. [{}] without a sweep."""
    parts = [_together(config, part) for part in config.sweep.split(";") if part.strip()]
    return [
        {path: value for values in chosen for path, value in values.items()}
        for chosen in itertools.product(*parts)
    ]


def _together(config: ConfigDict, part: str) -> list[dict[str, float]]:
    fields: dict[str, list[float]] = {}
    for each in part.split("&"):
        path, _, values = (text.strip() for text in each.partition("="))
        if path not in _SWEPT:
            if path in flat(config):
                raise UsageError(
                    f"config.sweep: {path} would need another program for each value. Fields of "
                    f"one are {', '.join(_SWEPT)}; train the others one by one."
                )
            raise unknown("field in config.sweep", path, _SWEPT)
        try:
            fields[path] = [float(value) for value in values.split(",")]
        except ValueError:
            raise UsageError(
                f"config.sweep: {path}={values}, expected numbers with commas between them."
            ) from None
    if len({len(values) for values in fields.values()}) > 1:
        counts = " and ".join(str(len(values)) for values in fields.values())
        raise UsageError(f"config.sweep: the fields of '{part.strip()}' have {counts} values.")
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def validate(config: ConfigDict) -> None:
    """Raises UsageError for a value, name or combination that cannot work."""
    for path, choices in (
        ("cluster", ("", "auto")),
        ("dtype", DTYPES),
        ("model.name", models.NAMES),
        ("proxy.model", ("", *models.NAMES)),
        ("data.placement", feeds.PLACEMENTS),
        ("optim.name", optim.NAMES),
        ("optim.schedule", optim.SCHEDULES),
        ("divergence.action", ("stop", "continue")),
        ("checkpoint.keep_best", ("", "validation")),
        ("eval.views", inputs.VIEWS),
    ):
        if (name := _get(config, path)) not in choices:
            raise unknown(f"config.{path}", name, choices)
    sources.check(config.data)
    splits.check(config.data)
    _validate_numbers(config)
    inputs.validate(config.inputs)
    _validate_combinations(config)


def _validate_numbers(config: ConfigDict) -> None:
    positive = (
        "batch_size",
        "num_seeds",
        "accumulate",
        "join_seconds",
        "heartbeat_seconds",
        "num_epochs",
        "log_every_steps",
        "proxy.keep",
        "proxy.every",
        "data.num_threads",
        "data.prefetch",
        "optim.learning_rate",
        "optim.decay_epochs",
        "optim.decay_factor",
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
        "optim.momentum",
        "optim.final_factor",
        "optim.warmup_epochs",
        "optim.warmup_factor",
        "optim.lookahead.every",
        "optim.lookahead.power",
        "optim.lookahead.start",
        "optim.label_smoothing",
        "optim.weight_decay",
        "optim.ema_decay",
        "summaries.scalars",
        "summaries.images",
        "summaries.histograms",
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep_every_steps",
        "stop.patience",
    )
    for path in (*positive, *not_negative):
        value = _get(config, path)
        if not math.isfinite(value) or value < 0 or (path in positive and value == 0):
            expected = "more than 0" if path in positive else "0 or more"
            raise UsageError(f"config.{path} = {value}, expected {expected}.")
    for path in (
        "proxy.keep",
        "optim.momentum",
        "optim.label_smoothing",
        "optim.ema_decay",
        "optim.lookahead.start",
    ):
        if (value := _get(config, path)) >= 1:
            raise UsageError(f"config.{path} = {value}, expected less than 1.")
    if (last := config.seed + config.num_seeds - 1) >= 2**32:
        raise UsageError(f"config.seed = {last}, expected less than 2**32.")


def _validate_combinations(config: ConfigDict) -> None:
    devices = replicas.num_devices(config.num_devices)
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
    if config.proxy.model:
        _validate_proxy(config, devices)
    at_once = config.batch_size // (devices * config.accumulate)
    if at_once % 2 and inputs.mixes(config.inputs):
        raise UsageError(
            f"config.inputs.transforms mixes images in pairs, but a device takes {at_once} at a "
            "time. Set config.batch_size so that the number is even."
        )
    size = sources.find(config.data).image_size(config.data)
    if size and not config.data.shards:
        inputs.check(config.inputs, size)
    if config.data.placement == "stream" and not config.data.shards:
        raise UsageError(
            "config.data.placement = 'stream' needs config.data.shards, a folder that "
            "`python -m cifar_jax.data.prepare` wrote."
        )
    if config.stop.patience and not config.checkpoint.keep_best:
        raise UsageError(
            f"config.stop.patience = {config.stop.patience} needs the accuracy of each checkpoint. "
            "Set config.checkpoint.keep_best = 'validation'."
        )
    if config.checkpoint.keep_best and not config.data.validation:
        raise UsageError(
            "config.checkpoint.keep_best = 'validation', but config.data.validation = 0. Set the "
            "share of the training images to hold out, as 0.1, or their number."
        )
    profile = config.profile.steps
    if len(profile) != 2 or not all(isinstance(n, int) for n in profile) or profile[0] > profile[1]:
        raise UsageError(f"config.profile.steps = {profile}, expected two steps as in (100, 110).")
    optim.groups(config.optim)
    if several(config):
        _validate_for_several(config)
        for own in members(config):
            _validate_numbers(own)


def _validate_proxy(config: ConfigDict, devices: int) -> None:
    kept, parts = num_kept(config), devices * config.accumulate
    if kept % parts:
        raise UsageError(
            f"config.proxy.keep = {config.proxy.keep} of {config.batch_size} images are {kept:g}, "
            f"which {devices} devices and config.accumulate = {config.accumulate} do not divide."
        )
    if inputs.mixes(config.inputs):
        raise UsageError(
            "config.proxy.model chooses single images, and config.inputs.transforms mixes them in "
            "pairs. Leave out one of them."
        )


def _validate_for_several(config: ConfigDict) -> None:
    """Networks that train together share images on the device; each has its own order of them."""
    for path, alone, why in (
        ("data.validation", 0, "the seed draws that split, so each network has other images"),
        ("checkpoint.keep_best", "", "it is for one network"),
        ("cluster", "", "it is for one process"),
        ("shard_optimizer", False, "it is for one network"),
        ("init_from", "", "it is for one network"),
        ("proxy.model", "", "it is for one network"),
    ):
        if (value := _get(config, path)) != alone:
            raise UsageError(
                f"config.{path} = {value!r} does not go with several networks (config.num_seeds, "
                f"config.sweep): {why}. Set it to {alone!r}."
            )
    swept = {path for values in sweep(config) for path in values}
    if swept & {"optim.learning_rate", "optim.weight_decay"} and (
        config.optim.groups or config.optim.decoupled_decay or config.optim.name == "adamw"
    ):
        raise UsageError(
            "config.sweep: optim.learning_rate and optim.weight_decay are swept where config.optim "
            "has neither groups nor a decoupled decay. Train these one by one."
        )
    if config.data.placement not in ("auto", "device"):
        raise UsageError(
            f"config.data.placement = {config.data.placement!r} does not go with several networks "
            "(config.num_seeds, config.sweep), which need the images on the device. Set it to "
            "'device'."
        )


def chooses_images(path: str) -> bool:
    """Whether the field at `path` is one of those that say which images are read."""
    of_a_source = path.startswith("data.") and path.count(".") > 1
    return of_a_source or path in _DATASET_FIELDS


def flat(fields: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """All fields by their path, as "optim.name"."""
    nested = fields.to_dict() if isinstance(fields, ConfigDict) else fields
    return traverse_util.flatten_dict(nested, sep=".")


def num_steps(config: ConfigDict, num_train: int) -> int:
    """The run's length in steps of the global batch, from num_steps or else num_epochs."""
    return config.num_steps or max(1, int(config.num_epochs * num_train / config.batch_size))


def num_kept(config: ConfigDict) -> float:
    """How many images of a batch a proxy leaves for the model; in a valid config a whole number."""
    return round(config.batch_size * config.proxy.keep, 6)  # 29.0 for 0.29 of 100


def _get(config: ConfigDict, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config
