# SPDX-License-Identifier: GPL-3.0-or-later
"""Orbits in folders of Diffusion4D's layout, and of our own beside them."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend.pipelines import orbit_video
from backend.splatting.observations import read_orbit_folder, read_orbit_folders
from backend.splatting.orbit_folders import MOVING, STATIC, find_orbit, find_orbits
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.orbit import Orbit, frame_name, orbit_cameras, write_orbit_json

FRAMES, SIZE = 12, 8  # more than ten, whose names do not sort by number
STATIC_VALUE = 50


def write_sample(folder: Path, orbit: Orbit | None = None) -> Path:
    """What Diffusion4D's renderer writes; frame k of each video is filled with a number of its own."""
    folder.mkdir(exist_ok=True)
    for start, name in ((0, "multi_frame"), (STATIC_VALUE, "multi_static_frame"), (100, "front_frame")):
        for k in range(FRAMES):
            Image.fromarray(picture(start + k)).save(folder / f"{name}{k}.png")
    if orbit:
        for k, matrix in enumerate(orbit.camera_to_world()):
            camera = {"matrix_world": matrix.tolist(), "x_fov": np.radians(orbit.fov), "format_version": 6}
            for name in ("multi", "static"):
                (folder / f"{name}{k}.json").write_text(json.dumps(camera))
        (folder / "front.json").write_text("{}")
    return folder


def write_ours(folder: Path, value: int) -> Path:
    folder.mkdir(exist_ok=True)
    write_orbit_json(folder, orbit_cameras(Orbit(3), SIZE, SIZE, moving=False))
    for k in range(3):
        Image.fromarray(picture(value)).save(folder / frame_name(k))
    return folder


def picture(value: int) -> np.ndarray:
    pixels = np.full((SIZE, SIZE, 4), 255, np.uint8)
    pixels[..., 0] = value
    return pixels


