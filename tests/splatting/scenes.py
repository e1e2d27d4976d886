# SPDX-License-Identifier: GPL-3.0-or-later
"""Small moving scenes whose truth is known: a speckled body with arms that swing, drawn by the rasteriser."""

from dataclasses import dataclass

import numpy as np
import torch

from backend.splatting.observations import Observations
from backend.splatting.render import render
from blender_addon.contract.orbit import Cameras, Orbit, intrinsics, orbit_camera, orbit_cameras
from blender_addon.contract.surface import SurfaceSamples

BLUE, ORANGE = (0.2, 0.4, 0.8), (0.9, 0.5, 0.1)


@dataclass(frozen=True)
class Scene:
    """Pictures of a moving subject, and what the fit is not shown."""

    moving: Observations
    static: Observations
    truth: Observations
    surface: SurfaceSamples
    tracks: np.ndarray  # [T, M, 3]


def swinging_arm(
    frames: int = 9, pixels: int = 48, loop: bool = True, closed: bool = True, static_views: int = 12
) -> Scene:
    """The scene, with `frames` times; `loop` swings to the side and back, otherwise to the side only."""
    rng = np.random.default_rng(5)
    body, body_normals = _ellipsoid(rng, 300, (0.0, 0.0, -0.15), (0.18, 0.14, 0.3))
    arm, arm_normals = _ellipsoid(rng, 150, (0.3, 0.0, 0.1), (0.2, 0.07, 0.07))
    normals = np.concatenate([body_normals, arm_normals])
    times = np.arange(frames) / (frames - 1)
    swing = np.radians(55) * (np.sin(np.pi * times) ** 2 if loop else np.sin(0.5 * np.pi * times) ** 2)
    shoulder = np.array([0.12, 0.0, 0.1])
    c, s = np.cos(swing), np.sin(swing)
    turns = np.stack([c, 0 * s, -s, 0 * s, 0 * s + 1, 0 * s, s, 0 * s, c], axis=1).reshape(-1, 3, 3)  # in x and z
    means = np.stack([np.concatenate([body, (arm - shoulder) @ turn.T + shoulder]) for turn in turns])
    colors = np.concatenate([np.full((len(body), 3), BLUE), np.full((len(arm), 3), ORANGE)])
    speckled = (colors + rng.normal(size=colors.shape) * 0.12).clip(0.02, 0.98)
    return _scene(means, normals, speckled, pixels, closed, static_views)


def two_arms(lag: float, frames: int = 13, pixels: int = 48) -> Scene:
    """A body with an arm on either side of the plane x = 0; both swing to and fro, the left one `lag` cycles later.

    Their colours differ, and a horn on the back shows where that is.
    """
    rng = np.random.default_rng(6)
    body, body_normals = _ellipsoid(rng, 250, (0.0, 0.0, 0.0), (0.14, 0.1, 0.3))
    horn, horn_normals = _ellipsoid(rng, 50, (0.0, 0.15, 0.15), (0.04, 0.12, 0.04))
    arm, arm_normals = _ellipsoid(rng, 150, (0.24, 0.0, -0.05), (0.06, 0.06, 0.24))
    other_side = np.array([-1.0, 1, 1])
    normals = np.concatenate([body_normals, horn_normals, arm_normals, arm_normals * other_side])
    shoulder = np.array([0.24, 0.0, 0.15])

    def swung(time: float) -> np.ndarray:
        angle = np.radians(40) * np.sin(2 * np.pi * time)
        c, s = np.cos(angle), np.sin(angle)
        return (arm - shoulder) @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) + shoulder

    times = np.arange(frames) / (frames - 1)
    parts = [[body, horn, swung(time), swung(time - lag) * other_side] for time in times]
    colors = np.repeat([BLUE, BLUE, ORANGE, (0.2, 0.7, 0.3)], [len(part) for part in parts[0]], axis=0)
    return _scene(np.stack([np.concatenate(moment) for moment in parts]), normals, colors, pixels)


def _scene(
    means: np.ndarray,
    normals: np.ndarray,
    colors: np.ndarray,
    pixels: int,
    closed: bool = True,
    static_views: int = 12,
) -> Scene:
    """The scene of points at `means` [T, N, 3]; normals and colours [N, 3]."""
    frames, rest = len(means), means[0]
    times = np.arange(frames) / (frames - 1)

    def picture(cameras: Cameras) -> Observations:
        index = np.round(cameras.times * (frames - 1)).astype(int)
        images = [
            render(
                torch.from_numpy(means[time])[None].float(),
                torch.tensor([1.0, 0, 0, 0]).expand(1, len(rest), 4),
                torch.full((len(rest), 3), 0.025),
                torch.full((len(rest),), 0.95),
                torch.from_numpy(colors).float(),
                torch.from_numpy(cameras.viewmats()[view : view + 1]).float(),
                torch.from_numpy(cameras.Ks[view : view + 1]).float(),
                cameras.width,
                cameras.height,
            )
            for view, time in enumerate(index)
        ]
        return Observations(torch.cat(images), cameras)

    orbit = Orbit(frames=frames, closed=closed)
    views = [(azimuth, elevation) for azimuth in (20, 110, 200, 290) for elevation in (0, 20)]
    shown = np.repeat(np.arange(1, frames - 1, 2), len(views))
    return Scene(
        moving=picture(orbit_cameras(orbit, pixels, pixels, moving=True)),
        static=picture(orbit_cameras(Orbit(frames=static_views, closed=False), pixels, pixels, moving=False)),
        truth=picture(
            Cameras(
                camera_to_world=np.stack([orbit_camera(*view, 2.0) for view in views] * (len(shown) // len(views))),
                Ks=np.repeat(intrinsics(39.6, pixels, pixels)[None], len(shown), axis=0),
                times=times[shown],
                width=pixels,
                height=pixels,
            )
        ),
        surface=SurfaceSamples(rest.astype(np.float32), normals.astype(np.float32)),
        tracks=means.astype(np.float32),
    )


def _ellipsoid(
    rng: np.random.Generator, count: int, centre: tuple[float, ...], radii: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    normals = directions / np.array(radii)
    return directions * radii + np.array(centre), normals / np.linalg.norm(normals, axis=1, keepdims=True)
