"""The evaluation loop over the checkpoints of a workdir."""

import contextlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import files
from cifar_jax.errors import Diverged, UsageError, UserError
from cifar_jax.evaluate.evaluator import Evaluator
from cifar_jax.evaluate.evaluators import Evaluators
from cifar_jax.workdir import checkpoint, description

__all__ = ["Evaluator", "Evaluators", "evaluate"]


def evaluate(
    config: ConfigDict | None,
    workdir: str | os.PathLike[str],
    *,
    once: bool = False,
    step: int | str | None = None,
    ema: bool = True,
    split: str = "test",
    num_examples: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> dict[int, float]:
    """Evaluates each new checkpoint of `workdir` until training has ended; `once`: the newest; with
    `step`, a step or "best", that one alone. Returns the accuracies (top-1) by step.

    Where `config` is None, it is the one that the workdir holds, with `overrides` by path, as
    {"data.dir": "~/other"}, which are for that one alone. Raises UserError for what a user can fix,
    as `once` without a checkpoint, and Diverged where training has.
    """
    workdir, overrides = files.resolve(workdir, "--workdir"), overrides or {}
    own_data, once = True, once or step is not None
    if config is None:
        config = description.load_for_eval(workdir, overrides, wait=not once)
        stored, now = (config_lib.flat(each) for each in (description.load(workdir), config))
        chosen = filter(config_lib.chooses_images, overrides)
        own_data = all(now[path] == stored.get(path) for path in chosen)
    elif overrides:
        raise UsageError(
            "overrides change the config that the workdir holds, but a config is given: change "
            "that, or give None in its place."
        )
    else:
        config = config_lib.resolve(config)
        description.check_same_run(config, workdir)
    evaluator = (Evaluators if config_lib.several(config) else Evaluator)(
        config,
        workdir,
        ema=ema,
        split=split,
        num_examples=num_examples,
        progress=True,
        own_data=own_data,
    )
    folder, report = _checkpoints(workdir, config), partial(print, flush=True)
    found: dict[int, float] = {}
    with evaluator:
        if not once and not checkpoint.steps(folder):
            report(f"Waiting for the first checkpoint in {folder}")
        done = -1
        while not (once and found):
            if once:
                number = checkpoint.choose(folder, step, report)
            else:
                number = checkpoint.wait_for_new(folder, done, config.eval.poll_seconds, report)
            if number is None and once:
                raise UserError(f"No checkpoint in {folder} yet. Without --once, it is waited for.")
            if number is None:
                if line := checkpoint.status(folder).diverged:
                    raise Diverged(line)
                break
            with contextlib.suppress(FileNotFoundError):  # by retention; there is a later one
                found[number] = evaluator.evaluate(number)
                done = number
    return found


def _checkpoints(workdir: Path, config: ConfigDict) -> Path:
    """The folder in which new checkpoints appear: of several networks, that of the first which has
    not diverged."""
    if not config_lib.several(config):
        return workdir / "checkpoints"
    count = len(config_lib.members(config))
    each = [description.member(workdir, number) / "checkpoints" for number in range(count)]
    return next((path for path in each if not checkpoint.status(path).diverged), each[0])
