# SPDX-License-Identifier: GPL-3.0-or-later
"""The pipeline of videos with a video model that knows the truth, for tests of the service; in its worker alone."""

from dataclasses import replace
from pathlib import Path

from backend.pipelines import fourdiffusion_settings
from backend.pipelines.fourdiffusion import run_request
from backend.progress import Run
from backend.splatting import checkpoint
from backend.splatting.config import ConstructConfig
from tests.pipelines.fourdiffusion_truth import KnowingModel, truth

ITERATIONS = 60


def follow(request: dict, blob, run: Run) -> Path:
    """With little work before the fit and to an iteration of it, and a checkpoint after each."""
    checkpoint.INTERVAL, checkpoint.MOST_TIME = 0.0, 1e9
    preset = replace(
        fourdiffusion_settings.Settings.for_preset("draft"), representation="gaussians", iterations=ITERATIONS,
        pixels=(12, 12, 12), anchor_pixels=16,
    )  # fmt: skip
    fourdiffusion_settings.SMALL_PRESETS = {("preview", "gaussians"): preset}
    ConstructConfig.for_preset = lambda *given: ConstructConfig(
        gaussians=500, shape_steps=20, coarse_steps=20, fine_steps=10, coarse_pixels=32, fine_pixels=48
    )
    return run_request(request, blob, run, video_model=KnowingModel(truth()))


PIPELINES = {"video": follow}
