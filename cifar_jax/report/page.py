"""One page about one run or several: index.html, which holds all that it shows, beside its plots.

What a page has to leave out it names: a run may be young, and its data or checkpoints elsewhere.
"""

import base64
import datetime
import errno
import json
import math
import os
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import files, optim
from cifar_jax.data import sources
from cifar_jax.errors import UserError, reason
from cifar_jax.evaluate import Evaluator
from cifar_jax.models import overview
from cifar_jax.report import charts, plots
from cifar_jax.report.charts import Chart, Histories, chart, of_runs
from cifar_jax.report.history import History
from cifar_jax.telemetry import pictures, predictions
from cifar_jax.workdir import checkpoint, description, records

RIGHT, WRONG = 8, 12  # example images of each kind
UNKNOWN = "–"
_BESIDE_THE_RECIPE = ("seed", "data.dir")  # may differ among the runs of one mean
_MAX_DEPTH = 20  # of a config
_TRAIN_IMAGES = {"cifar10": 50_000, "cifar100": 50_000}


class Evaluation(NamedTuple):
    """What the averaged parameters of a checkpoint say about the test split."""

    step: int
    predictions: predictions.Predictions
    images: np.ndarray  # uint8 [N, H, W, 3]
    class_names: tuple[str, ...]
    params: Any  # layer -> {"kernel", "bias"}, numpy arrays
    layers: Sequence[plots.LayerRow]


class Run(NamedTuple):
    name: str
    workdir: Path
    record: dict[str, Any]  # config.json
    records: list[records.Record]
    evaluation: Evaluation | None
    missing: str  # why there is no evaluation


def make(workdirs: Sequence[Path], default: ConfigDict, overrides: Mapping[str, Any]) -> Path:
    """Writes the page about `workdirs` into the first one's report/, and returns its path.

    Each newest checkpoint is evaluated for it, with `overrides` from the command line. Raises
    UserError where nothing was trained, or nothing can be written.
    """
    runs = [
        load(path, partial(_evaluate, default=default, overrides=overrides)) for path in workdirs
    ]
    default.data.dir = str(sources.data_dir(default.data))  # as config.json has it
    return write(runs, workdirs[0] / "report", default.to_dict())


def _evaluate(workdir: Path, default: ConfigDict, overrides: Mapping[str, Any]) -> Evaluation:
    config = description.load_for_eval(workdir, default, dict(overrides), wait=False)
    step = checkpoint.newest(workdir / "checkpoints", print)
    if step is None:
        raise UserError(f"No checkpoint in {workdir / 'checkpoints'} yet.")
    evaluator = Evaluator(config, workdir, progress=True)
    data, params = evaluator.data, optim.averages(evaluator.restore(step).opt_state)
    found = evaluator.predict(params)
    size = (config.augment.crop_size, config.augment.crop_size, data.images.shape[-1])
    rows = overview.layers(evaluator.model, size)
    return Evaluation(step, found, data.images, tuple(data.class_names), params, rows)


def load(workdir: Path, evaluate: Callable[[Path], Evaluation]) -> Run:
    """What `workdir` holds and what `evaluate` finds, whose UserError is kept for the page to tell.

    Raises UserError where nothing was trained, or what is there cannot be read.
    """
    try:
        record = _record(workdir)
        lines = records.read(workdir / records.FILE)
    except FileNotFoundError:
        raise UserError(
            f"{workdir} has no {description.FILE}: nothing was trained there."
        ) from None
    except OSError as error:
        raise UserError(f"{workdir} cannot be read: {reason(error)}.") from error
    evaluation, missing = None, ""
    try:
        evaluation = evaluate(workdir)
    except UserError as error:
        missing = str(error)
    except FileNotFoundError:
        missing = "Its newest checkpoint was deleted before it was read."
    return Run(workdir.resolve().name, workdir, record, lines, evaluation, missing)


def _record(workdir: Path) -> dict[str, Any]:
    """config.json. Somebody else may have written it: besides the config, what is not of the type
    that it should be is left out."""
    path = workdir / description.FILE
    try:
        record = files.read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not a config of cifar_jax ({reason(error)}).") from error
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(config, dict) or _deeper(config, _MAX_DEPTH):
        raise UserError(
            f"{path} is not a config of cifar_jax (it has no fields, or too deep ones)."
        )
    description.load(workdir)  # refuses what else is no config
    versions = record.get("versions")
    changes = record.get("changes")
    return {
        "config": config,
        "versions": _texts(versions) if isinstance(versions, dict) else {},
        "changes": [c for c in changes if _is_change(c)] if isinstance(changes, list) else [],
        **{name: v for name in ("git_commit", "device") if isinstance(v := record.get(name), str)},
    }


def _deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return False
    return depth == 0 or any(_deeper(each, depth - 1) for each in inner)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _is_change(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and type(found.get("step")) is int
        and isinstance(found.get("was"), dict)
        and isinstance(found.get("is"), dict)
        and not _deeper(found, _MAX_DEPTH)
    )


