"""The report's pictures: pure functions of arrays to a matplotlib Figure, without pyplot.

They name colours by their place in the palette, "C0", and take all other looks from the settings
that `png` draws them under: one function serves light pages and dark ones. What is read by colour
can also be read by dashes, markers or words. (Palette: Okabe and Ito, 2008.)
"""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cifar_jax.models.overview import LayerRow
from cifar_jax.telemetry.display import plain
from cifar_jax.telemetry.predictions import Calibration

WIDTH = 9.0  # inches
DPI = 150
MAX_BARS = 40  # classes that are all shown; of more, the first and last half as many
NEUTRAL = 6  # the palette's black or white

_DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def _theme(back: str, text: str, grid: str, palette: Sequence[str]) -> Any:
    inks = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inks, text),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), back),
        "axes.edgecolor": grid,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=palette),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.xmargin": 0.02,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "font.size": 10,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "text.parse_math": False,  # a name may hold a $
    }


LIGHT = _theme(
    *("#ffffff", "#222222", "#c8c8c8"),
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
)
DARK = _theme(
    *("#16191d", "#e4e4e4", "#4a4f55"),
    ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#ffffff"),
)


def png(draw: Callable[[], Figure], theme: Any) -> bytes:
    """The figure as a PNG of a palette, a third of the size; `draw` is called under `theme`."""
    with matplotlib.rc_context(theme), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name that the font has no letters for
        canvas = FigureCanvasAgg(draw())
        canvas.draw()
    return to_png(np.asarray(canvas.buffer_rgba())[..., :3], palette=True)


def to_png(picture: np.ndarray, palette: bool = False) -> bytes:
    """Of a uint8 [H, W, 3]."""
    file, image = io.BytesIO(), Image.fromarray(picture)
    if palette:
        image = image.quantize(dither=Image.Dither.NONE)
    image.save(file, "PNG")
    return file.getvalue()


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


# -- curves --------------------------------------------------------------------------------------


class Line(NamedTuple):
    label: str  # in the legend, at the main line of those that share it; "": not there
    x: np.ndarray
    y: np.ndarray  # NaN: a gap
    slot: int = 0  # which colour, dash and marker
    style: str = "solid"  # "faint", "dashed", or "filled" or "hollow" markers

    @property
    def main(self) -> bool:
        return self.style in ("solid", "filled", "dashed")

    def drawable(self, log: bool) -> bool:
        """Whether it has a value, above 0 on a `log` scale."""
        return bool(np.isfinite(self.y).any() and not (log and np.nanmax(self.y) <= 0))


class Panel(NamedTuple):
    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    log: bool = False
    resumed: Sequence[tuple[int, float]] = ()  # slot and place, marked by a vertical line

    def drawable(self) -> bool:
        return any(line.drawable(self.log) for line in self.lines)


def curves(panels: Sequence[Panel], columns: int = 1) -> Figure:
    """Panels of lines with one legend below them all."""
    rows = -(-len(panels) // columns)
    figure = _figure(0.6 + (3.4 if rows == 1 else 2.3 * rows))
    axes = [*figure.subplots(rows, columns, squeeze=False).flat]
    entries: dict[str, Any] = {}
    for place, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        entries |= _draw_panel(axis, panel)
        if place + columns >= len(panels):
            axis.set_xlabel(panel.xlabel)
    for axis in axes[len(panels) :]:
        axis.remove()
    _legend(figure, entries)
    return figure


def _legend(figure: Figure, entries: dict[str, Any]) -> None:
    """In one row below, or in columns and with more height."""
    labels, room = [short(label, 40) for label in entries], 115  # characters, 7 of them a handle
    if not labels:
        return
    in_a_row = sum(len(label) + 7 for label in labels) <= room
    columns = len(labels) if in_a_row else room // (max(map(len, labels)) + 7)
    figure.set_figheight(figure.get_figheight() + 0.22 * ((len(labels) - 1) // columns))
    figure.legend(list(entries.values()), labels, loc="outside lower center", ncols=columns)


def _draw_panel(axis: Axes, panel: Panel) -> dict[str, Any]:
    """Draws it; returns what the legend shows, by label."""
    entries = {}
    for line in panel.lines:
        if line.drawable(panel.log):
            (artist,) = axis.plot(line.x, line.y, **_line_style(line))
            if line.label and (line.main or line.label not in entries):
                entries[line.label] = artist
    for slot, place in panel.resumed:
        entries["resumed"] = axis.axvline(place, color=f"C{slot % 7}", lw=0.8, ls=(0, (2, 3)))
    axis.set_title(short(panel.title, 60))
    axis.set_ylabel(panel.ylabel)
    left, right = axis.get_xlim()
    if right - left < 1:  # too little for a whole number on either side
        axis.set_xlim(left - 1, right + 1)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{round(value):,}")
    if panel.log or _has_outlier(panel):
        axis.set_yscale("log", nonpositive="mask")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=7))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return entries


def _has_outlier(panel: Panel) -> bool:
    """Whether a peak, as of a run that diverges, would flatten everything else."""
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in panel.lines])
    return bool(values.max() > 100 * np.median(values) > 0)


