# SPDX-License-Identifier: GPL-3.0-or-later
"""What all benchmarks share: a table on the terminal, a JSON file with versions and machine, CPU time."""

import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from backend.versions import versions

LOG_WIDTH = 220  # characters


@dataclass(frozen=True)
class Figure:
    """A measured number and what it has to be."""

    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        """Whether the number is within its limits."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )


def write_report(
    title: str,
    rows: list[dict],  # one per case, all with the same keys: the columns; numbers, texts or None
    figures: list[Figure] = [],  # noqa: B006 - only read
    out: Path | None = None,
) -> dict:
    """Print the rows as a table and the figures with their limits; write all of it to `out` as JSON.

    Returns what was written: title, time, rows, figures, machine, versions.
    """
    report = {
        "title": title,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
        "machine": machine(),
        "versions": versions(),
    }
    print_report(title, rows, figures)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        Console().print(f"Written to {out}", highlight=False)
    return report


def print_report(title: str, rows: list[dict], figures: list[Figure]) -> None:
    """The rows as a table, whose columns are all keys that occur, and the figures with their limits."""
    console = Console()
    if not console.is_terminal:  # a file or a log, where a table may be as wide as it is
        console = Console(width=LOG_WIDTH)
    if rows:
        table = Table(title=title)
        for column in dict.fromkeys(key for row in rows for key in row):
            first = next(row[column] for row in rows if column in row)
            table.add_column(column, justify="left" if isinstance(first, str) else "right")
        for row in rows:
            table.add_row(*(_text(row.get(column.header)) for column in table.columns))
        console.print(table)
    for figure in figures:
        limits = [f"at most {_text(figure.at_most)}"] if figure.at_most is not None else []
        limits += [f"at least {_text(figure.at_least)}"] if figure.at_least is not None else []
        verdict = f"needed {' and '.join(limits)}: {'met' if figure.met else 'NOT met'}" if limits else "no limit"
        console.print(f"{figure.what}: {_text(figure.value)} {figure.unit} ({verdict})", highlight=False)


def cpu_milliseconds(work: Callable[[], object], repeats: int, seconds: float = 10.0) -> float:
    """The least CPU time (user + system, all threads) of one call, after one call that does not count.

    The least of several is what the work costs; the rest is noise of the machine. Ends after `seconds` of CPU time,
    but not before two calls.
    """
    work()
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 2 or (calls < repeats and spent < seconds):
        start = time.process_time()
        work()
        used = time.process_time() - start
        best, spent, calls = min(best, used), spent + used, calls + 1
    return 1000 * best


def machine() -> dict:
    """Processor, cores, memory, GPU, system."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
