"""One page about one run or several: index.html, which holds all that it shows, beside its plots.

What a page has to leave out it names: a run may be young, and its data or checkpoints elsewhere.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cifar_jax import config as config_lib
from cifar_jax import files
from cifar_jax.data import sources
from cifar_jax.errors import UserError, reason
from cifar_jax.evaluate import Evaluator
from cifar_jax.models import overview
from cifar_jax.report import seeds, tables
from cifar_jax.report.charts import of_runs
from cifar_jax.report.history import History
from cifar_jax.report.runs import Evaluation, Run, load, with_unique_names
from cifar_jax.report.sections import section
from cifar_jax.telemetry import pictures
from cifar_jax.workdir import checkpoint, description


def make(
    workdirs: Sequence[str | os.PathLike[str]], overrides: Mapping[str, Any] | None = None
) -> Path:
    """Writes the page about `workdirs` into the first one's report/, and returns its path. Networks
    that trained together are as many runs.

    Each newest checkpoint is evaluated for it, with `overrides` of its config by path. Raises
    UserError where nothing was trained, or nothing can be written.
    """
    folders = [files.resolve(workdir, "--workdir") for workdir in workdirs]
    each = [member for folder in folders for member in description.members(folder) or [folder]]
    runs = [load(folder, partial(_evaluate, overrides=overrides or {})) for folder in each]
    default = config_lib.recipe("default")
    default.data.dir = str(sources.data_dir(default.data))  # as config.json has it
    return write(runs, folders[0] / "report", default.to_dict())


def _evaluate(workdir: Path, overrides: Mapping[str, Any]) -> Evaluation:
    config = description.load_for_eval(workdir, overrides, wait=False)
    step = checkpoint.newest(workdir / "checkpoints", print)
    if step is None:
        raise UserError(f"No checkpoint in {workdir / 'checkpoints'} yet.")
    evaluator = Evaluator(config, workdir, progress=True)
    data, variables = evaluator.data, evaluator.restore(step)
    found = evaluator.predict(variables)
    rows = overview.layers(evaluator.model, evaluator.inputs.image_shape)
    dataset = description.load_dataset(workdir)
    counts = dataset.class_counts if dataset else ()
    return Evaluation(step, found, data.images, data.class_names, variables["params"], rows, counts)


def write(runs: Sequence[Run], out: Path, default: Mapping[str, Any]) -> Path:
    """Writes the page into `out` and returns its path; `default` holds the config's defaults.

    Raises UserError where `out` cannot be written. An index.html is whole or not there.
    """
    runs = with_unique_names(runs)
    histories = {run.name: History.of(run.records) for run in runs}
    curves, left_out = of_runs(histories)
    suffixes = [f"-{number}" for number in range(1, len(runs) + 1)] if len(runs) > 1 else [""]
    sections = [section(run, suffix, default) for run, suffix in zip(runs, suffixes, strict=True)]
    found = seeds.recipes(runs, histories)
    template = files.template(Path(__file__).with_name("page.html.j2"), data=pictures.data_url)
    page = template.render(
        runs=runs,
        finals=tables.without_unknown([tables.final(run, histories[run.name]) for run in runs]),
        charts=curves,
        left_out=left_out,
        sections=sections,
        differences=tables.differences(runs),
        means=seeds.means(found),
        comparisons=seeds.comparisons(found),
    )
    drawn = [*curves, *(each for one in sections for each in one.charts)]
    contents = {each.file: each.light for each in drawn}
    # A name may hold bytes that are not text.
    _replace(out, contents | {"index.html": page.encode(errors="backslashreplace")})
    return out / "index.html"


def _replace(out: Path, contents: Mapping[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if out.is_symlink():  # others may write to a workdir; the report stays within
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        for name, content in contents.items():
            files.write(out / name, content)
    except OSError as error:
        raise UserError(f"Cannot write the report to {out}: {reason(error)}.") from error
