# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipelines for window tests: what is generated sways, in place of a network; everything else is the product's own."""

from pathlib import Path

import numpy as np

from backend.pipelines import diffusion4d, orbit_video
from backend.progress import Run
from blender_addon.contract.frames import GeneratedFrames
from blender_addon.contract.orbit import Cameras


def generate(
    static: np.ndarray | None, cameras: Cameras, image: np.ndarray | None, settings: dict, run: Run
) -> GeneratedFrames:
    """The static orbit with its upper part swaying from side to side, once or more often as the seed says."""
    run.begin(diffusion4d.MOVING)
    count, height = static.shape[:2]
    moving = np.empty_like(static)
    for frame in range(count):
        swing = np.sin(2 * np.pi * (1 + settings["seed"] % 3) * frame / (count - 1))
        for row in range(height):
            shift = round(0.04 * settings["motion"] / 3 * height * swing * (1 - row / height))
            moving[frame, row] = np.roll(static[frame, row], shift, axis=0)
        run.report(frame + 1, count, lambda frame=frame: moving[frame, ..., :3].copy())
    measured = diffusion4d.measured_magnitude(moving, static)
    return GeneratedFrames(
        moving, static, cameras, settings["prompt"], settings["motion"], measured, settings["seed"],
        {"warnings": ["The model does not know: wonderfully."] if "wonderfully" in settings["prompt"] else []},
    )  # fmt: skip


def run_request(request: dict, blob, run: Run) -> Path:
    """As the product's, with frames that need no network."""
    diffusion4d.generate = generate
    return diffusion4d.run_request(request, blob, run)


PIPELINES = {"orbit": orbit_video.run_request, "object": run_request}
