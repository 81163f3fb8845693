"""The tutorial's lines to the character, and the bar above them."""

import io
import re
import sys
import types

import pytest
from rich.console import Console

from cifar_jax.telemetry import display

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"


def test_train_line_to_the_character():
    line = display.train_line(step=10, loss=4.6649, batch_size=128, seconds=0.23981)
    expected = r": step 10, loss = 4\.66 \(533\.8 examples/sec; 0\.240 sec/batch\)"
    assert re.fullmatch(STAMP + expected, line)


def test_precision_line_to_the_character():
    assert re.fullmatch(STAMP + r": precision @ 1 = 0\.860", display.precision_line(0.86))
    several = display.precision_line(0.8649, views=10)
    assert re.fullmatch(STAMP + r": precision @ 1 over 10 views = 0\.865", several)


def test_in_a_pipe_lines_are_plain(capsys):
    with display.Display(total=10, done=0) as shown:
        shown.line("step 0, loss = [bold]4.68")
        shown.advance(1, loss="4.68")
        assert list(display.track([1, 2], 2, "Evaluating")) == [1, 2]
    assert capsys.readouterr().out == "step 0, loss = [bold]4.68\n"


@pytest.fixture
def terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    return lambda: re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)


def test_on_a_terminal_lines_scroll_above_a_bar_with_notes(terminal):
    with display.Display(total=10, done=0, steps_per_epoch=4.0) as shown:
        shown.line("step 0, loss = [bold]4.68")
        shown.note(checkpoint="5")
        shown.advance(7, loss="4.68 (4.70)")
    out = terminal()
    assert "step 0, loss = [bold]4.68\n" in out
    assert "7/10" in out
    assert "loss 4.68 (4.70)  epoch 1.8  checkpoint 5" in out


def test_a_bar_for_whatever_takes_long(terminal):
    assert list(display.track(iter("ab"), 2, "Evaluating")) == ["a", "b"]
    assert "Evaluating" in terminal()


@pytest.fixture
def cell(monkeypatch):
    """A notebook's cell: one list for each of its outputs, of all pictures that it has shown."""
    outputs = []

    def show(picture, **options):
        assert options == {"raw": True, "display_id": True}
        outputs.append(shown := [picture])
        return types.SimpleNamespace(update=lambda picture, raw: shown.append(picture))

    ipython = types.SimpleNamespace(display=show)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=ipython))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as ipykernel does
    return outputs


def test_in_a_notebook_the_bar_stays_in_its_place_and_lines_are_printed_once(cell, capsys):
    with display.Display(total=10, done=0, steps_per_epoch=4.0) as shown:
        shown.line("step 0, loss = [bold]4.68")
        shown.advance(7, loss="<4.68>")
        shown.advance(8, loss="<4.68>")
    (pictures,) = cell
    assert len(pictures) < 4  # not one a step
    last = pictures[-1]["text/plain"]
    assert re.fullmatch(r" 8/10 [━╸]+ +0:00:0\d loss <4.68>  epoch 2.0", last)
    assert "loss &lt;4.68&gt;" in pictures[-1]["text/html"]
    assert capsys.readouterr().out == "step 0, loss = [bold]4.68\n"


def test_in_a_notebook_the_bar_of_an_evaluation_is_gone_at_its_end(cell, capsys):
    assert list(display.track(iter("ab"), 2, "Evaluating")) == ["a", "b"]
    ((_, shown, *_, last),) = cell
    assert "Evaluating" in shown["text/plain"] and not any(last.values())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_any_width_shows_the_bar_and_every_note(width):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    with display.Display(1_000_000, 0, 390.6, console) as shown:
        shown.note(**{"checkpoint": "390000", "precision @ 1": "0.864", "images/s": "31,415"})
        shown.advance(400_000, loss="0.71 (0.73)", rate="0.0123")
    *_, last = re.split(r"\x1b\[2K", file.getvalue())  # what stays when the bar stops
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).split("\n")]
    lines = [line for line in lines if line]
    notes = lines[:-1] if len(lines) > 1 else [lines[0][lines[0].index("loss") :]]
    assert all(len(line) <= width for line in lines)
    expected = ("loss 0.71 (0.73)", "precision @ 1 0.864", "images/s 31,415")
    expected += ("rate 0.0123", "epoch 1024.1", "checkpoint 390000")
    assert [note for line in notes for note in line.split("  ")] == list(expected)
    assert re.match(r" *400000/1000000 [━╸╺ ]{10,} [-0-9:]{7}", lines[-1])
    assert len(lines) == {40: 4, 60: 3, 80: 3, 100: 2, 200: 1}[width]
