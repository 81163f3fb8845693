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
_NUMBERS = ("learning_rate", "weight_decay", "muon_steps")
_FIELDS = tuple(name for name in Group._fields if name != "params")


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
    found = [_group(f"groups[{i}]", base, given) for i, given in enumerate(config.groups)]
    return [*found, _group("", base, {"params": "*"})]


def _group(field: str, base: dict[str, Any], given: Any) -> Group:
    where = f"config.optim.{field}".rstrip(".")
    if not hasattr(given, "items") or "params" not in given:
        raise UsageError(
            f"{where} = {given!r}, expected a dict as {{'params': '*/bias', 'name': 'frozen'}}."
        )
    for name in given:
        if name not in ("params", *_FIELDS):
            raise unknown(f"field in {where}", name, ("params", *_FIELDS))
    patterns = given["params"]
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    fields = {**base, **given}
    betas = fields["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"{where}.betas = {betas!r}, expected two numbers from 0 to below 1.")
    group = Group(**{**fields, "params": patterns, "betas": tuple(betas)})
    if group.name not in NAMES:
        raise unknown(f"{where}.name", group.name, NAMES)
    for name, end in (("momentum", 1), *((n, math.inf) for n in ("epochs", *_NUMBERS))):
        value = getattr(group, name)
        if value is None and name == "weight_decay":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < end:
            raise UsageError(f"{where}.{name} = {value!r}, expected from 0 to below {end}.")
    if group.nesterov and not group.momentum and group.name in ("sgd", "muon"):
        raise UsageError(f"{where}.nesterov is set without {where}.momentum.")
    return group


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
    only where the decay is, or is not, decoupled."""
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
