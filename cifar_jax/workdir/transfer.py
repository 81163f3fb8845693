"""Parameters for a new run from the checkpoint of another: config.init_from."""

import sys
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from cifar_jax import files
from cifar_jax.errors import UsageError, UserError
from cifar_jax.workdir import checkpoint, pytrees

_SHOWN = 8  # arrays that a line names


def initialise(variables: dict[str, Any], init_from: str) -> dict[str, Any]:
    """`variables` with those arrays that the newest whole checkpoint of the workdir `init_from` has
    under the same path and in the same shape: the EMA of parameters and model state there.

    Prints what was taken and what was not. Raises UsageError where nothing matches, and UserError
    where there is no checkpoint or it cannot be read.
    """
    workdir = files.resolve(init_from, "config.init_from")
    folder = workdir / "checkpoints"
    step = checkpoint.newest(folder, lambda line: print(line, file=sys.stderr))
    if step is None:
        raise UserError(
            f"config.init_from = {init_from}: no checkpoint in {folder}. Name the workdir of a run."
        )
    there = _flatten(pytrees.restore_ema(folder, step))
    here = _flatten(variables)
    taken = [path for path in here if path in there and there[path].shape == here[path].shape]
    if not any(path in _flatten({"params": variables["params"]}) for path in taken):
        raise UsageError(
            f"config.init_from = {init_from}: no parameter there has the name and shape of one "
            f"here. There: {_listed(there)}; here: {_listed(here)}. Choose a run of this model."
        )
    if jax.process_index() == 0:
        print(f"Initialised from step {step} of {workdir}: {len(taken)} of {len(here)} arrays.")
        for what, arrays in (("As initialised here", here), ("Not taken from there", there)):
            if left := {path: array for path, array in arrays.items() if path not in taken}:
                print(f"{what}: {_listed(left)}.")
    found = {path: there[path].astype(here[path].dtype) for path in taken}
    return traverse_util.unflatten_dict(
        {tuple(path.split("/")): array for path, array in (here | found).items()}
    )


def _flatten(variables: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(variables, sep="/")


def _listed(arrays: dict[str, np.ndarray]) -> str:
    named = [
        f"{path.removeprefix('params/')} {list(array.shape)}"
        for path, array in sorted(arrays.items())[:_SHOWN]
    ]
    more = len(arrays) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
