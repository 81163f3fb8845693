"""The tutorial's lines to the character, and the bar above them."""

import re

import pytest

from cifar_jax import display

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
    assert "checkpoint 5  epoch 1.8  loss 4.68 (4.70)" in out


def test_a_bar_for_whatever_takes_long(terminal):
    assert list(display.track(iter("ab"), 2, "Evaluating")) == ["a", "b"]
    assert "Evaluating" in terminal()
