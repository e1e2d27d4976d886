# SPDX-License-Identifier: GPL-3.0-or-later
"""What generation is compared with: clips of animated assets, each as its moving orbit and its static orbit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.data.views import FRAMES, DatasetView
from backend.evaluation.choice import ChosenClip
from backend.evaluation.truth import (
    FURTHER,
    MOVING,
    STATIC,
    Plan,
    Shots,
    read_pictures,
    read_surface,
    render_usable,
)
from backend.models.motion_magnitude import magnitude_of
from backend.pipelines.orbit_pictures import Views
from backend.progress import Run
from blender_addon.contract.orbit import Cameras, Orbit, further_cameras
from blender_addon.contract.surface import SurfaceSamples

RESOLUTION, SAMPLES = 64, 32  # pixels, of Cycles


@dataclass(frozen=True)
class Truth:
    """A clip's pictures. Straight alpha, sRGB."""

    clip: ChosenClip
    moving: np.ndarray  # [T, H, W, 4] uint8, frame i at time i / (T - 1)
    static: np.ndarray  # [T, H, W, 4] uint8, the same cameras, all at time 0
    further: Views  # of time 0, from above and below, as the add-on takes them
    cameras: Cameras  # of the moving orbit
    surface: SurfaceSamples  # at time 0
    magnitude: float  # m of Eq. 1


def make_truths(
    assets: Path, clips: list[ChosenClip], folder: Path, renderer: str, run: Run, limit: int | None = None
) -> tuple[list[Truth], dict[str, str]]:
    """As `truth.render_usable`, with the pictures read."""
    cameras = {video: DatasetView().cameras(RESOLUTION, video) for video in (MOVING, STATIC)}
    cameras[FURTHER] = further_cameras(Orbit(FRAMES), RESOLUTION, RESOLUTION)
    plan = Plan({video: Shots(one, SAMPLES) for video, one in cameras.items()}, surface=True)
    usable, left_out = render_usable(assets, clips, folder, renderer, plan, run, limit)
    truths = []
    for clip in usable:
        moving, static = (read_pictures(folder / clip.name, video, FRAMES) for video in (MOVING, STATIC))
        further = Views(read_pictures(folder / clip.name, FURTHER, len(cameras[FURTHER].times)), cameras[FURTHER])
        surface = read_surface(folder / clip.name)[0].standing()
        magnitude = magnitude_of(moving, static)
        truths.append(Truth(clip, moving, static, further, cameras[MOVING], surface, magnitude))
    return truths, left_out
