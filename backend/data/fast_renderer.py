# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos of a baked asset by the rasterizer of training."""

from pathlib import Path

import numpy as np

from backend.data.baked import read_baked
from backend.data.samples import View, draw_views, pose_clip
from backend.data.views import FRAMES, DatasetView

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
        positions, normals = pose_clip(self._asset, clip, View())
        rest = positions[0].copy()
        if video == "static":
            positions, normals = (np.repeat(array[:1], FRAMES, axis=0) for array in (positions, normals))
        cameras = view.cameras(self._resolution, video)
        light = light_of_frames(self._light, view.light_turn, cameras.camera_to_world)
        rgba, _ = draw_views(self._asset, positions, normals, rest, cameras, light)
        rgba[..., :3] /= np.maximum(rgba[..., 3:], 1e-6)
        return (rgba.clip(0, 1) * 255).round().astype(np.uint8)


def light_of_frames(light: Light, degrees: float, camera_to_world: np.ndarray) -> np.ndarray:
    """A light that is turned about the vertical, for each camera [T, 4, 4] as the rasterizer wants it: [T, 5]."""
    (x, y, z), ambient, diffuse = light
    turn = np.radians(degrees)
    turned = np.array([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y, z])
    in_camera = turned @ camera_to_world[:, :3, :3] * [1, -1, -1]  # OpenGL axes -> OpenCV axes
    return np.column_stack([in_camera, np.full(len(in_camera), ambient), np.full(len(in_camera), diffuse)])
