# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress: a bar for people, lines for logs, and nothing of it in what scripts read."""

import io

import pytest
from rich.console import Console

from backend import console
from backend.progress import Progress


def test_progress_is_not_among_the_results(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "QUICK_SECONDS", 0.0)
    with console.progress_bar() as show:
        show(Progress("Fitting [the] motion", 3, 10, 0.31, 75.0, detail="loss 0.1"))
        show(Progress("Fitting [the] motion", 4, 10, 0.4, 60.0))
        show(Progress("Done", 1, 1, 1.0, 0.0))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [" 31%  Fitting [the] motion  1:15 left  loss 0.1", "100%  Done  0 s left"]


def test_what_is_quick_says_nothing_and_what_is_long_speaks_again(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress_bar() as show:
        for seconds in (0.5, 2, 20, 31, 40):
            now[0] = 100.0 + seconds
            show(Progress("Fitting", int(seconds), 100, seconds / 100, None))
    assert capsys.readouterr().err.splitlines() == ["  2%  Fitting", " 40%  Fitting"]


def test_people_see_a_bar() -> None:
    seen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with console.progress_bar(seen) as show:
        show(Progress("Fitting", 3, 10, 0.31, 75.0))
    assert "31%" in seen.file.getvalue()


def test_tables_are_not_broken_where_they_are_read_by_programs(capsys) -> None:
    table = console.Table("name")
    table.add_row("a" * 150)
    console.print_table(table)
    assert "a" * 150 in capsys.readouterr().out
