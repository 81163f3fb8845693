"""One page about one run or several: index.html, which holds all that it shows, beside its plots.

What a page has to leave out it names: a run may be young, and its data or checkpoints elsewhere.
"""

import base64
import contextlib
import datetime
import io
import json
import math
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
from PIL import Image

from cifar_jax import checkpoint, optim, overview, pictures, plots, predictions, records
from cifar_jax import config as config_lib
from cifar_jax.data import sources
from cifar_jax.errors import UserError
from cifar_jax.evaluate import Evaluator
from cifar_jax.plots import Line, Panel

RIGHT, WRONG = 8, 12  # example images of each kind
UNKNOWN = "–"
_BESIDE_THE_RECIPE = ("seed", "data.dir")  # may differ among the runs of one mean
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
    config = config_lib.load_for_eval(workdir, default, dict(overrides), wait=False)
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
        config_lib.load(workdir)  # refuses what is no config
        record = json.loads((workdir / config_lib.FILE).read_text())
        lines = records.read(workdir / records.FILE)
    except FileNotFoundError:
        raise UserError(f"{workdir} has no {config_lib.FILE}: nothing was trained there.") from None
    except OSError as error:
        raise UserError(f"{workdir} cannot be read: {error.strerror}.") from error
    evaluation, missing = None, ""
    try:
        evaluation = evaluate(workdir)
    except UserError as error:
        missing = str(error)
    return Run(workdir.resolve().name, workdir, record, lines, evaluation, missing)


def write(runs: Sequence[Run], out: Path, default: Mapping[str, Any]) -> Path:
    """Writes the page into `out` and returns its path; `default` holds the config's defaults.

    Raises UserError where `out` cannot be written. An index.html is whole or not there.
    """
    runs = _with_unique_names(runs)
    histories = {run.name: _History.of(run.records) for run in runs}
    charts, left_out = _charts(histories)
    suffixes = [f"-{number}" for number in range(1, len(runs) + 1)] if len(runs) > 1 else [""]
    sections = [_section(run, suffix, default) for run, suffix in zip(runs, suffixes, strict=True)]
    page = _template().render(
        runs=runs,
        finals=_without_unknown([_final(run, histories[run.name]) for run in runs]),
        charts=charts,
        left_out=left_out,
        sections=sections,
        differences=_differences(runs),
        means=_means_over_seeds(runs, histories),
    )
    drawn = [*charts, *(chart for section in sections for chart in section.charts)]
    files = {chart.file: chart.light for chart in drawn}
    _replace(out, files | {"index.html": page.encode()})
    return out / "index.html"


def _with_unique_names(runs: Iterable[Run]) -> list[Run]:
    """A workdir once; names that are the same grow by the folders above until they differ."""
    unique = {run.workdir.resolve(): run for run in runs}
    names, depth = [run.name for run in unique.values()], 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in unique]
    return [run._replace(name=name) for run, name in zip(unique.values(), names, strict=True)]


def _replace(out: Path, files: Mapping[str, bytes]) -> None:
    part = out / "report.part"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            part.write_bytes(content)
            part.replace(out / name)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()  # of a full disk
        raise UserError(f"Cannot write the report to {out}: {error.strerror}.") from error


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = _data_uri
    return environment.get_template("report.html.j2")


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


# -- the course of a run -------------------------------------------------------------------------


