"""The tutorial's lines to the character, and the scalars read back."""

import json
import re

from tensorboardX.proto import event_pb2

from cifar_jax import summaries

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"


def test_train_line_to_the_character():
    line = summaries.train_line(step=10, loss=4.6649, batch_size=128, seconds=0.23981)
    expected = r": step 10, loss = 4\.66 \(533\.8 examples/sec; 0\.240 sec/batch\)"
    assert re.fullmatch(STAMP + expected, line)


def test_precision_line_to_the_character():
    assert re.fullmatch(STAMP + r": precision @ 1 = 0\.860", summaries.precision_line(0.86))


def events(folder):
    """(tag, step, value) of every scalar in TensorBoard's event files."""
    for path in folder.glob("events*"):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            yield from ((v.tag, event.step, v.simple_value) for v in event.summary.value)
            data = data[12 + length + 4 :]


def test_scalars_go_to_tensorboard_and_to_one_json_object_a_line(tmp_path):
    for kind in ("train", "eval"):
        scalars = summaries.Scalars(tmp_path, kind)
        scalars.write(10, {"loss": 4.5})
        scalars.write(20, {"loss": 4.25, "l2": 2.0})
        scalars.close()
    for kind in ("train", "eval"):
        found = set(events(tmp_path / "tensorboard" / kind))
        assert found == {("loss", 10, 4.5), ("loss", 20, 4.25), ("l2", 20, 2.0)}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"kind": "train", "step": 10, "loss": 4.5}
    assert lines[3] == {"kind": "eval", "step": 20, "loss": 4.25, "l2": 2.0}


def test_in_a_pipe_lines_are_plain(capsys):
    with summaries.Display(total=10, done=0) as display:
        display.line("step 0, loss = [bold]4.68")
        display.advance(1, "loss 4.68")
    assert capsys.readouterr().out == "step 0, loss = [bold]4.68\n"


def test_on_a_terminal_lines_scroll_above_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with summaries.Display(total=10, done=0) as display:
        display.line("step 0, loss = [bold]4.68")
        display.advance(7, "loss 4.68")
    out = capsys.readouterr().out
    assert "step 0, loss = [bold]4.68\n" in out
    assert "7/10" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out)
