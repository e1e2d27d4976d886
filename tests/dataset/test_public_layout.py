# SPDX-License-Identifier: GPL-3.0-or-later
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.data.public_layout import read_public_sample
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.orbit import Orbit

FRAMES, SIZE = 12, 8  # more than ten, whose names do not sort by number


def write_sample(folder: Path, orbit: Orbit | None) -> None:
    """What Diffusion4D's renderer writes; frame k of each video is filled with a number of its own."""
    for start, name in ((0, "multi_frame"), (50, "multi_static_frame"), (100, "front_frame")):
        for k in range(FRAMES):
            Image.fromarray(np.full((SIZE, SIZE, 4), start + k, np.uint8)).save(folder / f"{name}{k}.png")
    if orbit:
        for k, matrix in enumerate(orbit.camera_to_world()):
            camera = {"matrix_world": matrix.tolist(), "x_fov": np.radians(orbit.fov), "format_version": 6}
            for name in ("multi", "static"):
                (folder / f"{name}{k}.json").write_text(json.dumps(camera))


def test_frames_come_in_order(tmp_path: Path) -> None:
    write_sample(tmp_path, None)
    sample = read_public_sample(tmp_path)
    for start, video in ((0, sample.moving), (50, sample.static), (100, sample.front)):
        np.testing.assert_array_equal(video[:, 0, 0, 0], start + np.arange(FRAMES))


def test_cameras_are_read(tmp_path: Path) -> None:
    orbit = Orbit(FRAMES, azimuth_start=70, elevation=9, fov=50)
    write_sample(tmp_path, orbit)
    cameras = read_public_sample(tmp_path).cameras
    np.testing.assert_allclose(cameras.camera_to_world, orbit.camera_to_world())
    np.testing.assert_allclose(cameras.Ks[:, 0, 0], 0.5 * SIZE / np.tan(np.radians(25)))
    np.testing.assert_allclose(cameras.times, np.arange(FRAMES) / (FRAMES - 1))


def test_without_cameras_they_are_the_renderers_own(tmp_path: Path) -> None:
    write_sample(tmp_path, None)
    cameras = read_public_sample(tmp_path).cameras
    np.testing.assert_allclose(cameras.camera_to_world[0, :3, 3], [0, -2, 0], atol=1e-12)
    np.testing.assert_allclose(cameras.camera_to_world[0], cameras.camera_to_world[-1], atol=1e-12)
    assert cameras.camera_to_world[1, 0, 3] > 0  # towards +X


def test_objaverse_xl_has_no_static_orbit(tmp_path: Path) -> None:
    write_sample(tmp_path, None)
    for k in range(FRAMES):
        (tmp_path / f"multi_static_frame{k}.png").unlink()
    assert read_public_sample(tmp_path).static is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "multi_frame3.png").unlink(), "missing"),
        (lambda folder: (folder / "multi_frame3.png").write_bytes(b"\x89PNG"), "cannot be read"),
        (lambda folder: (folder / "multi4.json").write_text("{}"), "does not describe a camera"),
        (lambda folder: [path.unlink() for path in folder.glob("multi_frame*")], "not in the layout"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, spoil, message: str) -> None:
    write_sample(tmp_path, Orbit(FRAMES))
    spoil(tmp_path)
    with pytest.raises(BadFileError, match=message):
        read_public_sample(tmp_path)
