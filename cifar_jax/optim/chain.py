"""The optimiser as one optax chain: decay, direction, rate, each by parameter group."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cifar_jax.optim import paths
from cifar_jax.optim.groups import Group, assign, decays, groups
from cifar_jax.optim.muon import fix_norm, scale_by_muon
from cifar_jax.optim.schedule import make_schedule

# The fields of config.optim that may be arrays in a compiled step
SWEPT = "learning_rate", "weight_decay", "label_smoothing", "ema_decay"


def make_optimizer(
    config: ConfigDict, steps_per_epoch: float, num_steps: int
) -> optax.GradientTransformation:
    """The chain for `config.optim`. Its `init` raises UsageError for a pattern that matches no
    parameter, with the nearest path."""
    fixed = any(group.fixed_norm for group in groups(config))
    return optax.chain(
        # Added to the gradient, decay is that of an L2 term in the loss, as in the tutorial.
        _add_decays(config, decoupled=False),
        _by_group(config, _direction),
        _add_decays(config, decoupled=True),
        _scale_by_rates(config, steps_per_epoch, num_steps),
        *[_by_group(config, _fix_norm)] * fixed,
    )


def _by_group(
    config: ConfigDict, transformation: Callable[[Group], optax.GradientTransformation]
) -> optax.GradientTransformation:
    every = groups(config)
    if len(every) == 1:
        return transformation(every[0])

    def labels(params: Any) -> Any:
        chosen = {name: every.index(group) for name, group in assign(params, config).items()}
        return paths.unflatten(chosen)

    return optax.partition({i: transformation(group) for i, group in enumerate(every)}, labels)


def _direction(group: Group) -> optax.GradientTransformation:
    if group.name == "frozen":
        return optax.set_to_zero()
    if group.name in ("adam", "adamw"):
        return optax.scale_by_adam(*group.betas)
    momentum = optax.trace(group.momentum, group.nesterov) if group.momentum else optax.identity()
    if group.name == "muon":
        return optax.chain(momentum, scale_by_muon(group.muon_steps, group.fixed_norm))
    return momentum


def _fix_norm(group: Group) -> optax.GradientTransformation:
    return fix_norm() if group.fixed_norm else optax.identity()


def _add_decays(config: ConfigDict, decoupled: bool) -> optax.GradientTransformation:
    def add(updates: Any, params: Any) -> Any:
        every = decays(params, config, decoupled)

        def one(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
            return update + every[name] * param if name in every else update

        return paths.tree_map(one, updates, params)

    return optax.stateless(add)


def _scale_by_rates(
    config: ConfigDict, steps_per_epoch: float, num_steps: int
) -> optax.GradientTransformation:
    """Each parameter's update times minus its group's learning rate at this step."""
    schedule = make_schedule(config, steps_per_epoch, num_steps)
    own = {
        group: make_schedule(
            ConfigDict({**config.to_dict(), "learning_rate": group.learning_rate}),
            steps_per_epoch,
            max(1, int(group.epochs * steps_per_epoch)),
        )
        for group in groups(config)
        if group.epochs
    }

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any) -> tuple[Any, Any]:
        assigned = assign(params, config)
        rate = schedule(state.count)

        def one(name: str, update: jax.Array) -> jax.Array:
            group = assigned[name]
            if group in own:
                return update * -own[group](state.count)
            if group.learning_rate != config.learning_rate:
                update = update * (group.learning_rate / config.learning_rate)
            return update * -rate

        count = optax.safe_increment(state.count)
        return paths.tree_map(one, updates), optax.ScaleByScheduleState(count)

    def init(params: Any) -> optax.ScaleByScheduleState:
        decays(params, config)  # refuses what matches nothing
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    return optax.GradientTransformation(init, update)


def l2_penalty(params: Any, config: ConfigDict) -> jax.Array:
    """float32 []: the sum of ½ · weight decay · ‖parameter‖², whose gradient the decay is.

    A decoupled decay is the gradient of nothing, and is not part of it.
    """
    leaves = paths.flatten(params)
    by_decay: dict[float, list[jax.Array]] = {}
    for name, decay in decays(params, config, decoupled=False).items():
        by_decay.setdefault(decay, []).append(jnp.sum(jnp.square(leaves[name])))
    total = jnp.float32(0)
    for decay, squares in by_decay.items():
        total = total + 0.5 * decay * jnp.sum(jnp.array(squares))
    return total
