"""The optimiser, from `config.optim`. Nothing here knows about models, data or files."""

from cifar_jax.optim.chain import SWEPT, l2_penalty, make_optimizer
from cifar_jax.optim.groups import NAMES, groups
from cifar_jax.optim.schedule import SCHEDULES, make_schedule

__all__ = [
    "NAMES",
    "SCHEDULES",
    "SWEPT",
    "groups",
    "l2_penalty",
    "make_optimizer",
    "make_schedule",
]
