"""Verifies each checkpoint of a run: `python -m cifar_jax.workdir WORKDIR`. Needs no JAX."""

import sys
from pathlib import Path

from cifar_jax import files
from cifar_jax.errors import UserError, exit_code
from cifar_jax.workdir import checkpoint


def listing(folder: Path) -> tuple[list[str], bool]:
    """A line for each checkpoint, and whether the newest is whole."""
    lines, state, good = [], checkpoint.status(folder), False
    for step in checkpoint.steps(folder):
        try:
            problem = checkpoint.check(folder / str(step))
            good = not problem
            lines.append(f"{step} damaged: {problem}" if problem else f"{step} whole")
        except FileNotFoundError:
            continue
        except UserError as error:
            good = False
            lines.append(f"{step} unreadable: {error}")
    lines += [f"{name} set aside" for name in checkpoint.all_set_aside(folder)]
    if state.good is not None:
        lines.append(f"last proven good: {state.good}")
    if state.best is not None:
        lines.append(f"best, with an accuracy of {state.best_accuracy:.3f}: {state.best}")
    if state.finished is not None:
        lines.append(f"training has ended at step {state.finished}")
    if state.diverged:
        lines.append(f"training has diverged: {state.diverged}")
    return lines, good


def _main(argv: list[str]) -> None:
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("Usage: python -m cifar_jax.workdir WORKDIR")
    workdir = files.resolve(argv[0], "WORKDIR")
    several = sorted(
        workdir.glob("members/*/checkpoints"), key=lambda path: (len(path.parent.name), path)
    )
    for folder in several or [workdir / "checkpoints"]:
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist: nothing was trained there.")
        if several:
            print(f"{folder.parent}:")
        lines, good = listing(folder)
        print("\n".join(lines) or "There is no checkpoint.")
        if not good:
            raise UserError(f"{folder} has no whole newest checkpoint.")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: _main(sys.argv[1:])))
