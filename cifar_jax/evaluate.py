"""The evaluation loop over the checkpoints of a workdir."""

import contextlib
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cifar_jax import checkpoint, optim, parallel, steps, summaries
from cifar_jax.data import batches, sources
from cifar_jax.errors import UsageError, UserError


class Evaluator:
    """Measures precision @ 1 of checkpoints on one split, every image counted once."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        *,
        ema: bool = True,
        split: str = "test",
        num_examples: int = 0,
    ):
        self._config, self._ema, self._split = config, ema, split
        self._folder = workdir / "checkpoints"
        self._data = sources.load(config.data, split)
        self._num_examples = num_examples or len(self._data)
        if not 0 < self._num_examples <= len(self._data):
            raise UsageError(
                f"--num_examples={num_examples}, but the {split} split has {len(self._data):,}."
            )
        model = steps.make_model(config, len(self._data.class_names))
        optimizer = steps.make_optimizer(config, optim.make_schedule(config.optim, 1.0, 1))
        self._like = jax.eval_shape(partial(steps.init_state, config, model, optimizer))
        self._mesh = parallel.make_mesh(config.num_devices)
        step = partial(steps.eval_step, config=config, model=model)
        self._step = parallel.data_parallel(step, self._mesh, sharded={1: 0}, donate=False)
        self._workdir = workdir
        self._scalars: summaries.Scalars | None = None  # opened by the first evaluation

    def evaluate(self, step: int) -> float:
        """Precision @ 1 of the checkpoint `step`; prints the tutorial's line, writes the scalars.

        Raises FileNotFoundError where the checkpoint has been deleted meanwhile.
        """
        state = checkpoint.restore(self._folder, step, self._like)
        params = optim.averages(state.opt_state) if self._ema else state.params
        count, correct, cross_entropy = 0, 0, 0.0
        params = parallel.replicate(params, self._mesh)
        for image, label, mask in batches.eval_batches(
            self._data, self._config.eval.batch_size, self._num_examples
        ):
            sums = self._step(params, {"image": image, "label": label, "mask": mask})
            count += int(sums["count"])
            correct += int(sums["correct"])
            cross_entropy += float(sums["cross_entropy"])
        assert count == self._num_examples, (count, self._num_examples)
        precision = correct / count
        self._write(step, precision, cross_entropy / count)
        print(summaries.precision_line(precision), flush=True)
        return precision

    def _write(self, step: int, precision: float, cross_entropy: float) -> None:
        if self._scalars is None:
            kind = "eval" if self._split == "test" else f"eval_{self._split}"
            self._scalars = summaries.Scalars(self._workdir, kind)
        suffix = "" if self._ema else "_raw"
        values = {f"precision_at_1{suffix}": precision, f"cross_entropy{suffix}": cross_entropy}
        self._scalars.write(step, values)

    def close(self) -> None:
        if self._scalars:
            self._scalars.close()


def evaluate(
    config: ConfigDict,
    workdir: Path,
    *,
    once: bool = False,
    ema: bool = True,
    split: str = "test",
    num_examples: int = 0,
) -> None:
    """Evaluates each new checkpoint of `workdir` until training has ended; `once`: the newest.

    Raises UserError with `once` where there is no checkpoint yet.
    """
    folder, report = workdir / "checkpoints", partial(print, flush=True)
    evaluator = Evaluator(config, workdir, ema=ema, split=split, num_examples=num_examples)
    with contextlib.closing(evaluator):
        if not once and not checkpoint.steps(folder):
            report(f"Waiting for the first checkpoint in {folder}")
        done = -1
        while True:
            if once:
                step = checkpoint.newest(folder, report)
            else:
                step = checkpoint.wait_for_new(folder, done, config.eval.poll_seconds, report)
            if step is None and once:
                raise UserError(f"No checkpoint in {folder} yet. Without --once, it is waited for.")
            if step is None:
                return
            try:
                evaluator.evaluate(step)
            except FileNotFoundError:
                report(f"Checkpoint {step} was deleted before it was read.")
                continue
            if once:
                return
            done = step
