"""The report's charts: the curves of all runs, each drawn for light pages and for dark ones."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cifar_jax.report import plots
from cifar_jax.report.history import History, series
from cifar_jax.report.plots import Line, Panel
from cifar_jax.telemetry import pictures

Histories = Mapping[str, History]  # by the run's name


class Chart(NamedTuple):
    kind: str  # page.html.j2 has its title and what is said of it
    file: str
    alt: str
    light: bytes
    dark: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels, 100 an inch."""
        width, height = Image.open(io.BytesIO(self.light)).size
        return width * 100 // plots.DPI, height * 100 // plots.DPI


def chart(kind: str, suffix: str, alt: str, draw: Callable[[], Figure]) -> Chart:
    light, dark = (plots.png(draw, theme) for theme in (plots.LIGHT, plots.DARK))
    return Chart(kind, f"{kind}{suffix}.png", alt, light, dark)


def confusion(suffix: str, alt: str, matrix: np.ndarray, names: Sequence[str]) -> Chart:
    """Of int [classes, classes], labels as rows."""
    shown = [plots.short(name, 16) for name in names]
    light, dark = (
        plots.to_png(pictures.confusion(matrix, shown, dark, scale=2), palette=True)
        for dark in (False, True)
    )
    return Chart("confusion", f"confusion{suffix}.png", alt, light, dark)


def of_runs(histories: Histories) -> tuple[list[Chart], list[str]]:
    """The charts, and the kinds of those for which no record has a value."""
    charts, left_out = [], []
    for kind, panels in panels_of(histories).items():
        drawable = [panel for panel in panels if panel.drawable()]
        if drawable:
            draw = partial(plots.curves, drawable, columns=2 if len(drawable) > 3 else 1)
            charts.append(chart(kind, "", _alt(drawable), draw))
        else:
            left_out.append(kind)
    return charts, left_out


def panels_of(histories: Histories) -> dict[str, list[Panel]]:
    """The panels of each kind of chart, those without any value included."""
    panel, by_layer = partial(_panel, histories), partial(_by_layer, histories)
    losses = {"loss": "Total loss", "cross_entropy": "Cross-entropy", "l2": "L2 penalty"}
    accuracy = panel(
        *("", "accuracy"),
        ("train", "accuracy", "training batches", "faint"),
        ("evals", "accuracy", "test images, EMA", "filled"),
        ("evals", "accuracy_raw", "test images, raw parameters", "hollow"),
        ("validation", "accuracy", "validation images, EMA", "dashed"),
    )
    return {
        "loss": [
            panel(
                *(title, "nats"),
                ("train", key, "of each batch", "faint"),
                ("train", f"{key}_average", "moving average", "solid"),
            )
            for key, title in losses.items()
            if key != "l2" or any(series(h.train, key)[1].any() for h in histories.values())
        ],
        "accuracy": [accuracy],
        "accuracy-time": [over_time(accuracy, list(histories.values()))],
        "learning-rate": [panel("", "learning rate", ("train", "learning_rate", "", "solid"))],
        "gradient-norm": by_layer("gradient_norm", "norm", log=True),
        "update-ratio": by_layer("update_ratio", "ratio", log=True),
        "sparsity": by_layer("sparsity", "share of zeros", log=False),
    }


def _panel(
    histories: Histories, title: str, ylabel: str, *sources: tuple[str, str, str, str]
) -> Panel:
    """Over steps, of `sources`: kind of record, key, label and style.

    The labels of several runs are their names.
    """
    lines, marks, several = [], [], len(histories) > 1
    for slot, (name, history) in enumerate(histories.items()):
        for kind, key, label, style in sources:
            course = series(getattr(history, kind), key)
            lines.append(Line(name if several else label, *course, slot, style))
        colour = slot if several else plots.NEUTRAL
        marks += [(colour, float(step)) for step, _ in history.resumed]
    return Panel(title, "step", ylabel, lines, resumed=marks)


def over_time(panel: Panel, courses: Sequence[History]) -> Panel:
    """The panel over training time in place of steps; a line's slot is the place of its run."""
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


def _by_layer(histories: Histories, key: str, ylabel: str, log: bool) -> list[Panel]:
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
