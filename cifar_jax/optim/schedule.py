"""The learning rate of each step."""

import optax
from ml_collections import ConfigDict

from cifar_jax.errors import unknown

SCHEDULES = ("exponential", "constant", "cosine", "linear")


def make_schedule(config: ConfigDict, steps_per_epoch: float, num_steps: int) -> optax.Schedule:
    """The learning rate of each step, from `config.optim`.

    exponential: a staircase, times decay_factor every decay_epochs (in steps, truncated, as the
    tutorial counts them). cosine and linear: down to final_factor at the last of `num_steps`.
    Before any of them, warmup_epochs from warmup_factor up to 1.
    """
    peak, warmup = config.learning_rate, int(config.warmup_epochs * steps_per_epoch)
    remaining = max(1, num_steps - warmup)
    if config.schedule == "exponential":
        every = max(1, int(config.decay_epochs * steps_per_epoch))
        decay = optax.exponential_decay(peak, every, config.decay_factor, staircase=True)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, remaining, alpha=config.final_factor)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * config.final_factor, remaining)
    elif config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    else:
        raise unknown("config.optim.schedule", config.schedule, SCHEDULES)
    if not warmup:
        return decay
    return optax.join_schedules(
        [optax.linear_schedule(peak * config.warmup_factor, peak, warmup), decay], [warmup]
    )
