# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the construction's benchmark that its figures hang on."""

from pathlib import Path

import numpy as np
import pytest

from backend.progress import Progress
from backend.splatting.construct import COARSE, FINE
from backend.splatting.engine import CPU
from backend.splatting.observations import read_orbit_folder
from benchmarks import construct_steps
from benchmarks.construct import figures_of, paper_schedule
from benchmarks.construct_steps import StepClock, resized

FOX = Path(__file__).parent.parent / "data" / "fox_orbit"


def test_resized_pictures_show_the_same_with_their_cameras() -> None:
    views = read_orbit_folder(FOX / "moving").subset(np.arange(24) < 2)
    large = resized(views, 256)
    assert large.images.shape == (2, 256, 256, 4)
    assert (large.cameras.width, large.cameras.height) == (256, 256)
    large.cameras.check("The orbit")
    assert float(large.images[..., 3].mean()) == pytest.approx(float(views.images[..., 3].mean()), rel=0.01)
    scale = 256 / 96
    np.testing.assert_allclose(large.cameras.Ks[:, :2], scale * views.cameras.Ks[:, :2])
    assert views.cameras.Ks[0, 0, 2] == 48  # the given cameras stay as they are


def test_a_step_costs_the_least_interval_between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StepClock()
    moments = iter([0.0, 0.3, 0.4, 2.4])
    monkeypatch.setattr(construct_steps.time, "process_time", lambda: next(moments))
    for stage, step in ((COARSE, 5), (FINE, 0), (FINE, 10), (FINE, 20), (FINE, 30), (FINE, 40)):
        clock(Progress(stage, step, 40, 0.5, None))
    assert clock.least(clock.cpu) == pytest.approx(10.0)  # 0.1 s for ten steps


def test_the_papers_schedule_has_its_limit_on_a_gpu_only() -> None:
    quality = {"psnr_shown": 30.0, "psnr_gain": 5.0}
    config = paper_schedule(0)
    assert (config.shape_steps + config.coarse_steps, config.fine_steps) == (5_000, 2_000)
    on_cpu = figures_of("paper", config, CPU, quality, {"CPU s": 900.0, "wall s": 500.0})
    assert all(figure.met for figure in on_cpu)
    preview = figures_of("preview", config, CPU, quality, {"CPU s": 61.0, "wall s": 30.0})
    assert [figure.what for figure in preview if not figure.met] == [
        "preview, CPU: construction, 20000 Gaussians, 7000 steps"
    ]
