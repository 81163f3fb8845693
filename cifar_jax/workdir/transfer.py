"""Transfer learning: a new run begins with what another one has learned (config.init_from)."""

from pathlib import Path
from typing import Any

from flax import traverse_util

from cifar_jax.errors import UsageError
from cifar_jax.workdir import checkpoint, description, pytrees

_SHOWN = 8  # arrays that a line names

Shape = tuple[int, ...]


def take(workdir: Path, variables: dict[str, Any]) -> dict[str, Any]:
    """`variables`, "params" and the model's state by collection, with the arrays that the newest
    whole checkpoint of `workdir` has of the same path and shape: its EMA. The others stay.

    Prints what was taken and what was not. Raises UsageError where there is no checkpoint, or none
    of its arrays fits, and UserError where it cannot be read.
    """
    folder, here = workdir / "checkpoints", traverse_util.flatten_dict(variables, sep="/")
    model = _model(workdir)
    while True:
        step = checkpoint.newest(folder, lambda line: print(f"{workdir}: {line}"))
        if step is None:
            raise UsageError(
                f"config.init_from: {folder} has no whole checkpoint. Train a network there first."
            )
        try:
            there = pytrees.variable_shapes(folder, step)
            same = {path: array for path, array in here.items() if there.get(path) == array.shape}
            if not same:
                raise UsageError(
                    f"config.init_from: nothing in {folder / str(step)}, of a run of '{model}', "
                    f"has the path and the shape of an array of this model: {_nearest(there, here)}"
                    ". Choose a run of the same model, or leave it out."
                )
            like = traverse_util.unflatten_dict(same, sep="/")
            taken = pytrees.restore_variables(folder, step, like, ema=True)
            break
        except FileNotFoundError:  # removed meanwhile, by the retention of a run that goes on
            continue
    print(f"Initialised from {workdir} at step {step}: {len(same)} of {len(here)} arrays.")
    if others := _differences(there, here):
        print(f"Not taken: {_listed(others)}.")
    return traverse_util.unflatten_dict(here | traverse_util.flatten_dict(taken, sep="/"), sep="/")


def _model(workdir: Path) -> str:
    """The name of the model that was trained there."""
    try:
        return description.load(workdir).model.name
    except FileNotFoundError:
        raise UsageError(
            f"config.init_from: {workdir} has no {description.FILE}, expected the workdir of a "
            "run. Check the path, or train a network there first."
        ) from None


def _differences(there: dict[str, Shape], here: dict[str, Any]) -> list[str]:
    """The arrays that only one of the two has, or that differ in their shape; why, in brackets."""
    found = []
    for path in here | there:
        if path not in there:
            why = "not there"
        elif path not in here:
            why = "not here"
        elif there[path] == here[path].shape:
            continue
        else:
            why = f"{list(there[path])} there, {list(here[path].shape)} here"
        found.append(f"{_name(path)} ({why})")
    return found


def _nearest(there: dict[str, Shape], here: dict[str, Any]) -> str:
    """Why nothing fits, by what comes nearest to it: arrays of the same path."""
    if common := there.keys() & here.keys():
        shared = {path: array for path, array in here.items() if path in common}
        return _listed(_differences({path: there[path] for path in shared}, shared))
    theirs, ours = (_listed([_name(path) for path in paths]) for paths in (there, here))
    return f"there are {theirs}, here {ours}"


def _name(path: str) -> str:
    return path.removeprefix("params/")


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join([*names[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
