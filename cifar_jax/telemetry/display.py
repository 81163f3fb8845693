"""Console output: the tutorial's lines, and a progress bar: below them on a terminal, above them in
a notebook."""

import datetime
import html
import io
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

Item = TypeVar("Item")

_FIRST = ("loss", "precision @ 1", "images/s", "rate", "epoch", "checkpoint")  # of the notes
_GAP = "  "
_CELL = 100  # columns of a notebook's cell
_CELL_SECONDS = 0.2  # from one picture of the bar there to the next
_MIN_BAR = 16  # columns; where less would be left beside the notes, they go above it


def train_line(step: int, loss: float, batch_size: int, seconds: float) -> str:
    """The tutorial's: time, step, total loss, speed; `seconds` are those of one batch."""
    return (
        f"{_now()}: step {step}, loss = {loss:.2f} "
        f"({batch_size / seconds:.1f} examples/sec; {seconds:.3f} sec/batch)"
    )


def precision_line(accuracy: float, views: int = 1) -> str:
    """The tutorial's line of an accuracy, which it calls precision @ 1; where it is of several
    views, with their number."""
    over = f" over {views} views" if views > 1 else ""
    return f"{_now()}: precision @ 1{over} = {accuracy:.3f}"


def plain(text: str) -> str:
    """Any text as one line for any font and terminal: what is not printable is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _now() -> str:
    return datetime.datetime.now().isoformat(sep=" ", timespec="microseconds")


class _Notes(ProgressColumn):
    """The notes beside the bar, where there is room for them."""

    text = ""

    def render(self, task: Task) -> Text:
        return Text(self.text, no_wrap=True)


class _Bar(Progress):
    """Count, bar, time left; and the notes, beside them or on lines of their own above."""

    def __init__(self, console: Console):
        self.notes: dict[str, str] = {}
        self._screen = console  # Progress draws before it has one
        self._beside = _Notes(Column(no_wrap=True))  # else the bar takes its room
        columns = MofNCompleteColumn(), BarColumn(bar_width=None), TimeRemainingColumn()
        super().__init__(*columns, self._beside, console=console, expand=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        width = self._screen.width
        lines = _wrapped(self.notes, width)
        task = self.tasks[0] if self.tasks else None
        count = 2 * len(str(int(task.total or 0))) + 1 if task else 0
        needed = count + _MIN_BAR + len("0:00:00") + 3  # and a space between each two
        beside = len(lines) == 1 and cell_len(lines[0]) + needed <= width
        self._beside.text = lines[0] if beside else ""
        if not beside:
            yield from (Text(line, no_wrap=True, overflow="ellipsis") for line in lines)
        yield self.make_tasks_table(self.tasks)

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _CellBar(_Bar):
    """The same in the cell of a notebook, where it is drawn anew in its place; lines go below it.

    (rich's own way there needs ipywidgets, and shows nothing without.)
    """

    def __init__(self) -> None:
        plain: dict[str, Any] = {"force_jupyter": False, "force_terminal": False}
        super().__init__(Console(file=io.StringIO(), width=_CELL, color_system=None, **plain))
        self._handle: Any = None
        self._drawn = 0.0

    def start(self) -> None:
        from IPython.display import display

        self._handle = display(self._picture(), raw=True, display_id=True)

    def update(self, *args: Any, **fields: Any) -> None:
        super().update(*args, **fields)
        if self._handle and time.monotonic() - self._drawn >= _CELL_SECONDS:
            self._handle.update(self._picture(), raw=True)

    def stop(self) -> None:
        if self._handle:
            self._handle.update(self._picture(), raw=True)

    def refresh(self) -> None:
        """It is drawn by the above."""

    def clear(self) -> None:
        self._handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def _picture(self) -> dict[str, str]:
        self._drawn = time.monotonic()
        with self._screen.capture() as found:
            self._screen.print(self.get_renderable())
        text = found.get().rstrip()
        return {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}

    def line(self, text: str) -> None:
        print(text, flush=True)


def _wrapped(notes: Mapping[str, str], width: int) -> list[str]:
    """Lines of "name value", never broken between the two, the most important first."""
    names = [name for name in _FIRST if name in notes]
    lines: list[str] = []
    for name in names + [name for name in notes if name not in _FIRST]:
        note = f"{name} {notes[name]}"
        if lines and cell_len(lines[-1] + _GAP + note) <= width:
            lines[-1] += _GAP + note
        else:
            lines.append(note)
    return lines


class Display:
    """Lines of text; on a terminal they scroll above a bar with the current values of a run, which
    in a notebook stands above them."""

    def __init__(
        self,
        total: int,
        done: int,
        steps_per_epoch: float = 1.0,
        console: Console | None = None,
    ):
        console = console or Console()
        self._steps_per_epoch = steps_per_epoch
        self._bar: _Bar | None = None
        if console.is_jupyter or console.is_terminal:
            self._bar = _CellBar() if console.is_jupyter else _Bar(console)
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
            self._bar.line(text)
        else:
            print(text, flush=True)

    def note(self, **notes: str) -> None:
        """Shows these at the bar from now on, each by its name."""
        if self._bar:
            self._bar.notes = self._bar.notes | notes  # whole: another thread draws them

    def advance(self, step: int, **notes: str) -> None:
        """`step` steps are done."""
        if self._bar:
            self._bar.update(self._task, completed=step)
            self.note(epoch=f"{step / self._steps_per_epoch:.1f}", **notes)


class Silent(Display):
    """Shows nothing: for one of several networks that train together."""

    def __init__(self) -> None:
        self._bar = None

    def line(self, text: str) -> None:
        pass


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, with a bar that is gone when they are; on a terminal and in a notebook alone."""
    console = Console()
    if console.is_jupyter:
        with _CellBar() as cell:
            cell.notes = {what: ""}
            yield from cell.track(items, total=total)
        cell.clear()
    elif not console.is_terminal:
        yield from items
    else:
        with Progress(console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