def _line_style(line: Line) -> dict[str, Any]:
    style: dict[str, Any] = {"color": f"C{line.slot % 7}", "linewidth": 2.0}
    if np.isfinite(line.y).sum() == 1:  # no line goes through a single point
        style["marker"] = _MARKERS[line.slot % 7]
    if line.style == "faint":
        return style | {"linewidth": 0.7, "alpha": 0.45, "zorder": 1.5}
    style["linestyle"] = _DASHES[line.slot % len(_DASHES)]
    if line.style in ("filled", "hollow"):
        style |= {"marker": _MARKERS[line.slot % 7], "linewidth": 1.5, "markersize": 5}
    if line.style == "dashed":
        style |= {"marker": "d", "linestyle": (0, (4, 2)), "linewidth": 1.0, "markersize": 4}
    if line.style == "hollow":
        style |= {"markerfacecolor": "none", "linestyle": (0, (1, 2)), "linewidth": 1.0}
    return style


# -- what was predicted --------------------------------------------------------------------------


def recalls(recalls: np.ndarray, names: Sequence[str], counts: Sequence[int] = ()) -> Figure:
    """A bar for each class with images, the best on top; with the `counts` of training images by
    class, where they are known."""
    order = [place for place in np.argsort(-recalls) if np.isfinite(recalls[place])]
    half = MAX_BARS // 2
    shown = order if len(order) <= MAX_BARS else order[:half] + order[-half:]
    figure = _figure(0.9 + 0.24 * len(shown))
    axis = figure.subplots()
    places = range(len(shown))
    bars = axis.barh(places, recalls[shown], color="C0")
    axis.bar_label(bars, [f"{value:.3f}" for value in recalls[shown]], padding=3)
    of_class = [f" ({count:,})" for count in counts] or [""] * len(names)
    axis.set_yticks(places, [short(names[place], 24) + of_class[place] for place in shown])
    axis.invert_yaxis()
    axis.margins(y=0.01)
    label = "recall (in brackets: training images)" if counts else "recall"
    axis.set(xlabel=label, xlim=(0, 1.08), xticks=np.arange(0, 1.1, 0.2))
    axis.grid(False)
    if len(shown) < len(order):
        axis.axhline(half - 0.5, color="C1", linestyle="--", linewidth=1)
        axis.set_title(f"The {half} best and the {half} worst of {len(order)} classes")
    return figure


def reliability(calibration: Calibration) -> Figure:
    """How often images of some confidence are right, and below it how many there are."""
    figure = _figure(5.2, 6.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(calibration.images)
    width, centres = 1 / bins, (np.arange(bins) + 0.5) / bins
    upper.bar(centres, calibration.accuracy, width * 0.92, color="C0", alpha=0.6)
    upper.plot([0, 1], [0, 1], color="C1", linestyle="--", label="as often right as confident")
    upper.plot(calibration.confidence, calibration.accuracy, "o", color="C0", label="mean of a bin")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
    upper.set_title(f"Expected calibration error {calibration.error:.4f}")
    upper.legend(loc="upper left")
    lower.bar(centres, calibration.images / calibration.images.sum(), width * 0.92, color="C0")
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    lower.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    return figure


# -- the model -----------------------------------------------------------------------------------


def model(rows: Sequence[LayerRow]) -> Figure:
    """A box for each layer, from the images down, beside what it costs."""
    figure = _figure(0.7 + 0.55 * len(rows))
    axis = figure.subplots()
    axis.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -1.1))
    axis.axis("off")
    box = {"boxstyle": "round,pad=0.45", "facecolor": "none", "edgecolor": "C0", "linewidth": 1.5}
    for place, row in enumerate(rows):
        text = f"{short(row.name, 18):<18} {' × '.join(map(str, row.shape)):>14}"
        axis.text(17, place, text, ha="center", va="center", family="monospace", bbox=box)
        if place:
            arrow = {"arrowstyle": "-|>", "color": "C0", "shrinkA": 12, "shrinkB": 12}
            axis.annotate("", (17, place), (17, place - 1), arrowprops=arrow)
    for left, title, costs in (
        (38, "parameters", [row.parameters for row in rows]),
        (70, "multiply-adds of an image", [row.multiply_adds for row in rows]),
    ):
        total = sum(costs)
        axis.text(left, -0.9, f"{total:,} {title}", va="center", weight="bold")
        for place, cost in enumerate(costs):
            share = cost / max(total, 1)
            axis.barh(place, 12 * share, 0.5, left + 13, color="C0")
            axis.text(left + 12, place, f"{cost:,}" if cost else "–", ha="right", va="center")
            if cost:
                axis.text(left + 14 + 12 * share, place, f"{share:.1%}", va="center", fontsize=9)
    return figure


def short(name: str, length: int) -> str:
    """Names that are alike differ at their ends, too."""
    name = plain(name)
    half = length // 2
    return name if len(name) <= length else f"{name[:half]}…{name[1 - half :]}"
