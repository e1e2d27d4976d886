# SPDX-License-Identifier: GPL-3.0-or-later
"""Training samples of scene flow: pictures of a moving subject, of the same subject at time 0, and where it went.

For each frame there are two pictures of time 0: from the frame's own camera, and from the other side. For each pixel of
both the sample knows how far its surface point has moved by the frame's time, whether or not the frame shows it.
"""

from dataclasses import dataclass

import numpy as np

from backend.data.baked import BakedAsset
from backend.data.samples import FRAMES, SampleStream, View, draw_views, pose_clip, random_view
from backend.models.scene_flow import opposite_views
from blender_addon.contract.orbit import Cameras, Orbit, intrinsics, orbit_camera

DISTANCE, FOV = Orbit.distance, Orbit.fov


@dataclass(frozen=True)
class FlowSample:
    """One moving camera round one clip. All float32; pictures premultiplied and display-referred."""

    moving: np.ndarray  # [T, H, W, 4]
    near: np.ndarray  # [T, H, W, 4] the same cameras at time 0
    far: np.ndarray  # [T, H, W, 4] cameras on the other side at time 0, mirrored left to right
    near_flow: np.ndarray  # [T, H, W, 3] by the frame's time, world axes, times 2 / depth, weighted by coverage
    far_flow: np.ndarray  # [T, H, W, 3]
    camera_to_world: np.ndarray  # [T, 4, 4] of the frames
    times: np.ndarray  # [T] 0..1
    caption: str = ""


class FlowStream(SampleStream):
    """Endless, seekable stream of such samples: mostly closed orbits, sometimes cameras that stand or stroll."""

    def sample(self, number: int) -> FlowSample:
        """Sample `number` of the stream."""
        rng = np.random.default_rng([self.seed, number])
        name, clip = self.pick(rng)
        asset = self.assets[name]
        view = random_view(rng, loop=asset.clips[clip].loop)
        turns = float(rng.choice([1.0, 0.0, rng.uniform(-1, 2)], p=[0.7, 0.2, 0.1]))
        azimuths = view.azimuth + 360 * turns * np.linspace(0, 1, FRAMES)
        return render_flow_sample(asset, clip, view, azimuths, self.resolution)


def render_flow_sample(asset: BakedAsset, clip: int, view: View, azimuths: np.ndarray, resolution: int) -> FlowSample:
    """Draw one clip from cameras at `azimuths` [T], degrees, one for each time.

    The far pictures are the nearest that a closed orbit of `FRAMES` views at time 0 offers, as in use.
    """
    frames = len(azimuths)
    positions, normals = pose_clip(asset, clip, view, frames)
    light = np.tile(np.float32(view.light), (frames, 1))
    around = view.azimuth + np.linspace(0, 360, FRAMES)
    cameras = _cameras(azimuths, view.elevation, resolution)
    static = _cameras(around, view.elevation, resolution)
    far = static.picked(opposite_views(cameras.camera_to_world, static.camera_to_world))
    moving, _ = draw_views(asset, positions, normals, positions[0], cameras, light, view.gains)
    pictures = {"near": np.empty_like(moving), "far": np.empty_like(moving)}
    flows = {name: np.empty((*moving.shape[:3], 3), np.float32) for name in pictures}
    still = positions[:1], normals[:1]
    for i in range(frames):
        rest = 2 * positions[0] - positions[i]  # what has moved from there to time 0 will have moved on as far
        for name, seen in (("near", cameras), ("far", far)):
            drawn = draw_views(asset, *still, rest, seen.picked([i]), light[:1], view.gains)
            pictures[name][i], flows[name][i] = drawn[0][0], drawn[1][0]
    mirrored = np.s_[:, :, ::-1]
    return FlowSample(
        moving=moving,
        near=pictures["near"],
        far=np.ascontiguousarray(pictures["far"][mirrored]),
        near_flow=flows["near"],
        far_flow=np.ascontiguousarray(flows["far"][mirrored]),
        camera_to_world=cameras.camera_to_world.astype(np.float32),
        times=np.linspace(0, 1, frames, dtype=np.float32),
    )


def _cameras(azimuths: np.ndarray, elevation: float, resolution: int) -> Cameras:
    poses = np.stack([orbit_camera(azimuth, elevation, DISTANCE) for azimuth in azimuths])
    matrix = intrinsics(FOV, resolution, resolution)
    return Cameras(poses, np.tile(matrix, (len(poses), 1, 1)), np.zeros(len(poses)), resolution, resolution)