class _History(NamedTuple):
    """Records by step: one that was done or evaluated again, after a crash or so, counts once."""

    train: list[records.Record]
    wall: np.ndarray  # float [train], seconds of training up to each; NaN without a clock
    evals: list[records.Record]
    resumed: list[tuple[int, float]]  # step, seconds of training

    @classmethod
    def of(cls, lines: Sequence[records.Record]) -> "_History":
        train: dict[int, tuple[records.Record, float]] = {}
        evals: dict[int, records.Record] = defaultdict(dict)
        resumed: list[tuple[int, float]] = []
        seconds, last = 0.0, math.nan
        for number, record in enumerate(r for r in lines if r["kind"] in ("start", "train")):
            step, time = record["step"], record.get("time", math.nan)
            if record["kind"] == "start":
                resumed += [(step, seconds)] * (number > 0)
                train = {before: found for before, found in train.items() if before < step}
            else:
                seconds += time - last if time > last else 0.0
                train[step] = record, seconds if math.isfinite(time) else math.nan
            last = time
        for record in lines:
            if record["kind"] == "eval":
                evals[record["step"]] |= record
        done = sorted(train.items())
        wall = np.array([seconds for _, (_, seconds) in done])
        of_step = [record for _, (record, _) in done]
        return cls(of_step, wall, [evals[step] for step in sorted(evals)], resumed)

    @property
    def steps(self) -> int:
        """How many are known to be done."""
        last = [self.train[-1]["step"] + 1] if self.train else []
        return max([0, *last, *(record["step"] for record in self.evals[-1:])])

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        """The training time up to steps; their evaluation may have come at any later hour."""
        known = np.isfinite(self.wall)
        if not known.any():
            return np.full(len(steps), np.nan)
        trained = np.array([record["step"] for record in self.train])
        return np.interp(steps, trained[known], self.wall[known])


