# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs: a part moves the whole, and ends with it."""

from pathlib import Path

import pytest

from backend.progress import JobCancelled, Run


def test_a_part_moves_the_stage_that_it_is_part_of(tmp_path: Path) -> None:
    told: list[float] = []
    run = Run(tmp_path, lambda progress: told.append(progress.fraction), device="cpu")
    run.plan({"first": 1.0, "second": 3.0})
    run.begin("second")
    part = run.part(1, 3, tmp_path / "own")
    part.report(1, 2)
    assert told[-1] == pytest.approx(1 / 4 + 3 / 4 * 1.5 / 3)
    assert (part.folder, part.device) == (tmp_path / "own", "cpu")
    part.plan({"here": 1.0, "there": 1.0})  # stages of its own
    part.begin("there")
    assert told[-1] == pytest.approx(1 / 4 + 3 / 4 * 1.5 / 3)


def test_a_part_ends_with_the_whole_also_within_a_step(tmp_path: Path) -> None:
    run = Run(tmp_path, is_cancelled=lambda: True)
    with pytest.raises(JobCancelled):
        run.part(0, 1).check()