def values(observations) -> list[int]:
    return (observations.images[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return write_sample(tmp_path / "sample")


def test_frames_come_in_order_and_the_static_orbit_along(sample: Path) -> None:
    moving, static = read_orbit_folders(sample)
    assert values(moving) == list(range(FRAMES))
    assert values(static) == [STATIC_VALUE + k for k in range(FRAMES)]
    np.testing.assert_allclose(moving.cameras.times, np.arange(FRAMES) / (FRAMES - 1))
    assert not static.cameras.times.any()
    assert values(read_orbit_folder(sample)) == values(moving)


def test_a_static_orbit_that_is_named_counts(sample: Path, tmp_path: Path) -> None:
    assert values(read_orbit_folders(sample, write_ours(tmp_path / "still", 9))[1]) == [9, 9, 9]
    other = write_sample(tmp_path / "other")
    Image.fromarray(picture(77)).save(other / f"{STATIC}0.png")
    assert values(read_orbit_folders(sample, other)[1])[:2] == [77, STATIC_VALUE + 1]


def test_orbit_json_counts_where_both_layouts_lie(sample: Path) -> None:
    write_ours(sample, 9)
    moving, static = read_orbit_folders(sample)
    assert values(moving) == [9, 9, 9]
    assert static is None


def test_cameras_are_read(tmp_path: Path) -> None:
    orbit = Orbit(FRAMES, azimuth_start=70, elevation=9, fov=50)
    for found in find_orbits(write_sample(tmp_path, orbit)):
        np.testing.assert_allclose(found.cameras.camera_to_world, orbit.camera_to_world())
        np.testing.assert_allclose(found.cameras.Ks[:, 0, 0], 0.5 * SIZE / np.tan(np.radians(25)))


def test_each_orbit_has_cameras_of_its_own(tmp_path: Path) -> None:
    write_sample(tmp_path, Orbit(FRAMES))
    higher = write_sample(tmp_path / "higher", Orbit(FRAMES, elevation=30))
    (higher / "static0.json").replace(tmp_path / "static0.json")
    moving, static = find_orbits(tmp_path)
    np.testing.assert_allclose(moving.cameras.camera_to_world[0, 2, 3], 0, atol=1e-12)
    np.testing.assert_allclose(static.cameras.camera_to_world[0, 2, 3], 1)


def test_a_static_orbit_without_cameras_has_those_of_the_moving_one(tmp_path: Path) -> None:
    write_sample(tmp_path, Orbit(FRAMES, elevation=9))
    for path in tmp_path.glob("static*.json"):
        path.unlink()
    moving, static = find_orbits(tmp_path)
    np.testing.assert_array_equal(static.cameras.camera_to_world, moving.cameras.camera_to_world)
    assert not static.cameras.times.any()


def test_without_cameras_they_are_the_renderers_own(sample: Path) -> None:
    cameras = find_orbit(sample).cameras
    np.testing.assert_allclose(cameras.camera_to_world[0, :3, 3], [0, -2, 0], atol=1e-12)
    np.testing.assert_allclose(cameras.camera_to_world[0], cameras.camera_to_world[-1], atol=1e-12)
    assert cameras.camera_to_world[1, 0, 3] > 0  # towards +X


def test_objaverse_xl_has_no_static_orbit(sample: Path) -> None:
    for path in sample.glob(f"{STATIC}*"):
        path.unlink()
    assert find_orbits(sample)[1] is None
    with pytest.raises(BadFileError, match=f"missing, and so is {STATIC}0.png"):
        find_orbits(sample, sample)


def save_with_notes(path: Path) -> None:
    """A picture with more text than Pillow unpacks, as programs write their whole settings into it."""
    notes = PngInfo()
    notes.add_text("workflow", "a" * (2 << 20), zip=True)
    Image.new("RGBA", (8, 8)).save(path, pnginfo=notes)


def test_a_number_far_off_costs_nothing(sample: Path) -> None:
    (sample / "multi_frame3000000.png").write_bytes(b"")
    tracemalloc.start()
    try:
        with pytest.raises(BadFileError, match=f"multi_frame{FRAMES}.png is missing"):
            find_orbits(sample)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "multi_frame3.png").unlink(), "multi_frame3.png is missing"),
        (lambda folder: (folder / "multi_static_frame0.png").unlink(), "multi_static_frame0.png is missing"),
        (lambda folder: (folder / "multi_frame0.png").write_bytes(b"\x89PNG"), "multi_frame0.png cannot be read"),
        (lambda folder: (folder / "multi_frame3.png").write_bytes(b"\x89PNG"), "multi_frame3.png cannot be read"),
        (lambda folder: Image.new("RGBA", (4, 8)).save(folder / "multi_frame3.png"), "4 x 8 pixels, not 8 x 8"),
        (lambda folder: save_with_notes(folder / "multi_frame0.png"), "multi_frame0.png cannot be read"),
        (lambda folder: save_with_notes(folder / "multi_frame3.png"), "multi_frame3.png cannot be read"),
        (lambda folder: (folder / "multi0.json").unlink(), "multi0.json is missing"),
        (lambda folder: (folder / "multi4.json").write_text("{}"), "does not describe a camera"),
        (lambda folder: (folder / "static4.json").write_text('{"matrix_world": [1], "x_fov": 1}'), "4 x 4 numbers"),
        (
            lambda folder: (folder / "multi4.json").write_text(
                json.dumps({"matrix_world": np.diag([2.0, 2, 2, 1]).tolist(), "x_fov": 0.7})
            ),
            "not made of rotation and translation",
        ),
        (lambda folder: [path.unlink() for path in folder.glob(f"{MOVING}*")], "orbit.json is missing, and so is"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, spoil, message: str) -> None:
    write_sample(tmp_path, Orbit(FRAMES))
    spoil(tmp_path)
    with pytest.raises(BadFileError, match=message):
        read_orbit_folders(tmp_path)


def test_an_estimate_counts_the_static_orbit_that_lies_there(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    estimate = orbit_video.estimate

    def noted(config, moving, static, **named):
        sizes.append((moving, static))
        return estimate(config, moving, static, **named)

    monkeypatch.setattr(orbit_video, "estimate", noted)
    orbit_video.estimate_folders(sample, None, "draft", None, "cpu")
    assert sizes == [((FRAMES, SIZE, SIZE), (FRAMES, SIZE, SIZE))]


def test_finding_an_orbit_needs_no_torch() -> None:
    """`jobs submit` looks at folders alone."""
    code = "import sys; import backend.splatting.orbit_folders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
