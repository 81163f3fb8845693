"""What a run tells: the tutorial's console lines, a progress bar, TensorBoard, metrics.jsonl."""

import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifar_jax.errors import UserError


def train_line(step: int, loss: float, batch_size: int, seconds: float) -> str:
    """The tutorial's: time, step, total loss, speed; `seconds` are those of one batch."""
    return (
        f"{_now()}: step {step}, loss = {loss:.2f} "
        f"({batch_size / seconds:.1f} examples/sec; {seconds:.3f} sec/batch)"
    )


def precision_line(precision: float, views: int = 1) -> str:
    """The tutorial's: time and precision @ 1; where it is of several views, their number too."""
    over = f" over {views} views" if views > 1 else ""
    return f"{_now()}: precision @ 1{over} = {precision:.3f}"


def _now() -> str:
    return datetime.datetime.now().isoformat(sep=" ", timespec="microseconds")


class Display:
    """Lines of text; on a terminal they scroll above a progress bar."""

    def __init__(self, total: int, done: int):
        console = Console()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("train", total=total, completed=done, note="")

    def __enter__(self) -> "Display":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def line(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def advance(self, step: int, note: str) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step, note=note)


class Scalars:
    """Writes scalars to tensorboard/<kind>/ and, one JSON object a line, to metrics.jsonl."""

    def __init__(self, workdir: Path, kind: str):
        from tensorboardX import SummaryWriter  # protobuf: half a second that not all modes need

        self._kind, self._warned = kind, False
        try:
            self._events = SummaryWriter(str(workdir / "tensorboard" / kind))
            self._lines = (workdir / "metrics.jsonl").open("a")
        except OSError as error:
            raise UserError(f"Cannot write to {workdir}: {error.strerror}.") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        record = {"kind": self._kind, "step": step, **values}
        # One write of a whole line: training and evaluation append to the same file.
        try:
            self._lines.write(json.dumps(record) + "\n")
            self._lines.flush()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        """A log that cannot be written is not worth a run: it is said once."""
        if not self._warned:
            print(f"Scalars are not written any more: {error.strerror}.", file=sys.stderr)
        self._warned = True

    def close(self) -> None:
        for file in (self._events, self._lines):
            try:
                file.close()
            except OSError as error:
                self._warn(error)
