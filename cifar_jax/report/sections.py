"""The report's section about one run by itself: settings, command, charts, filters, examples."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cifar_jax.report import charts, plots, tables
from cifar_jax.report.charts import Chart, chart
from cifar_jax.report.runs import Evaluation, Run
from cifar_jax.report.tables import UNKNOWN
from cifar_jax.telemetry import pictures, predictions

RIGHT, WRONG = 8, 12  # example images of each kind


class Example(NamedTuple):
    png: bytes
    label: str
    guesses: list[tuple[str, float]]  # class, probability; the most probable first


class Section(NamedTuple):
    run: Run
    config: dict[str, Any]
    command: str
    changes: list[dict[str, str]]
    charts: list[Chart] = []
    filters: bytes | None = None
    wrong: list[Example] = []
    right: list[Example] = []


def section(run: Run, suffix: str, default: Mapping[str, Any]) -> Section:
    """`suffix` is that of its files' names; `default` are the config's defaults, nested."""
    config, found = tables.flat(run.record["config"]), run.evaluation
    changes = _changes(run.record.get("changes", []))
    made = Section(run, config, _command(config, tables.flat(default)), changes)
    if not found:
        return made
    order = np.argsort(-found.predictions.probabilities[:, 0], kind="stable")
    right = order[found.predictions.right[order]]
    spread = np.linspace(0, max(len(right) - 1, 0), min(RIGHT, len(right))).astype(int)
    return made._replace(
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
    recalls = predictions.recalls(matrix)
    calibration = predictions.calibration(evaluation.predictions)
    counts = evaluation.class_counts
    of_images = [f" of {count:,} training images" for count in counts] or [""] * len(names)
    scores = [
        f"{name} {tables.number(recall, 3)}{of}"
        for name, recall, of in zip(names, recalls, of_images, strict=True)
    ]
    error = f"The expected calibration error is {calibration.error:.4f}."
    layers = ", ".join(f"{row.name} {row.shape}" for row in rows)
    kinds: dict[str, tuple[str, Callable[[], Figure]]] = {
        "classes": (f"{', '.join(scores)}.", partial(plots.recalls, recalls, names, counts)),
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
    kernel = pictures.colour_kernel(params)
    return None if kernel is None else plots.to_png(pictures.filters(np.asarray(kernel)))


def _examples(evaluation: Evaluation, places: np.ndarray) -> list[Example]:
    names, found = evaluation.class_names, evaluation.predictions
    examples = []
    for place in places:
        top = zip(found.classes[place], found.probabilities[place], strict=True)
        guesses = [(names[c], float(probability)) for c, probability in top][:3]
        label = names[found.labels[place]]
        picture = plots.to_png(pictures.rgb(evaluation.images[place]))
        examples.append(Example(picture, label, guesses))
    return examples