def write(runs: Sequence[Run], out: Path, default: Mapping[str, Any]) -> Path:
    """Writes the page into `out` and returns its path; `default` holds the config's defaults.

    Raises UserError where `out` cannot be written. An index.html is whole or not there.
    """
    runs = _with_unique_names(runs)
    histories = {run.name: History.of(run.records) for run in runs}
    curves, left_out = of_runs(histories)
    suffixes = [f"-{number}" for number in range(1, len(runs) + 1)] if len(runs) > 1 else [""]
    sections = [_section(run, suffix, default) for run, suffix in zip(runs, suffixes, strict=True)]
    page = _template().render(
        runs=runs,
        finals=_without_unknown([_final(run, histories[run.name]) for run in runs]),
        charts=curves,
        left_out=left_out,
        sections=sections,
        differences=_differences(runs),
        means=_means_over_seeds(runs, histories),
    )
    drawn = [*curves, *(each for section in sections for each in section.charts)]
    contents = {each.file: each.light for each in drawn}
    # A name may hold bytes that are no text.
    _replace(out, contents | {"index.html": page.encode(errors="backslashreplace")})
    return out / "index.html"


def _with_unique_names(runs: Iterable[Run]) -> list[Run]:
    """A workdir once; names that are the same grow by the folders above until they differ."""
    unique = {run.workdir.resolve(): run for run in runs}
    names, depth = [run.name for run in unique.values()], 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in unique]
    return [run._replace(name=name) for run, name in zip(unique.values(), names, strict=True)]