def _series(lines: Sequence[records.Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records with `key`; NaN for what is not finite."""
    found = [(r["step"], r[key]) for r in lines if isinstance(r.get(key), int | float)]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)


# -- the curves of all runs ----------------------------------------------------------------------


class _Chart(NamedTuple):
    kind: str  # report.html.j2 has its title and what is said of it
    file: str
    alt: str
    light: bytes
    dark: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels, 100 an inch."""
        width, height = Image.open(io.BytesIO(self.light)).size
        return width * 100 // plots.DPI, height * 100 // plots.DPI


def _chart(kind: str, suffix: str, alt: str, draw: Callable[[], Figure]) -> _Chart:
    light, dark = (plots.png(draw, theme) for theme in (plots.LIGHT, plots.DARK))
    return _Chart(kind, f"{kind}{suffix}.png", alt, light, dark)


_Histories = Mapping[str, _History]  # by the run's name


def _charts(histories: _Histories) -> tuple[list[_Chart], list[str]]:
    """The charts, and the kinds of those for which no record has a value."""
    charts, left_out = [], []
    for kind, panels in _panels(histories).items():
        drawable = [panel for panel in panels if panel.drawable()]
        if drawable:
            draw = partial(plots.curves, drawable, columns=2 if len(drawable) > 3 else 1)
            charts.append(_chart(kind, "", _alt(drawable), draw))
        else:
            left_out.append(kind)
    return charts, left_out


def _panels(histories: _Histories) -> dict[str, list[Panel]]:
    panel, by_layer = partial(_panel, histories), partial(_by_layer, histories)
    losses = {"loss": "Total loss", "cross_entropy": "Cross-entropy", "l2": "L2 penalty"}
    precision = panel(
        *("", "precision @ 1"),
        ("train", "precision", "training batches", "faint"),
        ("evals", "precision_at_1", "test images, averaged parameters", "filled"),
        ("evals", "precision_at_1_raw", "test images, raw parameters", "hollow"),
    )
    return {
        "loss": [
            panel(
                *(title, "nats"),
                ("train", key, "of each batch", "faint"),
                ("train", f"{key}_average", "moving average", "solid"),
            )
            for key, title in losses.items()
        ],
        "precision": [precision],
        "precision-time": [_over_time(precision, list(histories.values()))],
        "learning-rate": [panel("", "learning rate", ("train", "learning_rate", "", "solid"))],
        "gradient-norm": by_layer("gradient_norm", "norm", log=True),
        "update-ratio": by_layer("update_ratio", "ratio", log=True),
        "sparsity": by_layer("sparsity", "share of zeros", log=False),
    }


def _panel(
    histories: _Histories, title: str, ylabel: str, *sources: tuple[str, str, str, str]
) -> Panel:
    """Over steps, of `sources`: kind of record, key, label and style.

    The labels of several runs are their names.
    """
    lines, marks, several = [], [], len(histories) > 1
    for slot, (name, history) in enumerate(histories.items()):
        for kind, key, label, style in sources:
            series = _series(getattr(history, kind), key)
            lines.append(Line(name if several else label, *series, slot, style))
        colour = slot if several else plots.NEUTRAL
        marks += [(colour, float(step)) for step, _ in history.resumed]
    return Panel(title, "step", ylabel, lines, resumed=marks)


def _over_time(panel: Panel, courses: Sequence[_History]) -> Panel:
    longest = max((np.nanmax(c.wall) for c in courses if np.isfinite(c.wall).any()), default=0.0)
    length, unit = (60, "minutes") if longest > 180 else (1, "seconds")
    if longest > 3 * 3600:
        length, unit = 3600, "hours"
    lines = []
    for line in panel.lines:
        x = courses[line.slot].seconds(line.x) / length
        lines.append(line._replace(x=x, y=np.where(np.isfinite(x), line.y, np.nan)))
    seconds = [seconds for course in courses for _, seconds in course.resumed]
    marks = [(slot, s / length) for (slot, _), s in zip(panel.resumed, seconds, strict=True)]
    return panel._replace(lines=lines, resumed=marks, xlabel=f"training time in {unit}")


def _by_layer(histories: _Histories, key: str, ylabel: str, log: bool) -> list[Panel]:
    """One panel of all layers for one run; for several, one of all runs for each layer."""
    train = [record for history in histories.values() for record in history.train]
    keys = dict.fromkeys(k for record in train for k in record if k.partition("/")[0] == key)
    panels = []
    for k in keys:
        layer = k.partition("/")[2] or "all layers"
        panel = _panel(histories, layer, ylabel, ("train", k, layer, "solid"))
        noise = [line._replace(style="faint") for line in panel.lines]
        panels.append(panel._replace(lines=[*noise, *map(_medians, panel.lines)], log=log))
    if len(histories) == 1 and panels:
        lines = [
            line._replace(slot=slot) for slot, panel in enumerate(panels) for line in panel.lines
        ]
        panels = [panels[0]._replace(title="", lines=lines)]
    return panels


def _medians(line: Line, stretches: int = 50) -> Line:
    """The course of a noisy line."""
    if len(line.x) < 2 * stretches:
        return line
    places = np.array_split(np.arange(len(line.x)), stretches)
    found = [line.y[place][np.isfinite(line.y[place])] for place in places]
    y = [np.median(values) if len(values) else math.nan for values in found]
    return line._replace(x=np.array([line.x[place].mean() for place in places]), y=np.array(y))


def _alt(panels: Sequence[Panel]) -> str:
    """Where the curves begin and end."""
    texts = []
    for panel in panels:
        lines = [line for line in panel.lines if line.drawable(panel.log)]
        for line in [line for line in lines if line.main] or lines:
            first, last = line.y[np.isfinite(line.y)][[0, -1]]
            what = ", ".join(filter(None, (panel.title, line.label))) or panel.ylabel
            texts.append(f"{what}: from {first:.3g} to {last:.3g}")
    return f"Curves by {panels[0].xlabel}. {'; '.join(texts)}."


# -- how it ended --------------------------------------------------------------------------------


def _last_evaluation(run: Run, history: _History) -> Mapping[str, Any]:
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


def _final(run: Run, history: _History) -> dict[str, str]:
    """What is said first of a run, by name; the same names for every run."""
    last = _last_evaluation(run, history)
    config = _flatten(run.record["config"])
    steps = max(history.steps, run.evaluation.step if run.evaluation else 0)
    known = _TRAIN_IMAGES | {"synthetic": config.get("data.synthetic_train")}
    images = known.get(config.get("data.source", ""))
    epochs = steps * config.get("batch_size", math.nan) / images if images else math.nan
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
        "device": str(run.record.get("device") or UNKNOWN),
        "jax": str(run.record.get("versions", {}).get("jax", UNKNOWN)),
    }


def _without_unknown(lines: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The columns in which some line has a value."""
    known = [name for name in lines[0] if any(line[name] != UNKNOWN for line in lines)]
    return [{name: line[name] for name in known} for line in lines]


def _number(value: float | None, digits: int = 4) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds))) if math.isfinite(seconds) else UNKNOWN


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By 'a.b'; lists, as JSON has them, become tuples, as configs have them."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def _differences(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The fields that differ, with each run's value."""
    configs = {run.name: _flatten(run.record["config"]) for run in runs}
    lines = []
    for path in dict.fromkeys(path for config in configs.values() for path in config):
        values = {name: str(config.get(path, UNKNOWN)) for name, config in configs.items()}
        if len(set(values.values())) > 1:
            lines.append({"field": path} | values)
    return lines


def _means_over_seeds(runs: Sequence[Run], histories: _Histories) -> list[dict[str, str]]:
    """Of precision @ 1, for runs of which only the seed differs; the deviation is of a sample."""
    groups: dict[str, dict[int, tuple[str, int, float]]] = defaultdict(dict)
    for run in runs:
        config = _flatten(run.record["config"])
        last = _last_evaluation(run, histories[run.name])
        recipe = {path: v for path, v in config.items() if path not in _BESIDE_THE_RECIPE}
        if math.isfinite(last.get("precision_at_1", math.nan)):
            found = run.name, last["step"], last["precision_at_1"]
            groups[json.dumps(recipe, sort_keys=True)][config.get("seed", 0)] = found
    means = []
    for group in groups.values():
        names, steps, values = zip(*group.values(), strict=True)
        if len(values) > 1:
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            means.append(
                {
                    "runs": ", ".join(names),
                    "seeds": ", ".join(map(str, group)),
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
    charts: list[_Chart] = []
    filters: bytes | None = None
    wrong: list[_Example] = []
    right: list[_Example] = []


def _section(run: Run, suffix: str, default: Mapping[str, Any]) -> _Section:
    config, found = _flatten(run.record["config"]), run.evaluation
    section = _Section(run, config, _command(config, _flatten(default)))
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


def _command(config: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """Trains the same again. A field that the defaults do not have could not be set."""
    changed = {p: v for p, v in config.items() if p in default and default[p] != v}
    fields = [shlex.quote(f"--config.{path}={value}") for path, value in changed.items()]
    return " ".join(["python main.py --workdir=NEW --config=configs/default.py", *fields])


def _evaluation_charts(evaluation: Evaluation, suffix: str) -> list[_Chart]:
    names, rows = evaluation.class_names, evaluation.layers
    matrix = predictions.confusion(evaluation.predictions, len(names))
    precisions = predictions.class_precisions(matrix)
    calibration = predictions.calibration(evaluation.predictions)
    scores = [f"{name} {_number(p, 3)}" for name, p in zip(names, precisions, strict=True)]
    error = f"The expected calibration error is {calibration.error:.4f}."
    layers = ", ".join(f"{row.name} {row.shape}" for row in rows)
    kinds: dict[str, tuple[str, Callable[[], Figure]]] = {
        "confusion": (_confused(matrix, names), partial(plots.confusion, matrix, names)),
        "classes": (f"{', '.join(scores)}.", partial(plots.class_precisions, precisions, names)),
        "reliability": (error, partial(plots.reliability, calibration)),
    }
    if rows:
        kinds["model"] = f"Layers: {layers}.", partial(plots.model, rows)
    return [_chart(kind, suffix, alt, draw) for kind, (alt, draw) in kinds.items()]


def _confused(matrix: np.ndarray, names: Sequence[str]) -> str:
    mistakes = matrix * (1 - np.eye(len(names), dtype=int))
    often = np.argsort(-mistakes, axis=None, kind="stable")[:5]
    pairs = [divmod(int(place), len(names)) for place in often if mistakes.flat[place]]
    listed = ", ".join(f"{names[i]} taken for {names[j]} ({matrix[i, j]})" for i, j in pairs)
    return f"Most often mistaken: {listed}." if listed else "There is no mistake."


def _filters(params: Mapping[str, Any]) -> bytes | None:
    """Of the first convolution of colours, if the model has one."""
    kernels = [np.asarray(layer["kernel"]) for layer in params.values() if "kernel" in layer]
    of_colours = [kernel for kernel in kernels if kernel.ndim == 4 and kernel.shape[2] == 3]
    return _png(pictures.filters(of_colours[0])) if of_colours else None


def _examples(evaluation: Evaluation, places: np.ndarray) -> list[_Example]:
    names, found = evaluation.class_names, evaluation.predictions
    examples = []
    for place in places:
        top = zip(found.classes[place], found.probabilities[place], strict=True)
        guesses = [(names[c], float(probability)) for c, probability in top][:3]
        label = names[found.labels[place]]
        examples.append(_Example(_png(evaluation.images[place]), label, guesses))
    return examples


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
