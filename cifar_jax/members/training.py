"""Training of several networks together."""

import contextlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import models
from cifar_jax.data import feeds
from cifar_jax.devices import replicas
from cifar_jax.errors import UserError
from cifar_jax.loop import training
from cifar_jax.loop.run import run_steps
from cifar_jax.loop.saver import AfterCheckpoint, Saver, forget_evaluations
from cifar_jax.loop.training import Result, Training
from cifar_jax.members.log import Logs
from cifar_jax.members.saver import Savers
from cifar_jax.models import overview
from cifar_jax.steps.members import base, train_step
from cifar_jax.telemetry import display
from cifar_jax.telemetry.log import Log
from cifar_jax.workdir import description


def train(
    config: ConfigDict,
    workdir: Path,
    changes: list[str],
    after_checkpoint: AfterCheckpoint | None,
    from_step: int | None,
    restart: bool,
) -> Result:
    """`train` for the networks of config.num_seeds and config.sweep: the state is stacked, and the
    checkpoint is that of the first one."""
    configs = config_lib.members(config)
    folders = [description.member(workdir, number) for number in range(len(configs))]
    run = training.prepare(base(configs), description.load_dataset(workdir))
    _check_room(run, len(configs))
    runs = [
        run._replace(config=own, state=training.first_state(run.step, run.data, own.seed))
        for own in configs
    ]
    step = partial(train_step, single=run.step, configs=configs, mesh=run.mesh)

    def begin() -> None:
        for each, folder in zip(runs, folders, strict=True):
            description.store(each.config, folder, first, run.device, run.dataset)

    single = [
        Saver(own, path / "checkpoints", None) for own, path in zip(configs, folders, strict=True)
    ]
    saver = Savers(single, workdir / description.MEMBERS, after_checkpoint, begin)
    with contextlib.closing(saver):
        state = saver.restore([each.state for each in runs], from_step, restart)
        first = int(state.step)
        if saver.newest is not None:
            print(f"Resuming from step {first} in {saver.folder}")
        for change in changes:
            print(f"With another config: {change}")
        checkpoint = folders[0] / "checkpoints" / str(max(first, run.num_steps))
        if first >= run.num_steps:
            print(f"Training has already ended at step {first}.")
            saver.finish(first)
            saver.tell()
            return Result(jax.tree.map(jnp.asarray, state), checkpoint)
        if from_step is not None or restart:
            for folder in folders:
                forget_evaluations(folder, first)
        progress = display.Display(run.num_steps, first, len(run.data) / config.batch_size)
        logs = []
        rows = overview.layers(run.step.keywords["model"], run.step.keywords["inputs"].image_shape)
        for own, folder, one in zip(runs, folders, single, strict=True):
            options = one.diverged, display.Silent(), first, own.loss_bound()
            logs.append(Log(own.config, folder, *options))
            logs[-1].describe(own.state.params, rows, run.data.class_names)
        log = Logs(logs, config, workdir, lambda: saver.living, saver.lose, progress)
        with contextlib.closing(log):
            line = f"Training {len(configs)} networks on {run.device}."
            log.line(" ".join([line, *models.remarks(config.dtype)]))
            together = run._replace(config=config, step=step)
            state = run_steps(together, replicas.replicate(state, run.mesh), log, saver)
        saver.finish(int(state.step))
    return Result(state, checkpoint)


def _check_room(run: Training, count: int) -> None:
    """Raises UserError where so many states, and the gradients of them all, have no room."""
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    needed = 2 * own / 2**20  # MiB of each
    free = feeds.free_mib(run.mesh.local_devices)
    if count * needed > free:
        raise UserError(
            f"{count} networks need {count * needed:,.0f} MiB for states and gradients, and "
            f"{free:,} MiB are free. Train at most {int(free // needed)} together."
        )
