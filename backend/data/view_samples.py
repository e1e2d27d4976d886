# SPDX-License-Identifier: GPL-3.0-or-later
"""Training samples of 4DM: a clip filmed from one side, and the same times seen from four sides (4Diffusion, 3.2).

As in the paper, all cameras stand still at elevation 0, the four a quarter of a turn apart; where they and the one
stand is drawn evenly. The subject keeps its own front, and the lamp stands in the world.
"""

from dataclasses import dataclass

import numpy as np

from backend.data.baked import BakedAsset
from backend.data.captions import caption
from backend.data.fast_renderer import STAGE_LIGHT, light_of_frames
from backend.data.samples import FRAMES, SampleStream, View, draw_views, pose_clip
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera

TIMES, VIEWS = 8, 4
STRIDE = 3  # stored frames from one time to the next: the most that 24 allow; the paper's longer clips allow 4
DISTANCE, FOV = 1.1, 45.0  # 4Diffusion's cameras
LARGEST = 0.82  # of the longest side at time 0: these cameras would crop a subject of side 1


@dataclass(frozen=True)
class ViewSample:
    """T times of one clip. All float32; pictures premultiplied and display-referred."""

    video: np.ndarray  # [T, H, W, 4]
    views: np.ndarray  # [T, N, H, W, 4]
    camera_to_world: np.ndarray  # [N, 4, 4] of the views
    caption: str = ""


class ViewStream(SampleStream):
    """Endless, seekable stream of such samples."""

    def sample(self, number: int) -> ViewSample:
        """Sample `number` of the stream."""
        rng = np.random.default_rng([self.seed, number])
        name, clip = self.pick(rng)
        view = random_clip_view(rng)
        film, first = rng.uniform(0, 360, 2)
        azimuths = [film, *(first + 360 / VIEWS * np.arange(VIEWS))]
        text = caption(self.entries[name], self.assets[name].clips[clip].action, rng)
        return render_view_sample(
            self.assets[name], clip, view, azimuths, self.resolution, text=text, light_turn=rng.uniform(0, 360)
        )


def random_clip_view(rng: np.random.Generator) -> View:
    """TIMES frames at STRIDE, from a random one on; size, colors and side of the subject."""
    last = FRAMES - 1
    span = STRIDE * (TIMES - 1)
    return View(
        start=rng.integers(last - span + 1) / last,
        span=span / last,
        size=rng.uniform(0.7, 1.0) * LARGEST,
        gains=tuple(rng.uniform(0.6, 1.3, 3) if rng.random() < 0.5 else (1.0, 1.0, 1.0)),
        mirror=bool(rng.random() < 0.5),
    )


def render_view_sample(
    asset: BakedAsset,
    clip: int,
    view: View,
    azimuths: list[float],
    resolution: int,
    *,
    text: str = "",
    light_turn: float = 0.0,
) -> ViewSample:
    """Draw a clip from cameras at `azimuths`, degrees: that of the video, then those of the views."""
    positions, normals = pose_clip(asset, clip, view, TIMES)
    poses = np.stack([orbit_camera(azimuth, view.elevation, DISTANCE) for azimuth in azimuths])
    count = len(poses)
    rows = np.repeat(np.arange(TIMES), count)  # time, then camera
    matrices = np.tile(intrinsics(FOV, resolution, resolution), (len(rows), 1, 1))
    cameras = Cameras(np.tile(poses, (TIMES, 1, 1)), matrices, rows / (TIMES - 1), resolution, resolution)
    light = light_of_frames(STAGE_LIGHT, light_turn, cameras.camera_to_world)
    drawn, _ = draw_views(asset, positions[rows], normals[rows], positions[0], cameras, light, view.gains)
    pictures = drawn.reshape(TIMES, count, *drawn.shape[1:])
    return ViewSample(
        np.ascontiguousarray(pictures[:, 0]),
        np.ascontiguousarray(pictures[:, 1:]),
        poses[1:].astype(np.float32),
        text,
    )
