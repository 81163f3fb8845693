"""How far long work on a dataset is, for a terminal and for a log."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress

Report = Callable[[int, int], object]  # images done, images in total


@contextlib.contextmanager
def shown(what: str) -> Iterator[Report]:
    """Shows on stderr how far `what` is: a bar on a terminal, a line every 10% elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console) as bar:
            task = bar.add_task(what)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        if (tenths := 10 * done // total) > shown:
            shown = tenths
            print(f"{what}: {10 * tenths}% of {total:,} images", file=sys.stderr, flush=True)

    yield report
