"""Training: `train` is what `main.py` and a notebook call."""

import contextlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import files, models, steps
from cifar_jax.devices import replicas
from cifar_jax.errors import Diverged, UsageError
from cifar_jax.loop.run import run_steps
from cifar_jax.loop.saver import AfterCheckpoint, Saver, forget_evaluations
from cifar_jax.loop.training import Result, Training, prepare
from cifar_jax.members import training as members
from cifar_jax.models import overview
from cifar_jax.telemetry import display
from cifar_jax.telemetry.log import Log
from cifar_jax.workdir import checkpoint, description, transfer


def train(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    after_checkpoint: AfterCheckpoint | None = None,
    *,
    from_step: int | None = None,
    restart: bool = False,
) -> Result:
    """Trains to the end of the run in `workdir`, from its last whole checkpoint if there is one, or
    from that of `from_step`; with `restart` from the beginning, whatever there is.

    `config` is resolved and validated before anything is written, and itself stays as it is.
    `after_checkpoint` is called with the step of each checkpoint once it is complete; what it
    returns, if anything, is shown as the last precision @ 1. Raises UserError for what a user can
    fix, Diverged where training is of no use any more, and Interrupted, with all steps saved, after
    a signal (in a notebook: the stop button), for the same call to go on from there.
    """
    if restart and from_step is not None:
        raise UsageError("--restart begins at step 0, --from_step elsewhere: choose one of them.")
    workdir = files.resolve(workdir, "--workdir")
    config = config_lib.resolve(config)
    if config.cluster and not jax.distributed.is_initialized():
        raise UsageError(
            f"config.cluster = {config.cluster!r}, but only main.py joins the processes of a run. "
            "Start that, or leave it out."
        )
    changes = description.check_same_run(config, workdir)
    if config_lib.several(config):
        return members.train(config, workdir, changes, after_checkpoint, from_step, restart)
    run = prepare(config, description.load_dataset(workdir))
    initial = run.state
    if config.init_from:
        initial = _transferred(run, workdir, from_step, restart)

    # From here on, and no earlier, something is written.
    with contextlib.closing(Saver(config, workdir / "checkpoints", after_checkpoint)) as saver:
        state = saver.restore(initial, from_step, restart)
        first = int(state.step)
        if saver.newest is not None:
            print(f"Resuming from step {first} in {saver.folder}")
        for change in changes:
            print(f"With another config: {change}")
        if saver.to_compare and first < run.num_steps:
            saver.tell()
        if first >= run.num_steps or saver.out_of_patience:
            print(" ".join([f"Training has already ended at step {first}.", saver.out_of_patience]))
            saver.finish(first)
            saver.tell()
            return Result(jax.tree.map(jnp.asarray, state), saver.folder / str(first))
        if from_step is not None or restart:
            forget_evaluations(workdir, first)
        progress = display.Display(run.num_steps, first, len(run.data) / config.batch_size)
        log = Log(config, workdir, saver.diverged, progress, first, run.loss_bound())
        with contextlib.closing(log):
            rows = overview.layers(
                run.step.keywords["model"], run.step.keywords["inputs"].image_shape
            )
            log.describe(state.params, rows, run.data.class_names)
            log.line(" ".join([f"Training on {run.device}.", *models.remarks(config.dtype)]))
            shardings = steps.state_shardings(state, run.mesh, config.shard_optimizer)
            try:
                state = run_steps(run, jax.tree.map(replicas.put, state, shardings), log, saver)
            except Diverged as error:
                saver.give_up(error)
                raise
        if saver.out_of_patience:
            print(f"Training ends at step {int(state.step)}. {saver.out_of_patience}")
        saver.finish(int(state.step))
        return Result(state, saver.folder / str(int(state.step)))


def _transferred(
    run: Training, workdir: Path, from_step: int | None, restart: bool
) -> steps.TrainState:
    """`run.state` with what config.init_from has for it, where no checkpoint will take its place.

    Process 0 looks, for all: what others see there may be newer. Raises as `transfer.take` does.
    """
    variables = run.state.variables
    resumes = from_step is not None or checkpoint.has_any(workdir / "checkpoints")
    if jax.process_index() == 0 and (restart or not resumes):
        source = files.resolve(run.config.init_from, "config.init_from")
        variables = transfer.take(source, variables)
    # Anew, as an optimiser's state may be of the initial parameters.
    taken = steps.init_state(replicas.broadcast(variables), run.step.keywords["optimizer"])
    return run.state.replace(**vars(taken))  # a proxy keeps its own
