"""What a run says on the console: the tutorial's lines, and on a terminal a bar above them."""

import datetime
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


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
    """Lines of text; on a terminal they scroll above a bar with what a run looks like now."""

    def __init__(self, total: int, done: int, steps_per_epoch: float = 1.0):
        console = Console()
        self._steps_per_epoch = steps_per_epoch
        self._notes: dict[str, str] = {}
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Progress(*columns, console=console, expand=True)
            self._task = self._bar.add_task("", total=total, completed=done)

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

    def note(self, **notes: str) -> None:
        """Shows these beside the bar from now on, each by its name."""
        self._notes |= notes
        if self._bar:
            text = "  ".join(f"{name} {value}" for name, value in self._notes.items())
            self._bar.update(self._task, description=text)

    def advance(self, step: int, **notes: str) -> None:
        """`step` steps are done."""
        if self._bar:
            self._bar.update(self._task, completed=step)
            self.note(epoch=f"{step / self._steps_per_epoch:.1f}", **notes)


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, with a bar that is gone when they are; on a terminal alone."""
    console = Console()
    if not console.is_terminal:
        yield from items
        return
    with Progress(console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=what)
