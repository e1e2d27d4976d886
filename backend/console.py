# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress on a terminal, or as lines in a log. It goes to standard error: standard output is for results."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from backend.progress import Progress as RunProgress

WIDE = 250  # letters
QUICK_SECONDS = 1.0  # what has ended by then says nothing on its way
LINE_SECONDS = 30.0  # between lines of one stage


@contextlib.contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Callable[[RunProgress], None]]:
    """One bar for a whole run: stage, per cent, time left, how it goes. Yields what a `Run` takes as `on_progress`.

    Where nobody sees bars, each stage gets a line as it begins, and another every LINE_SECONDS.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lines(console)
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Starting", total=1.0, left="")

        def show(progress: RunProgress) -> None:
            bar.update(task, description=progress.stage, completed=progress.fraction, left=how_it_goes(progress))

        yield show


def print_table(table: Table) -> None:
    """A table on standard output, unbroken where nobody looks at it and so no width counts."""
    console = _Output()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


class _Output(Console):
    """Standard output."""

    def on_broken_pipe(self) -> None:
        """Leave it to `main`, for all commands alike."""
        raise


def lines(console: Console) -> Callable[[RunProgress], None]:
    """What writes a line now and then."""
    stage, last = "", 0.0
    quick = time.monotonic() + QUICK_SECONDS

    def show(progress: RunProgress) -> None:
        nonlocal stage, last
        now = time.monotonic()
        if now < quick:
            return
        if progress.stage != stage or now - last >= LINE_SECONDS:
            stage, last = progress.stage, now
            text = "  ".join(filter(None, (f"{progress.fraction:4.0%}", stage, how_it_goes(progress))))
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return show


def how_it_goes(progress: RunProgress) -> str:
    """Time left, and what the stage says of itself."""
    left = "" if progress.seconds_left is None else f"{time_text(progress.seconds_left)} left"
    return "  ".join(part for part in (left, progress.detail) if part)


def time_text(seconds: float) -> str:
    """`75` -> `1:15`; below a minute `40 s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
