# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos of a baked asset by the rasterizer of training."""

from pathlib import Path

import numpy as np

from backend.data.baked import read_baked
from backend.data.samples import View, draw_views, pose_clip
from backend.data.surface_points import sample_triangles
from backend.data.views import FRAMES, DatasetView
from backend.pictures import straight
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.surface import SurfaceSamples

SURFACE_SAMPLES = 20_000
Light = tuple[tuple[float, float, float], float, float]

# The stage's light as one lamp that stands in the world: towards it, ambient, diffuse. Fitted to Cycles renders of
# twelve assets (benchmarks/picture_gap.py).
STAGE_LIGHT: Light = ((-0.2, -0.34, 1.14), 0.767, 0.262)


class FastRenderer:
    """Draws the clips of one asset."""

    def __init__(self, assets: Path, entry: dict, resolution: int, light: Light = STAGE_LIGHT) -> None:
        """Raises BadFileError where the bake is missing or damaged."""
        self._asset = read_baked(assets, entry)
        self._resolution, self._light = resolution, light

    def video(self, clip: int, view: DatasetView, video: str) -> np.ndarray:  # [T, H, W, 4] uint8, straight alpha
        """One of `shards.VIDEOS` of a clip."""
        return self.pictures(clip, view.cameras(self._resolution, video), light_turn=view.light_turn)

    def pictures(
        self, clip: int, cameras: Cameras, *, samples: int | None = None, light_turn: float = 0.0
    ) -> np.ndarray:  # [V, H, W, 4] uint8, straight alpha
        """A clip as any cameras see it at the stored frame nearest to their times. `samples` mean nothing here."""
        positions, normals = pose_clip(self._asset, clip, View())
        stored = np.round(cameras.times * (FRAMES - 1)).astype(int)
        light = light_of_frames(self._light, light_turn, cameras.camera_to_world)
        rgba, _ = draw_views(self._asset, positions[stored], normals[stored], positions[0], cameras, light)
        return straight(rgba)

    def surface(self, clip: int) -> SurfaceSamples:
        """Samples of the surface and their movement, as many as the add-on sends.

        Raises:
            UserError: there is no surface.
        """
        corners = self.triangles(clip).astype(np.float64)
        chosen, weights = sample_triangles(corners[0], SURFACE_SAMPLES, seed=0)
        points = np.einsum("mc,tmcd->tmd", weights, corners[:, chosen])
        normals = np.cross(*(corners[0, chosen, k] - corners[0, chosen, 0] for k in (1, 2)))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return SurfaceSamples(*(array.astype(np.float32) for array in (points[0], normals, points - points[0])))

    def triangles(self, clip: int) -> np.ndarray:  # [T, F, 3, 3] float32
        """Corners of the triangles at the stored frames, clip space."""
        positions, _ = pose_clip(self._asset, clip, View())
        return positions[:, self._asset.faces]


def light_of_frames(light: Light, degrees: float, camera_to_world: np.ndarray) -> np.ndarray:
    """A light that is turned about the vertical, for each camera [T, 4, 4] as the rasterizer wants it: [T, 5]."""
    (x, y, z), ambient, diffuse = light
    turn = np.radians(degrees)
    turned = np.array([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y, z])
    in_camera = turned @ camera_to_world[:, :3, :3] * [1, -1, -1]  # OpenGL axes -> OpenCV axes
    return np.column_stack([in_camera, np.full(len(in_camera), ambient), np.full(len(in_camera), diffuse)])
