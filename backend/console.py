# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from backend.progress import Progress as RunProgress


@contextlib.contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Callable[[RunProgress], None]]:
    """One bar for a whole run: stage, per cent, time left, how it goes. Yields what a `Run` takes as `on_progress`."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Starting", total=1.0, left="")

        def show(progress: RunProgress) -> None:
            left = "" if progress.seconds_left is None else f"{time_text(progress.seconds_left)} left"
            left = "  ".join(part for part in (left, progress.detail) if part)
            bar.update(task, description=progress.stage, completed=progress.fraction, left=left)

        yield show


def time_text(seconds: float) -> str:
    """`75` -> `1:15`; below a minute `40 s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
