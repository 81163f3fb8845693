"""The evaluation loop over the checkpoints of a workdir."""

import contextlib
from collections import Counter
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
        params = parallel.replicate(params, self._mesh)
        totals: Counter[str] = Counter()
        for image, label, mask in batches.eval_batches(
            self._data, self._config.eval.batch_size, self._num_examples
        ):
            sums = self._step(params, {"image": image, "label": label, "mask": mask})
            totals.update({name: value.item() for name, value in sums.items()})
        count = totals.pop("count")
        assert count == self._num_examples, (count, self._num_examples)
        means = {name: total / count for name, total in totals.items()}
        self._write(step, means)
        print(summaries.precision_line(means["correct"]), flush=True)
        if "correct_of_views" in means:
            views = self._config.eval.views
            print(summaries.precision_line(means["correct_of_views"], views), flush=True)
        return means["correct"]

    def _write(self, step: int, means: dict[str, float]) -> None:
        if self._scalars is None:
            kind = "eval" if self._split == "test" else f"eval_{self._split}"
            self._scalars = summaries.Scalars(self._workdir, kind)
        suffix = "" if self._ema else "_raw"
        values = {
            name.replace("correct", "precision_at_1") + suffix: value
            for name, value in means.items()
        }
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
