# SPDX-License-Identifier: GPL-3.0-or-later
"""Training samples of 4DM: a clip filmed from one side, and the same times seen from four sides (4Diffusion, 3.2).

As in the paper, all cameras stand still at elevation 0, the four a quarter of a turn apart; where they and the one
stand is drawn evenly. The subject keeps its own front, and the lamp stands in the world.

The small 4DM (`GuessedViewStream`) counts azimuths from the input's camera instead, which needs no knowledge of
anybody's front, and is shown the input inflated.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from backend.data.baked import BakedAsset
from backend.data.captions import caption
from backend.data.fast_renderer import STAGE_LIGHT, light_of_frames
from backend.data.samples import FRAMES, SampleStream, View, draw_views, pose_clip
from backend.models.inflation import inflated_views
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera

TIMES, VIEWS = 8, 4
STRIDE = 3  # stored frames from one time to the next: the most that 24 allow; the paper's longer clips allow 4
DISTANCE, FOV = 1.1, 45.0  # 4Diffusion's cameras
LARGEST = 0.82  # of the longest side at time 0: these cameras would crop a subject of side 1
HIGHEST = 5.0  # degrees of elevation of the views that score distillation looks at


@dataclass(frozen=True)
class ViewSample:
    """T times of one clip. All float32; pictures premultiplied and display-referred."""

    video: np.ndarray  # [T, H, W, 4]
    views: np.ndarray  # [T, N, H, W, 4]
    camera_to_world: np.ndarray  # [N, 4, 4] of the views
    caption: str = ""


@dataclass(frozen=True)
class GuessedViewSample(ViewSample):
    """The same, and what the inflated video looks like from the views' cameras."""

    guess: np.ndarray = None  # [T, N, H, W, 4]


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


class GuessedViewStream(SampleStream):
    """Endless, seekable stream of samples of the small 4DM; `times`: 1 for the base, TIMES for its motion modules."""

    def __init__(self, *args: object, times: int = TIMES, **options: object) -> None:
        super().__init__(*args, **options)
        self.times = times

    def sample(self, number: int) -> GuessedViewSample:
        """Sample `number` of the stream."""
        rng = np.random.default_rng([self.seed, number])
        name, clip = self.pick(rng)
        view = replace(random_clip_view(rng, self.times, smallest=0.55), yaw=rng.uniform(0, 360))
        # Half of them at the sides that the views are made for, half anywhere, as score distillation looks.
        first, elevation = (0.0, 0.0) if rng.random() < 0.5 else (rng.uniform(0, 360), rng.uniform(0, HIGHEST))
        drawn = render_view_sample(
            self.assets[name],
            clip,
            view,
            [0.0, *(first + 360 / VIEWS * np.arange(VIEWS))],
            self.resolution,
            text=caption(self.entries[name], self.assets[name].clips[clip].action, rng),
            light_turn=rng.uniform(0, 360),
            times=self.times,
            elevation=elevation,
        )
        guess = inflated_views(drawn.video, drawn.camera_to_world, DISTANCE, FOV)
        return GuessedViewSample(**{known.name: getattr(drawn, known.name) for known in fields(drawn)}, guess=guess)


def random_clip_view(rng: np.random.Generator, times: int = TIMES, smallest: float = 0.7) -> View:
    """`times` frames at STRIDE, from a random one on; size, colors and side of the subject."""
    last = FRAMES - 1
    span = STRIDE * (times - 1)
    return View(
        start=rng.integers(last - span + 1) / last,
        span=span / last,
        size=rng.uniform(smallest, 1.0) * LARGEST,
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
    times: int = TIMES,
    elevation: float = 0.0,
) -> ViewSample:
    """Draw a clip from cameras at `azimuths`, degrees: that of the video, then those of the views at `elevation`."""
    positions, normals = pose_clip(asset, clip, view, times)
    film, *others = azimuths
    poses = np.stack([orbit_camera(film, 0.0, DISTANCE), *(orbit_camera(one, elevation, DISTANCE) for one in others)])
    count = len(poses)
    rows = np.repeat(np.arange(times), count)  # time, then camera
    matrices = np.tile(intrinsics(FOV, resolution, resolution), (len(rows), 1, 1))
    shares = rows / max(times - 1, 1)
    cameras = Cameras(np.tile(poses, (times, 1, 1)), matrices, shares, resolution, resolution)
    light = light_of_frames(STAGE_LIGHT, light_turn, cameras.camera_to_world)
    drawn, _ = draw_views(asset, positions[rows], normals[rows], positions[0], cameras, light, view.gains)
    pictures = drawn.reshape(times, count, *drawn.shape[1:])
    return ViewSample(
        np.ascontiguousarray(pictures[:, 0]),
        np.ascontiguousarray(pictures[:, 1:]),
        poses[1:].astype(np.float32),
        text,
    )
