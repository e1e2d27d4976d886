# SPDX-License-Identifier: GPL-3.0-or-later
"""What one iteration of 4Diffusion looks at: times, cameras, diffusion time, anchor frame.

All of it follows from the seed and the iteration's number, so a fit that goes on after a break needs no memory of it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.guidance.sds import FINAL, timestep_bounds
from backend.pipelines.multi_view_video import DISTANCE, FOV, RUN_FRAMES, VIEWS
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera

HIGHEST = 5.0  # degrees of elevation, 0 to that


@dataclass(frozen=True)
class Draw:
    """F' frames of the clip, all seen by VIEWS cameras a quarter of a turn apart."""

    frames: np.ndarray  # [F'] int64, contiguous
    cameras: Cameras  # [F' VIEWS], time outer, view inner
    timestep: int  # of the diffusion, one for all
    anchor: int  # frame of the anchor video
    detailed: int  # index in `frames` of the one time whose normals are looked at
    seed: int

    @property
    def poses(self) -> Tensor:  # [VIEWS, 4, 4]
        """Camera-to-world, the same at all times."""
        return torch.from_numpy(self.cameras.camera_to_world[:VIEWS]).float()

    def detailed_cameras(self) -> Cameras:
        """Those of the one time."""
        return self.cameras.picked(slice(self.detailed * VIEWS, (self.detailed + 1) * VIEWS))

    def generator(self) -> torch.Generator:
        """Of what else this iteration draws, on the CPU."""
        return torch.Generator().manual_seed(self.seed)


def draw(
    iteration: int, frames: int, pixels: int, annealed: int, seed: int, final: tuple[float, float] = FINAL
) -> Draw:
    """The draw of one iteration of the fit of a clip of `frames` frames, at least 2.

    pixels: side of its pictures; annealed: iterations until diffusion times are in their final range, or 0;
    final: that range, in shares of the whole.
    """
    rng = np.random.default_rng((seed, iteration))
    count = min(frames, RUN_FRAMES)
    shown = rng.integers(frames - count + 1) + np.arange(count)
    turn, elevation = 360 / VIEWS * rng.random(), HIGHEST * rng.random()
    low, high = timestep_bounds(iteration, annealed, final)
    poses = np.stack([orbit_camera(turn + 360 / VIEWS * view, elevation, DISTANCE) for view in range(VIEWS)])
    cameras = Cameras(
        camera_to_world=np.tile(poses, (count, 1, 1)),
        Ks=np.repeat(intrinsics(FOV, pixels, pixels)[None], count * VIEWS, axis=0),
        times=np.repeat(shown / (frames - 1), VIEWS),
        width=pixels,
        height=pixels,
    )
    return Draw(
        frames=shown,
        cameras=cameras,
        timestep=int(rng.integers(low, high + 1)),
        anchor=int(rng.integers(frames)),
        detailed=int(rng.integers(count)),
        seed=int(rng.integers(2**63)),
    )
