# SPDX-License-Identifier: GPL-3.0-or-later
"""What 4Diffusion is given and compared with: a clip filmed from the front, and the same times from seven other sides.

4Diffusion's cameras would crop a subject of side 1. In truth the camera stands farther away instead of the subject
being smaller, which gives the same pictures; so a result, whose subject is smaller, is drawn from `cameras`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional

from backend.data.view_samples import DISTANCE, FOV, LARGEST
from backend.data.views import FRAMES
from backend.evaluation.choice import ChosenClip
from backend.evaluation.truth import (
    LEAVES_PICTURE,
    MOVING,
    STATIC,
    Plan,
    Shots,
    read_pictures,
    render_usable,
    until_enough,
)
from backend.models.motion_magnitude import magnitude_of
from backend.pictures import premultiplied
from backend.progress import Run
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera

RESOLUTION = 128  # pixels
SAMPLES = 16  # of Cycles, as for construction
ORTHOGONAL = (0.0, 90.0, 180.0, 270.0)  # degrees of azimuth; the first is the input's
BETWEEN = (45.0, 135.0, 225.0, 315.0)
AZIMUTHS = (*ORTHOGONAL, *BETWEEN)
# Of the longest side at time 0: the first that no view crops.
SIZES = tuple(LARGEST * share for share in (1.0, 0.8, 0.65, 0.5, 0.4))
LEAST_FRAMES, MOST_FRAMES = 8, FRAMES  # a truth has no more times than a bake


@dataclass(frozen=True)
class VideoTruth:
    """One clip from AZIMUTHS at F times."""

    clip: ChosenClip
    pictures: np.ndarray  # [8, F, H, W, 4] uint8, straight alpha
    magnitude: float  # m of Eq. 1 over all of them
    size: float  # of SIZES

    def seen(self) -> Tensor:  # [8, F, H, W, 4] float32 0..1
        """The pictures, colour multiplied by alpha."""
        return premultiplied(self.pictures)

    def video(self, side: int) -> Tensor:  # [F, 4, side, side] float32 0..1
        """The input video, colour multiplied by alpha."""
        return resized(premultiplied(self.pictures[0]), side).movedim(-1, 1)


def cameras(frames: int, pixels: int, azimuths: tuple[float, ...] = AZIMUTHS) -> Cameras:
    """Cameras that stand still at elevation 0, by azimuth and then by time: those of results, for a subject of SIZES.

    Their times are even, and are a result's own: 0 is its first frame, 1 its last.
    """
    return _cameras(frames, pixels, azimuths, DISTANCE, np.linspace(0, 1, frames))


def resized(pictures: Tensor, side: int) -> Tensor:  # [..., H, W, C] -> [..., side, side, C]
    """Square pictures in another size; colour must be multiplied by alpha."""
    if pictures.shape[-2] == side:
        return pictures
    planes = pictures.flatten(0, -4).movedim(-1, 1)
    planes = functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    return planes.movedim(1, -1).unflatten(0, pictures.shape[:-3])


class VideoTruthFolder:
    """Truths on disk, rendered where they are missing, and read one by one."""

    def __init__(self, assets: Path, folder: Path, renderer: str, frames: int, pixels: int) -> None:
        self._assets, self._folder, self._renderer = assets, folder, renderer
        self._frames, self._pixels = frames, pixels
        self._plan = cache(self._plan_of)
        self._sizes: dict[str, float] = {}

    def render(self, clips: list[ChosenClip], limit: int | None, run: Run) -> tuple[list[ChosenClip], dict[str, str]]:
        """Render until `limit` clips can be used; returns them, and of the others why each is left out.

        Raises:
            UserError, BadFileError: as `truth.render_usable`.
        """

        def problems_of(cropped: list[ChosenClip], *_: int) -> dict[str, str]:
            problems: dict[str, str] = {}
            for size in SIZES:
                folder = self._folder_of(size)
                found, new = render_usable(self._assets, cropped, folder, self._renderer, self._plan(size), run)
                self._sizes |= {clip.name: size for clip in found}
                problems |= new
                cropped = [clip for clip in cropped if new.get(clip.name) == LEAVES_PICTURE]
            return {name: why for name, why in problems.items() if name not in self._sizes}

        return until_enough(clips, limit, problems_of)

    def read(self, clip: ChosenClip) -> VideoTruth:
        """One clip that `render` returned.

        Raises:
            BadFileError: a file is damaged.
        """
        size = self._sizes[clip.name]
        count = len(AZIMUTHS) * self._frames
        moving, static = (read_pictures(self._folder_of(size) / clip.name, name, count) for name in (MOVING, STATIC))
        pictures = moving.reshape(len(AZIMUTHS), self._frames, *moving.shape[1:])
        return VideoTruth(clip, pictures, magnitude_of(moving, static), size)

    def _folder_of(self, size: float) -> Path:
        return self._folder / f"{self._frames}_frames_{self._pixels}_px_size_{size:.2f}"

    def _plan_of(self, size: float) -> Plan:
        # As many stored frames apart as there are: both renderers then show the very same, even times.
        stride = (FRAMES - 1) // (self._frames - 1)
        times = stride * np.arange(self._frames) / (FRAMES - 1)
        moving = _cameras(self._frames, self._pixels, AZIMUTHS, DISTANCE / size, times)
        still = _cameras(self._frames, self._pixels, AZIMUTHS, DISTANCE / size, np.zeros(self._frames))
        return Plan({MOVING: Shots(moving, SAMPLES), STATIC: Shots(still, SAMPLES)})


def _cameras(frames: int, pixels: int, azimuths: tuple[float, ...], distance: float, times: np.ndarray) -> Cameras:
    poses = np.stack([orbit_camera(azimuth, 0.0, distance) for azimuth in azimuths])
    return Cameras(
        camera_to_world=np.repeat(poses, frames, axis=0),
        Ks=np.repeat(intrinsics(FOV, pixels, pixels)[None], len(azimuths) * frames, axis=0),
        times=np.tile(times, len(azimuths)),
        width=pixels,
        height=pixels,
    )
