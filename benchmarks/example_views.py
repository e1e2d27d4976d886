# SPDX-License-Identifier: GPL-3.0-or-later
"""Orbits of the bundled models as the add-on renders them, and views of the same motion that no orbit shows."""

from pathlib import Path
from types import ModuleType

import numpy as np

from blender_addon.contract.orbit import Cameras, Orbit, intrinsics, orbit_camera
from examples.demo import MODELS, open_model

TIMES = 8
AZIMUTHS = 8
ELEVATIONS = (0.0, 20.0)  # degrees
APART = 15.0  # degrees from the orbit's own view at that time; anything nearer counts as shown
RESOLUTION = 128


def render_example(model: str, folder: Path) -> None:
    """Render `moving`, `static`, `surface.npz` and `truth` of a bundled model into `folder`, in headless Blender."""
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    render_subject(bpy, open_model(bpy, MODELS[model]), folder)


def render_subject(bpy: ModuleType, subject, folder: Path) -> None:
    """The same of an object in the open file, over its scene's frames."""
    from blender_addon.capture_progress import in_one_go
    from blender_addon.clip_space import measure_steps
    from blender_addon.orbit_render import capture_motion_steps, render_views_steps

    scene = bpy.context.scene
    space = in_one_go(measure_steps(bpy.context, subject, (scene.frame_start, scene.frame_end)))
    capture = in_one_go(capture_motion_steps(space, Orbit(), folder, resolution=RESOLUTION))
    in_one_go(render_views_steps(space, unseen_cameras(capture.moving), folder / "truth"))


def unseen_cameras(moving: Cameras) -> Cameras:
    """Cameras all round at evenly chosen times of a moving orbit, without those near the orbit's own at that time."""
    distance = float(np.linalg.norm(moving.camera_to_world[0, :3, 3]))
    views, times = [], []
    for index in np.linspace(0, len(moving.times) - 1, TIMES + 1).round().astype(int)[1:]:
        own = moving.camera_to_world[index, :3, 3] / distance
        for elevation in ELEVATIONS:
            for azimuth in 360.0 * np.arange(AZIMUTHS) / AZIMUTHS:
                camera = orbit_camera(azimuth, elevation, distance)
                apart = np.degrees(np.arccos(np.clip(camera[:3, 3] / distance @ own, -1, 1)))
                if apart >= APART:
                    views.append(camera)
                    times.append(moving.times[index])
    fov = np.degrees(2 * np.arctan(0.5 * moving.width / moving.Ks[0, 0, 0]))
    K = intrinsics(fov, moving.width, moving.height)  # noqa: N806
    return Cameras(
        np.stack(views), np.repeat(K[None], len(views), axis=0), np.array(times), moving.width, moving.height
    )
