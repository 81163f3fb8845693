"""The report's pictures: what is in the figures, and that nothing a run may hold breaks them."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cifar_jax.report import plots
from cifar_jax.report.plots import LayerRow, Line, Panel
from cifar_jax.telemetry.predictions import Calibration

STEPS = np.arange(5.0)


def line(values, label="", style="solid", slot=0):
    return Line(label, STEPS[: len(values)], np.array(values, float), slot, style)


def panel(*lines, **fields):
    return Panel("title", "step", "loss", lines, **fields)


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.mark.parametrize(
    ("theme", "back"), [(plots.LIGHT, (255, 255, 255)), (plots.DARK, (22, 25, 29))]
)
def test_a_figure_is_drawn_in_the_theme_and_leaves_no_settings(theme, back):
    before = dict(matplotlib.rcParams)
    picture = Image.open(io.BytesIO(plots.png(lambda: plots.curves([panel(line([1, 2]))]), theme)))
    assert picture.convert("RGB").getpixel((0, 0)) == back
    assert len(picture.convert("RGB").getcolors()) > 10
    assert picture.width == plots.WIDTH * plots.DPI
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[1, np.nan, 3, 2, 1], [np.nan] * 4 + [7], [0, 0, 0, 0, 1e-9], [-1, 1e30, 2, 3, 4], [5]],
)
def test_no_value_breaks_a_curve(values, log):
    shown = panel(line(values, r"_a $\x$ name", "filled"), line([np.nan] * 5, "empty"), log=log)
    assert shown.drawable()
    figures = []

    def draw():  # under the theme, where a $ means nothing
        figures.append(plots.curves([shown], columns=2))
        return figures[0]

    assert plots.png(draw, plots.LIGHT)
    (axis,) = figures[0].axes
    (drawn,) = axis.lines  # the empty line is not there
    np.testing.assert_array_equal(drawn.get_ydata(), values)


def test_what_has_no_value_to_show_is_not_drawable():
    assert not panel(line([np.nan, np.nan])).drawable()
    assert not panel(line([])).drawable()
    assert not panel(line([0, -1]), log=True).drawable()
    assert panel(line([0, -1])).drawable()


def test_a_single_point_is_marked():
    lines = line([np.nan, 2, np.nan]), line([1, np.nan], style="faint"), line([1, 2, 3])
    (axis,) = plots.curves([panel(*lines)]).axes
    assert [drawn.get_marker() for drawn in axis.lines] == ["o", "o", "None"]


def test_a_single_step_is_labelled_once():
    (axis,) = plots.curves([panel(line([4.0]))]).axes
    labels = [text.get_text() for text in axis.get_xticklabels()]
    assert "0" in labels
    assert len(set(labels)) == len(labels)


def test_a_peak_makes_the_axis_logarithmic():
    flat, peak = [2.0, 1.9, 1.8, 1.7], [2.0, 1.9, 1e6, 1.7]
    scales = [plots.curves([panel(line(y))]).axes[0].get_yscale() for y in (flat, peak)]
    assert scales == ["linear", "log"]


def test_the_legend_names_each_line_once_by_its_main_one():
    of_a = [line([1, 2], "a", style) for style in ("faint", "solid", "hollow")]
    first = panel(*of_a, resumed=[(0, 1.0), (0, 2.0)])
    second = panel(line([1, 2], "b", "faint", slot=1), line([1, 2]))
    (legend,) = plots.curves([first, second]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "resumed", "b"]
    a, _, b = legend.legend_handles
    assert (a.get_linewidth(), a.get_marker(), a.get_alpha()) == (2.0, "None", None)
    assert b.get_alpha() < 0.5


def test_lines_differ_in_more_than_colour():
    lines = [line([1, 2], str(slot), slot=slot) for slot in range(12)]
    drawn = plots.curves([panel(*lines)]).axes[0].lines
    assert len({(each.get_color(), str(each._dash_pattern)) for each in drawn}) == 12
    assert len({str(each._dash_pattern) for each in drawn[:4]}) == 4


def test_recalls_are_sorted_and_say_their_values():
    axis = plots.recalls(np.array([0.5, np.nan, 0.75]), ("a", "b", "c")).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["c", "a"]
    assert [bar.get_width() for bar in axis.patches] == [0.75, 0.5]
    assert texts(axis) == ["0.750", "0.500"]


def test_of_many_classes_the_best_and_the_worst_are_shown():
    values = np.linspace(0, 1, 100)
    axis = plots.recalls(values, tuple(map(str, range(100)))).axes[0]
    ticks = [int(text.get_text()) for text in axis.get_yticklabels()]
    assert ticks == [*range(99, 79, -1), *range(19, -1, -1)]
    assert "of 100 classes" in axis.get_title(loc="left") + axis.get_title()


def test_reliability():
    calibration = Calibration(
        np.array([0, 1, 3]), np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 1.0, 0.7])
    )
    upper, lower = plots.reliability(calibration).axes
    assert "0.2750" in upper.get_title(loc="left") + upper.get_title()  # (0.5 + 3 · 0.2) / 4
    np.testing.assert_array_equal([bar.get_height() for bar in upper.patches], [np.nan, 1.0, 0.7])
    np.testing.assert_array_equal([bar.get_height() for bar in lower.patches], [0, 0.25, 0.75])


def test_the_model_says_what_its_layers_cost():
    rows = [LayerRow("conv1", (24, 24, 64), 300, 0), LayerRow("logits", (10,), 100, 50)]
    (axis,) = plots.model(rows).axes
    said = " ".join(texts(axis))
    for text in ("24 × 24 × 64", "400 parameters", "50 multiply-adds", "75.0%", "25.0%", "100.0%"):
        assert text in said
    widths = [bar.get_width() for bar in axis.patches]
    np.testing.assert_allclose(np.divide(widths, widths[3]), [0.75, 0.25, 0, 1])


def test_recalls_have_the_number_of_training_images():
    axis = plots.recalls(np.array([0.5, 0.75]), ("a", "b"), (1_000, 20)).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["b (20)", "a (1,000)"]
    assert "training images" in axis.get_xlabel()