def _replace(out: Path, contents: Mapping[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if out.is_symlink():  # others may write to a workdir; the report stays within
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        for name, content in contents.items():
            files.write(out / name, content)
    except OSError as error:
        raise UserError(f"Cannot write the report to {out}: {reason(error)}.") from error


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = _data_uri
    return environment.get_template("page.html.j2")


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


# -- how it ended --------------------------------------------------------------------------------


def _last_evaluation(run: Run, history: History) -> Mapping[str, Any]:
    """The last that was recorded, if possible of averages; without any, the report's own."""
    found = [record for record in history.evals if "precision_at_1" in record] or history.evals
    if found or not run.evaluation:
        return found[-1] if found else {}
    own = run.evaluation.predictions
    return {
        "step": run.evaluation.step,
        "precision_at_1": own.precision_at_1,
        "cross_entropy": float(own.cross_entropy.mean()),
        "calibration_error": predictions.calibration(own).error,
    }


def _final(run: Run, history: History) -> dict[str, str]:
    """What is said first of a run, by name; the same names for every run."""
    last = _last_evaluation(run, history)
    config = _flat(run.record["config"])
    steps = max(history.steps, run.evaluation.step if run.evaluation else 0)
    known = _TRAIN_IMAGES | {"synthetic": _positive(config.get("data.synthetic_train"))}
    images = known.get(str(config.get("data.source")), math.nan)
    epochs = steps * _positive(config.get("batch_size")) / images
    return {
        "run": run.name,
        "steps": f"{steps:,}",
        "epochs": _number(epochs, 1),
        "precision @ 1, averages": _number(last.get("precision_at_1")),
        "precision @ 1, raw": _number(last.get("precision_at_1_raw")),
        "cross-entropy": _number(last.get("cross_entropy")),
        "calibration error": _number(last.get("calibration_error")),
        "evaluated at step": f"{last['step']:,}" if last else UNKNOWN,
        "training time": _duration(history.wall[-1] if len(history.wall) else math.nan),
        "device": run.record.get("device") or UNKNOWN,
        "jax": run.record.get("versions", {}).get("jax", UNKNOWN),
    }


def _positive(value: Any) -> float:
    """The number, or NaN for what is none."""
    return float(value) if type(value) in (int, float) and value > 0 else math.nan


def _without_unknown(lines: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The columns in which some line has a value."""
    known = [name for name in lines[0] if any(line[name] != UNKNOWN for line in lines)]
    return [{name: line[name] for name in known} for line in lines]


def _number(value: float | None, digits: int = 4) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds))) if math.isfinite(seconds) else UNKNOWN


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All fields by their path; lists, as JSON has them, become tuples, as configs have them."""
    flat = config_lib.flat(dict(fields)).items()
    return {path: tuple(value) if isinstance(value, list) else value for path, value in flat}


def _differences(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The fields that differ, with each run's value."""
    configs = {run.name: _flat(run.record["config"]) for run in runs}
    lines = []
    for path in dict.fromkeys(path for config in configs.values() for path in config):
        values = {name: str(config.get(path, UNKNOWN)) for name, config in configs.items()}
        if len(set(values.values())) > 1:
            lines.append({"field": path} | values)
    return lines


def _means_over_seeds(runs: Sequence[Run], histories: Histories) -> list[dict[str, str]]:
    """Of precision @ 1, for runs of which only the seed differs; the deviation is of a sample."""
    groups: dict[str, dict[str, tuple[str, int, float]]] = defaultdict(dict)
    for run in runs:
        config = _flat(run.record["config"])
        last = _last_evaluation(run, histories[run.name])
        recipe = {path: v for path, v in config.items() if path not in _BESIDE_THE_RECIPE}
        if math.isfinite(last.get("precision_at_1", math.nan)):
            found = run.name, last["step"], last["precision_at_1"]
            groups[json.dumps(recipe, sort_keys=True)][str(config.get("seed", 0))] = found
    means = []
    for group in groups.values():
        names, steps, values = zip(*group.values(), strict=True)
        if len(values) > 1:
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            means.append(
                {
                    "runs": ", ".join(names),
                    "seeds": ", ".join(group),
                    "evaluated at step": ", ".join(f"{step:,}" for step in sorted(set(steps))),
                    "precision @ 1, averages": f"{mean:.4f} ± {deviation:.4f}",
                }
            )
    return means


# -- one run by itself ---------------------------------------------------------------------------


class _Example(NamedTuple):
    png: bytes
    label: str
    guesses: list[tuple[str, float]]  # class, probability; the most probable first


class _Section(NamedTuple):
    run: Run
    config: dict[str, Any]
    command: str
    changes: list[dict[str, str]]
    charts: list[Chart] = []
    filters: bytes | None = None
    wrong: list[_Example] = []
    right: list[_Example] = []


def _section(run: Run, suffix: str, default: Mapping[str, Any]) -> _Section:
    config, found = _flat(run.record["config"]), run.evaluation
    changes = _changes(run.record.get("changes", []))
    section = _Section(run, config, _command(config, _flat(default)), changes)
    if not found:
        return section
    order = np.argsort(-found.predictions.probabilities[:, 0], kind="stable")
    right = order[found.predictions.right[order]]
    spread = np.linspace(0, max(len(right) - 1, 0), min(RIGHT, len(right))).astype(int)
    return section._replace(
        charts=_evaluation_charts(found, suffix),
        filters=_filters(found.params),
        wrong=_examples(found, predictions.worst_mistakes(found.predictions, WRONG)),
        right=_examples(found, right[spread]),
    )


def _changes(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The settings with which the run was resumed, where they were others than before."""
    return [
        {
            "from step": f"{change['step']:,}",
            "field": field.removeprefix("config."),
            "before": str(change["was"].get(field, UNKNOWN)),
            "since": str(change["is"].get(field, UNKNOWN)),
        }
        for change in changes
        for field in dict.fromkeys((*change["was"], *change["is"]))
    ]


def _command(config: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """Trains the same again. A field that the defaults do not have could not be set."""
    changed = {p: v for p, v in config.items() if p in default and default[p] != v}
    fields = [shlex.quote(f"--config.{path}={value}") for path, value in changed.items()]
    return " ".join(["python main.py --workdir=NEW --config=configs/default.py", *fields])


def _evaluation_charts(evaluation: Evaluation, suffix: str) -> list[Chart]:
    names, rows = evaluation.class_names, evaluation.layers
    matrix = predictions.confusion(evaluation.predictions, len(names))
    precisions = predictions.class_precisions(matrix)
    calibration = predictions.calibration(evaluation.predictions)
    scores = [f"{name} {_number(p, 3)}" for name, p in zip(names, precisions, strict=True)]
    error = f"The expected calibration error is {calibration.error:.4f}."
    layers = ", ".join(f"{row.name} {row.shape}" for row in rows)
    kinds: dict[str, tuple[str, Callable[[], Figure]]] = {
        "classes": (f"{', '.join(scores)}.", partial(plots.class_precisions, precisions, names)),
        "reliability": (error, partial(plots.reliability, calibration)),
    }
    if rows:
        kinds["model"] = f"Layers: {layers}.", partial(plots.model, rows)
    confusion = charts.confusion(suffix, _confused(matrix, names), matrix, names)
    return [confusion, *(chart(kind, suffix, alt, draw) for kind, (alt, draw) in kinds.items())]


def _confused(matrix: np.ndarray, names: Sequence[str]) -> str:
    mistakes = matrix * (1 - np.eye(len(names), dtype=int))
    often = np.argsort(-mistakes, axis=None, kind="stable")[:5]
    pairs = [divmod(int(place), len(names)) for place in often if mistakes.flat[place]]
    listed = ", ".join(f"{names[i]} taken for {names[j]} ({matrix[i, j]})" for i, j in pairs)
    return f"Most often mistaken: {listed}." if listed else "There is no mistake."


def _filters(params: Mapping[str, Any]) -> bytes | None:
    """Of the first convolution of colours, if the model has one."""
    kernel = pictures.kernel_of_colours(params)
    return None if kernel is None else plots.to_png(pictures.filters(np.asarray(kernel)))


def _examples(evaluation: Evaluation, places: np.ndarray) -> list[_Example]:
    names, found = evaluation.class_names, evaluation.predictions
    examples = []
    for place in places:
        top = zip(found.classes[place], found.probabilities[place], strict=True)
        guesses = [(names[c], float(probability)) for c, probability in top][:3]
        label = names[found.labels[place]]
        examples.append(_Example(plots.to_png(evaluation.images[place]), label, guesses))
    return examples
