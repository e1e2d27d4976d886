# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos of a model by Cycles, through the add-on's own code and on its stage. Runs in a process of its own.

Light that is turned about the subject is the subject and its cameras turned under the light.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np
from PIL import Image

from backend.data.baked import model_file
from backend.data.blender_model import FPS, open_model, quiet
from backend.data.views import FRAMES, DatasetView
from backend.progress import UserError
from blender_addon.capture_progress import in_one_go
from blender_addon.clip_space import ClipSpace, measure_steps
from blender_addon.contract.orbit import Cameras, frame_name
from blender_addon.contract.surface import SurfaceSamples
from blender_addon.orbit_render import render_views_steps
from blender_addon.stage import open_stage
from blender_addon.surface_samples import sample_surface_steps


class BlenderRenderer:
    """Renders the clips of one model."""

    def __init__(self, assets: Path, entry: dict, resolution: int, samples: int) -> None:
        """Raises UserError where the model cannot be read."""
        self._model = open_model(model_file(assets, entry))
        self._clips = entry["clips"]
        self._resolution, self._samples = resolution, samples
        self._playing: int | None = None

    def video(self, clip: int, view: DatasetView, video: str) -> np.ndarray:  # [T, H, W, 4] uint8, straight alpha
        """One of `shards.VIDEOS` of a clip. Raises as `pictures`."""
        return self.pictures(clip, view.cameras(self._resolution, video), light_turn=view.light_turn)

    def pictures(
        self, clip: int, cameras: Cameras, *, samples: int | None = None, light_turn: float = 0.0
    ) -> np.ndarray:  # [V, H, W, 4] uint8, straight alpha
        """A clip as any cameras see it at their times; `samples` per pixel instead of the renderer's own.

        Raises:
            UserError: the model has no such action.
            CaptureError: Blender cannot render it.
        """
        self._pose(clip, light_turn)
        turned = replace(cameras, camera_to_world=_about_z(-light_turn) @ cameras.camera_to_world)
        with quiet(), tempfile.TemporaryDirectory() as folder:
            samples = samples or self._samples
            in_one_go(render_views_steps(self._space, turned, Path(folder), engine="CYCLES", samples=samples))
            return np.stack([np.asarray(Image.open(Path(folder) / frame_name(k))) for k in range(len(cameras.times))])

    def surface(self, clip: int) -> SurfaceSamples:
        """What the add-on sends of the surface. Raises as `pictures`."""
        self._pose(clip)
        with quiet():
            return in_one_go(sample_surface_steps(self._space, times=FRAMES))

    def triangles(self, clip: int) -> np.ndarray:  # [T, F, 3, 3] float32
        """Corners of the evaluated triangles at the stored frames, clip space.

        Raises:
            UserError: they are not the same triangles at all times, or the model has no such action.
            CaptureError: Blender cannot evaluate it.
        """
        self._pose(clip)
        space = self._space
        with quiet(), open_stage(space.subject, width=64, height=64, engine="CYCLES", samples=1) as stage:
            moments = [space.frame_at(k / (FRAMES - 1)) for k in range(FRAMES)]
            first, *others = (stage.geometry(moment, with_triangles=True) for moment in moments)
        found = [first.vertices, *(geometry.vertices for geometry in others)]
        if len({len(vertices) for vertices in found}) > 1:
            raise UserError("no_tracks", "The mesh is built anew over time, so that no point of it can be followed.")
        corners = np.stack(found)[:, first.triangles]
        return ((corners - space.to_world[:3, 3]) / space.scale).astype(np.float32)

    def _pose(self, clip: int, light_turn: float = 0.0) -> None:
        if clip != self._playing:
            self._play(clip)
        self._model.turn(-light_turn, self._space.to_world[:3, 3])

    def _play(self, clip: int) -> None:
        """Let the clip's action move the model, without its travel where the manifest says so; measure its start."""
        info = self._clips[clip]
        start, end = (FPS * seconds for seconds in info["time_range"])
        model = self._model
        model.stay()
        model.turn(0, np.zeros(3))
        model.play(info["action"])
        if info["recentre"]:
            frames = np.linspace(start, end, FRAMES)
            middles = np.stack([self._measure(frame).to_world[:3, 3] for frame in frames])
            model.drift(middles[0] - middles, frames)
        self._space = replace(self._measure(start), frame_range=(start, end))
        self._playing = clip

    def _measure(self, frame: float) -> ClipSpace:
        with quiet():
            return in_one_go(measure_steps(bpy.context, self._model.root, (frame, frame)))


def _about_z(degrees: float) -> np.ndarray:  # [4, 4]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
