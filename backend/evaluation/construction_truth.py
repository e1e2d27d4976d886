# SPDX-License-Identifier: GPL-3.0-or-later
"""What construction is given and what it is compared with, from animated assets.

Given: a moving orbit, a static orbit and surface samples, as the add-on captures them; in one case many views of every
time. Compared with: a grid of times x azimuths x two elevations, none of whose cameras it was given, and points that
are followed on the true surface.
"""

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
from backend.pictures import premultiplied
from backend.progress import Run
from backend.splatting.observations import Observations, joined
from blender_addon.contract.orbit import Cameras, Orbit, further_cameras, intrinsics, orbit_camera
from blender_addon.contract.surface import SurfaceSamples

RESOLUTION = 128  # pixels
SAMPLES = 16  # of Cycles, the add-on's own number: noise of 43 to 47 dB
UNSEEN, SEVERAL = "unseen", "several"  # shots

# Neither time 0, which the static orbit shows from all sides, nor the last time, which is the same where a clip loops.
UNSEEN_FRAMES = tuple(np.linspace(1, FRAMES - 2, 12).round().astype(int).tolist())
AZIMUTHS = 8
ELEVATIONS = {0.0: 0.5, 20.0: 0.37}  # degrees; and the first azimuth there, in steps
LEAST_ANGLE = 15.0  # degrees of azimuth to the view that is shown at the same time; what is nearer is no unseen view


@dataclass(frozen=True)
class GridTruth:
    """One clip: what construction is given, and the truth. Everything in the clip space of time 0."""

    clip: ChosenClip
    moving: Observations  # one view per time
    static: Observations
    several: Observations | None  # `AZIMUTHS` views per time
    surface: SurfaceSamples  # with their movement, where it is known
    unseen: Observations
    tracks: np.ndarray  # [T, M, 3] float32
    magnitude: float  # m of Eq. 1


def unseen_cameras(resolution: int = RESOLUTION) -> Cameras:
    """The grid's cameras, in the order of time, without those that stand beside the camera of the moving orbit.

    At elevation 0 they stand half a step from those of `several_cameras`, so none of them is given in any case.
    """
    orbit = DatasetView().cameras(resolution, MOVING)
    shown = Orbit(FRAMES).azimuths()
    step = 360 / AZIMUTHS
    chosen = [
        (frame, azimuth, elevation)
        for frame in UNSEEN_FRAMES
        for elevation, first in ELEVATIONS.items()
        for azimuth in (np.arange(AZIMUTHS) + first) * step
        if abs((azimuth - shown[frame] + 180) % 360 - 180) >= LEAST_ANGLE
    ]
    return _cameras(chosen, orbit)


def several_cameras(resolution: int = RESOLUTION) -> Cameras:
    """`AZIMUTHS` cameras at elevation 0 for every time."""
    step = 360 / AZIMUTHS
    chosen = [(frame, k * step, 0.0) for frame in range(FRAMES) for k in range(AZIMUTHS)]
    return _cameras(chosen, DatasetView().cameras(resolution, MOVING))


def _cameras(chosen: list[tuple[int, float, float]], orbit: Cameras) -> Cameras:
    """Cameras at (frame, azimuth, elevation), otherwise as those of an orbit."""
    plain = Orbit(FRAMES)
    return Cameras(
        camera_to_world=np.stack([orbit_camera(az, elevation, plain.distance) for _, az, elevation in chosen]),
        Ks=np.repeat(intrinsics(plain.fov, orbit.width, orbit.height)[None], len(chosen), axis=0),
        times=np.array([frame / (FRAMES - 1) for frame, _, _ in chosen]),
        width=orbit.width,
        height=orbit.height,
    )


class TruthFolder:
    """Truths on disk, rendered where they are missing, and read one by one: together they fill the memory."""

    def __init__(self, assets: Path, folder: Path, renderer: str, several: bool, resolution: int = RESOLUTION) -> None:
        self._assets, self._folder, self._renderer = assets, folder, renderer
        orbits = {video: DatasetView().cameras(resolution, video) for video in (MOVING, STATIC)}
        given = {video: Shots(cameras, SAMPLES) for video, cameras in orbits.items()}
        given[FURTHER] = Shots(further_cameras(Orbit(FRAMES), resolution, resolution), SAMPLES)
        grid = {UNSEEN: Shots(unseen_cameras(resolution), SAMPLES)}
        self._plans = {"grid": Plan({**given, **grid}, surface=True)}
        if several:
            self._plans[SEVERAL] = Plan({SEVERAL: Shots(several_cameras(resolution), SAMPLES)})

    def render(
        self, clips: list[ChosenClip], limit: int | None, run: Run, stages: dict[str, str]
    ) -> tuple[list[ChosenClip], dict[str, str]]:
        """Render until `limit` clips can be used; see `truth.render_usable`. `stages` names those of `run`, by plan."""
        left_out: dict[str, str] = {}
        for name, plan in self._plans.items():
            run.begin(stages[name])
            folder = self._folder / name
            clips, problems = render_usable(self._assets, clips, folder, self._renderer, plan, run, limit)
            left_out |= problems
        return clips, left_out

    def read(self, clip: ChosenClip) -> GridTruth:
        """One clip that `render` returned.

        Raises:
            BadFileError: a file is damaged.
        """
        grid = self._folder / "grid" / clip.name
        surface, tracks = read_surface(grid)
        moving, static, further = (self._shot("grid", clip, name) for name in (MOVING, STATIC, FURTHER))
        several = self._shot(SEVERAL, clip, SEVERAL) if SEVERAL in self._plans else None
        magnitude = magnitude_of(*(read_pictures(grid, name, FRAMES) for name in (MOVING, STATIC)))
        unseen = self._shot("grid", clip, UNSEEN)
        still = joined([static, further])
        return GridTruth(clip, moving, still, several, surface, unseen, tracks, magnitude)

    def _shot(self, plan: str, clip: ChosenClip, name: str) -> Observations:
        cameras = self._plans[plan].shots[name].cameras
        pictures = read_pictures(self._folder / plan / clip.name, name, len(cameras.times))
        return Observations(premultiplied(pictures), cameras)
