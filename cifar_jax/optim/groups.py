"""Parameter groups: which optimiser updates which parameters."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax.errors import UsageError, unknown
from cifar_jax.optim import paths

NAMES = ("sgd", "adam", "adamw", "muon", "frozen")


class Group(NamedTuple):
    """A parameter group: an entry of config.optim.groups, or config.optim for all others."""

    params: tuple[str, ...]  # patterns of paths
    name: str
    learning_rate: float
    momentum: float  # sgd, muon
    nesterov: bool  # sgd, muon
    betas: tuple[float, float]  # adam, adamw
    weight_decay: float | None  # None: config.optim.weight_decay, of config.optim.decay_params
    decoupled_decay: bool
    epochs: float  # after which its own schedule ends; 0: the run's schedule
    muon_steps: int
    fixed_norm: bool  # muon: a kernel's norm is set to sqrt(its output channels) at every step

    @property
    def decoupled(self) -> bool:
        return self.decoupled_decay or self.name == "adamw"


# Fields that groups alone have, with their defaults; the others are inherited from config.optim.
_OWN = {"weight_decay": None, "epochs": 0.0, "muon_steps": 5, "fixed_norm": False}
_FIELDS = tuple(name for name in Group._fields if name != "params")
_WITH_END = ("linear", "cosine")  # the schedules that end


def groups(config: ConfigDict) -> list[Group]:
    """The groups of `config.optim`, and as the last one that of all parameters that are left.

    Raises UsageError for an unknown field or optimiser and for values that cannot work.
    """
    base = {
        "name": config.name,
        "learning_rate": config.learning_rate,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
        "betas": config.betas,
        "decoupled_decay": config.decoupled_decay,
        **_OWN,
    }
    # First, or what is wrong with an inherited value would be said of a group.
    rest = _checked("config.optim", {"params": "*", **base})
    if config.decay_params != ():
        _patterns("config.optim.decay_params", config.decay_params, one=False)
    found = []
    for i, given in enumerate(config.groups):
        group = _group(f"config.optim.groups[{i}]", base, given)
        if group.epochs and config.schedule not in _WITH_END:
            raise UsageError(
                f"config.optim.groups[{i}].epochs = {group.epochs} ends a schedule, and "
                f"config.optim.schedule = '{config.schedule}' has no end. Choose 'linear' or "
                "'cosine', or leave epochs out."
            )
        found.append(group)
    return [*found, rest]


def _group(where: str, base: dict[str, Any], given: Any) -> Group:
    if not hasattr(given, "items") or "params" not in given:
        raise UsageError(
            f"{where} = {given!r}, expected a dict as {{'params': '*/bias', 'name': 'frozen'}}."
        )
    for name in given:
        if name not in ("params", *_FIELDS):
            raise unknown(f"field in {where}", name, ("params", *_FIELDS))
    fields = {**base, **given}
    if fields["name"] == "frozen":  # nothing else of it is read
        fields = {**base, "params": given["params"], "name": "frozen"}
    return _checked(where, fields)


def _checked(where: str, fields: dict[str, Any]) -> Group:
    """The group of these fields. Raises UsageError for a type or value that cannot work."""
    patterns, betas = _patterns(f"{where}.params", fields["params"]), fields["betas"]
    if fields["name"] not in NAMES:
        raise unknown(f"{where}.name", fields["name"], NAMES)
    for name in ("nesterov", "decoupled_decay", "fixed_norm"):
        if not isinstance(fields[name], bool):
            raise UsageError(f"{where}.{name} = {fields[name]!r}, expected True or False.")
    for name in ("learning_rate", "weight_decay", "epochs"):
        value = fields[name]
        if not _is_number(value) and not (value is None and name == "weight_decay"):
            raise UsageError(f"{where}.{name} = {value!r}, expected a number from 0 on.")
    if not _is_number(fields["momentum"], below=1):
        raise UsageError(
            f"{where}.momentum = {fields['momentum']!r}, expected a number from 0 to below 1."
        )
    steps = fields["muon_steps"]
    if not isinstance(steps, int) or not _is_number(steps) or not steps:
        raise UsageError(f"{where}.muon_steps = {steps!r}, expected a whole number from 1 on.")
    is_pair = isinstance(betas, tuple | list) and len(betas) == 2
    if not is_pair or not all(_is_number(beta, below=1) for beta in betas):
        raise UsageError(f"{where}.betas = {betas!r}, expected two numbers from 0 to below 1.")
    group = Group(**{**fields, "params": patterns, "betas": tuple(betas)})
    if group.nesterov and not group.momentum and group.name in ("sgd", "muon"):
        raise UsageError(f"{where}.nesterov is set without {where}.momentum.")
    return group


def _patterns(field: str, value: Any, one: bool = True) -> tuple[str, ...]:
    """Several patterns, or with `one` also a single string, as a tuple."""
    patterns = (value,) if one and isinstance(value, str) else value
    is_list = isinstance(patterns, tuple | list)
    if is_list and not patterns:
        raise UsageError(f"{field} is empty, expected patterns of paths as ('conv1/*', '*/bias').")
    if not is_list or not all(isinstance(each, str) and each for each in patterns):
        raise UsageError(
            f"{field} = {value!r}, expected patterns of paths as ('conv1/*', '*/bias')."
        )
    return tuple(patterns)


def _is_number(value: Any, below: float = math.inf) -> bool:
    """Whether it is a finite number from 0 to below that."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < below


def assign(params: Any, config: ConfigDict) -> dict[str, Group]:
    """The group of each parameter, by path: the first that matches it.

    Raises UsageError for a pattern that matches none, and for a group that is left without any.
    """
    names = list(paths.flatten(params))
    chosen: dict[str, Group] = {}
    every = groups(config)
    for i, group in enumerate(every):
        matched = paths.matching(names, group.params, f"groups[{i}]") if names else []
        new = [name for name in matched if name not in chosen]
        if not new and i < len(every) - 1:
            raise UsageError(
                f"config.optim.groups[{i}] has no parameter: earlier groups match all of "
                f"{', '.join(group.params)}. Put it before them."
            )
        chosen |= dict.fromkeys(new, group)
    for name, leaf in paths.flatten(params).items():
        if chosen[name].name == "muon" and jnp.ndim(leaf) < 2:
            raise UsageError(
                f"config.optim: muon moves matrices and kernels, and {name} has the shape "
                f"{jnp.shape(leaf)}. Put it into one of config.optim.groups that come before, as "
                "{'params': '*/bias', 'name': 'sgd'}."
            )
    return {name: chosen[name] for name in names}


def decays(params: Any, config: ConfigDict, decoupled: bool | None = None) -> dict[str, float]:
    """The weight decay of each parameter that has one, by path; with `decoupled` True or False,
    only where the decay is, or is not, decoupled.

    Raises UsageError for a pattern of config.optim.decay_params that matches no parameter, whatever
    the groups say; with a weight decay of 0 the patterns mean nothing and are not looked at.
    """
    assigned, inherited = assign(params, config), set()
    if config.weight_decay:
        inherited = set(paths.matching(list(assigned), config.decay_params, "decay_params"))
    found = {}
    for name, group in assigned.items():
        decay = group.weight_decay
        if decay is None:
            decay = config.weight_decay if name in inherited else 0.0
        if decay and group.name != "frozen" and decoupled in (None, group.decoupled):
            found[name] = decay
    return found
