"""Resuming from a checkpoint, and saving one when it is due."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax import steps
from cifar_jax.devices import replicas
from cifar_jax.errors import Diverged, UsageError, UserError, reason
from cifar_jax.workdir import checkpoint, pytrees, records

SAVE = 1  # a process's request to save; a greater one is a signal's number: save, then stop

AfterCheckpoint = Callable[[int], float | None]


class Saver:
    """Restores the state of a run, and saves it when it is due."""

    def __init__(self, config: ConfigDict, folder: Path, after_checkpoint: AfterCheckpoint | None):
        """Raises UserError where another process writes to `folder`, or nothing can be written, and
        UsageError where the best checkpoint is asked for, but none is evaluated."""
        if config.checkpoint.keep_best and after_checkpoint is None:
            raise UsageError(
                f"config.checkpoint.keep_best = {config.checkpoint.keep_best!r} needs evaluations "
                "while it trains: pass after_checkpoint=evaluator.evaluate, where evaluator is an "
                f"Evaluator(config, workdir, split={config.checkpoint.keep_best!r})."
            )
        self.folder, self._checkpoint = folder, config.checkpoint
        self._after_checkpoint = after_checkpoint
        self._stops = config.divergence.action == "stop"
        self.newest: int | None = None  # the last checkpoint
        self._good: int | None = None  # the last that later steps have proven good
        self._keep_best, self._patience = config.checkpoint.keep_best, config.stop.patience
        self._compared = checkpoint.Status()  # the best one, where it is kept
        self._time = time.monotonic()  # of it
        self._writer = pytrees.Writer(
            folder, self._checkpoint.keep, self._checkpoint.keep_every_steps
        )
        self._all_finite = jax.jit(all_finite)

    def restore(
        self, state: steps.TrainState, from_step: int | None = None, restart: bool = False
    ) -> steps.TrainState:
        """The state that the run goes on from: `state`, or that of the last whole checkpoint, or
        of `from_step`; with `restart`, `state` in any case.

        Later checkpoints are renamed. Raises UserError where there are checkpoints and none of them
        can be used, or one cannot be read now.
        """
        first = jax.process_index() == 0
        chosen = self._choose(from_step, restart) if first else None
        newest = int(replicas.gather(-1 if chosen is None else chosen)[0])  # for all processes
        status = checkpoint.status(self.folder)
        self._good = status.good
        if self._good is not None and self._good > newest:
            self._good = None
        if self._keep_best:
            self._compared = _up_to(newest, status)
        if newest >= 0:
            state = pytrees.restore(self.folder, newest, state)
            if int(state.step) != newest:
                raise UserError(
                    f"{self.folder / str(newest)} holds step {int(state.step)}: it was renamed. "
                    "Give it its name back."
                )
            self.newest = newest
        return state

    def _choose(self, from_step: int | None, restart: bool) -> int | None:
        suffix, chosen = checkpoint.SUPERSEDED, from_step
        if from_step is not None:
            self._check(from_step)
        elif not restart:
            suffix = checkpoint.DAMAGED
            problems: list[str] = []
            chosen = checkpoint.newest(self.folder, problems.append)
            if chosen is None and checkpoint.has_any(self.folder):
                raise UserError(
                    f"{' '.join([*problems, ''])}No checkpoint in {self.folder} can be used. "
                    "--restart begins at step 0, and keeps them under other names."
                )
            for problem in problems:
                print(problem)
        try:
            for step in checkpoint.steps(self.folder):
                if chosen is None or step > chosen:
                    name = checkpoint.set_aside(self.folder, step, suffix)
                    print(f"Checkpoint {step} is kept as {self.folder / name}.")
        except OSError as error:
            raise UserError(f"Cannot write to {self.folder}: {reason(error)}.") from error
        return chosen

    def _check(self, step: int) -> None:
        try:
            problem = checkpoint.check(self.folder / str(step))
        except FileNotFoundError:
            known = ", ".join(map(str, checkpoint.steps(self.folder))) or "none"
            problem = f"there is none; there are {known}"
        if problem:
            raise UserError(f"--from_step={step}: {problem}, in {self.folder}.")

    def begin(self) -> None:
        """Marks the run as training, once its first step is done."""
        known = self._compared._asdict()
        best = {name: known[name] for name in ("best", "best_accuracy", "evaluated", "worse")}
        self._mark(finished=None, diverged="", **best)

    def _mark(self, **changes: Any) -> None:
        if jax.process_index():
            return
        try:
            checkpoint.mark(self.folder, **changes)
        except OSError as error:
            raise UserError(f"Cannot write to {self.folder}: {reason(error)}.") from error

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps, by their number."""
        every = self._checkpoint.every_steps
        return bool(every and step % every == 0)

    def overdue(self) -> int:
        """The request SAVE where a checkpoint is due by the clock, else 0."""
        minutes = self._checkpoint.every_minutes
        return SAVE if minutes and time.monotonic() - self._time >= 60 * minutes else 0

    def next_due(self, step: int) -> float:
        """The next step after `step` to be saved by its number; infinite where none will be."""
        every = self._checkpoint.every_steps
        return (step // every + 1) * every if every else math.inf

    def save(self, step: int, state: steps.TrainState, healthy: bool = True) -> float | None:
        """Starts to save; returns what `after_checkpoint` does. With `healthy`, all steps since the
        last checkpoint were, and it has proven good. Raises Diverged and UserError."""
        # The loss is of the parameters before the update, and does not show yet what that did.
        if not self._all_finite(state.variables):
            if self._stops:
                raise self.diverged(f"The parameters are no longer finite after step {step - 1}")
            healthy = False
        if healthy:
            self._good = self.newest
        self._writer.save(step, state, self._good, self._compared.best)
        self.newest, self._time = step, time.monotonic()
        return self.tell()

    def tell(self) -> float | None:
        """Calls `after_checkpoint`, once the last save is complete, and returns its precision."""
        if self._after_checkpoint is None or self.newest is None:
            return None
        self.wait()
        accuracy = self._after_checkpoint(self.newest)
        if self._keep_best and accuracy is not None:
            self._compare(self.newest, accuracy)
        return accuracy

    def _compare(self, step: int, accuracy: float) -> None:
        """Notes the accuracy of a checkpoint, once: a later one of the same accuracy is not better.

        It is noted after the evaluation, so that one that a kill has cut short is done again."""
        last = self._compared
        if last.evaluated is not None and step <= last.evaluated:
            return
        best, worse = (last.best, last.best_accuracy), last.worse + 1
        if last.best_accuracy is None or accuracy > last.best_accuracy:
            best, worse = (step, float(accuracy)), 0
        changes: dict[str, Any] = {
            "best": best[0],
            "best_accuracy": best[1],
            "evaluated": step,
            "worse": worse,
        }
        self._compared = last._replace(**changes)
        self._mark(**changes)

    @property
    def to_compare(self) -> bool:
        """Whether the newest checkpoint was not evaluated yet, because of a kill, as it has to be
        for the run to end where it would have ended without."""
        return bool(self._keep_best and self.newest and self._compared.evaluated != self.newest)

    @property
    def out_of_patience(self) -> str:
        """Why the run ends before its last step; '' where it does not."""
        found = self._compared
        if not self._patience or found.worse < self._patience:
            return ""
        return (
            f"The accuracy ({self._keep_best}) has not improved for {found.worse} checkpoints: "
            f"the best one is {found.best}, with {found.best_accuracy:.3f}."
        )

    def diverged(self, what: str) -> Diverged:
        """The error of a run that has diverged, with the last good checkpoint."""
        good = self.newest if self._good is None else self._good
        last = (
            "There is no good checkpoint yet."
            if good is None
            else f"The last good checkpoint is {good}, in {self.folder}: --from_step={good} "
            "goes on from there."
        )
        return Diverged(
            f"{what}. {last} Try a lower --config.optim.learning_rate, "
            "--config.optim.warmup_epochs=1, or --config.dtype=float32."
        )

    def finish(self, step: int) -> None:
        """Marks the run as ended at the checkpoint of `step`, once that is complete."""
        self.wait()
        self._mark(finished=step, diverged="")

    def give_up(self, error: Diverged) -> None:
        """Marks the run as diverged: there will be no more checkpoints."""
        self.wait()
        self._mark(diverged=str(error))

    def wait(self) -> None:
        self._writer.wait()

    def close(self) -> None:
        self._writer.close()


def _up_to(step: int, status: checkpoint.Status) -> checkpoint.Status:
    """What is known of the best checkpoint for a run that goes on from `step`."""
    if status.best is None or status.best > step:
        return checkpoint.Status()
    if status.evaluated is not None and status.evaluated > step:  # it went back
        return status._replace(evaluated=step, worse=0)
    return status


def all_finite(tree: Any) -> jax.Array:
    """Whether no value of `tree` is NaN or infinite; a bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def forget_evaluations(workdir: Path, step: int) -> None:
    """Removes the records of evaluations of later checkpoints, which the run no longer has."""
    if jax.process_index():
        return
    try:
        records.drop(
            workdir / records.FILE, lambda r: r["kind"].startswith("eval") and r["step"] > step
        )
    except OSError as error:
        raise UserError(f"Cannot write to {workdir}: {reason(error)}.") from error
