# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated frames: what is written is read again, and files that are something else are told apart in a sentence."""

import dataclasses
import json

import numpy as np
import pytest

from blender_addon.contract.arrays import BadFileError, read_arrays, write_arrays
from blender_addon.contract.frames import read_frames, write_frames
from blender_addon.contract.orbit import Orbit, further_cameras
from blender_addon.contract.requests import STILL_FRAMES
from tests.contract.clips import random_frames


def test_round_trip(tmp_path):
    frames = random_frames()
    write_frames(tmp_path / "frames.npz", frames)
    again = read_frames(tmp_path / "frames.npz")
    for name in ("moving", "static", "points", "movement"):
        np.testing.assert_array_equal(getattr(again, name), getattr(frames, name))
    assert again.cameras.to_json() == frames.cameras.to_json()
    for name in ("prompt", "motion", "motion_measured", "seed", "provenance"):
        assert getattr(again, name) == getattr(frames, name)


def test_the_movement_need_not_be_known(tmp_path):
    write_frames(tmp_path / "frames.npz", random_frames(points=None, movement=None))
    assert read_frames(tmp_path / "frames.npz").points is None


def test_files_of_the_first_version_are_read(tmp_path):
    def first(arrays, meta) -> None:
        del arrays["points"], arrays["movement"]
        meta.update(version=1)

    rewritten(tmp_path / "frames.npz", first)
    assert read_frames(tmp_path / "frames.npz").movement is None


def test_all_that_shows_time_0():
    frames = random_frames()
    pictures, cameras = frames.still()
    np.testing.assert_array_equal(pictures, frames.static)
    assert not cameras.times.any()
    np.testing.assert_array_equal(cameras.camera_to_world, frames.cameras.camera_to_world)

    frames = dataclasses.replace(frames, **further_views())
    pictures, cameras = frames.still()
    np.testing.assert_array_equal(pictures[24:], frames.further)
    np.testing.assert_array_equal(cameras.camera_to_world[24:], frames.further_cameras.camera_to_world)
    assert len(cameras.times) == len(pictures) == STILL_FRAMES
    assert not cameras.times.any()


def test_further_views_come_back(tmp_path):
    frames = dataclasses.replace(random_frames(), **further_views())
    write_frames(tmp_path / "frames.npz", frames)
    found = read_frames(tmp_path / "frames.npz")
    np.testing.assert_array_equal(found.further, frames.further)
    np.testing.assert_array_equal(found.further_cameras.camera_to_world, frames.further_cameras.camera_to_world)


def test_files_of_the_second_version_are_read(tmp_path):
    rewritten(tmp_path / "frames.npz", lambda arrays, meta: (meta.pop("further_cameras"), meta.update(version=2)))
    assert read_frames(tmp_path / "frames.npz").further is None


def further_views(size: int = 16) -> dict:
    cameras = further_cameras(Orbit(), size, size)
    pictures = np.random.default_rng(1).integers(0, 256, (len(cameras.times), size, size, 4), np.uint8)
    return {"further": pictures, "further_cameras": cameras}


BROKEN = {
    "float pictures": ({"moving": np.zeros((24, 16, 16, 4), np.float32)}, "moving is not uint8"),
    "no alpha": ({"static": np.zeros((24, 16, 16, 3), np.uint8)}, r"static must have the shape \[T, H, W, 4\]"),
    "fewer static pictures": ({"static": np.zeros((23, 16, 16, 4), np.uint8)}, "differ in shape"),
    "not a number": ({"motion": float("nan")}, "motion must be a number"),
    "motion below 0": ({"motion_measured": -1.0}, "motion_measured must be a number"),
    "a long prompt": ({"prompt": "x" * 501}, "prompt is not a short text"),
    "a seed that is none": ({"seed": 1.5}, "seed is not a whole number"),
    "no provenance": ({"provenance": None}, "provenance is not a dictionary"),
    "points that do not move": ({"movement": None}, "only one of points and movement"),
    "a movement of other points": ({"movement": np.zeros((24, 6, 3), np.float32)}, "do not fit together"),
    "double points": ({"points": np.zeros((7, 3))}, "not float32"),
    "lost points": ({"points": np.full((7, 3), np.nan, np.float32)}, "not all finite"),
    "further views without cameras": ({"further": further_views()["further"]}, "further views and their cameras"),
    "further views of another size": (further_views(32), "further views do not fit"),
    "further views of other times": (
        {**further_views(), "further_cameras": random_frames().cameras.picked(slice(8))},
        "not all of time 0",
    ),
    "other cameras": ({"cameras": random_frames(size=32).cameras}, "cameras do not fit"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_frames_are_not_written(tmp_path, case):
    changes, said = BROKEN[case]
    with pytest.raises(BadFileError, match=said):
        write_frames(tmp_path / "frames.npz", dataclasses.replace(random_frames(), **changes))
    assert not (tmp_path / "frames.npz").exists()


def rewritten(path, change) -> None:
    """Change the arrays of a good file."""
    write_frames(path, random_frames())
    arrays = read_arrays(path)
    meta = json.loads(arrays["meta"].tobytes())
    change(arrays, meta)
    if "meta" in arrays:
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    write_arrays(path, arrays)


FILES = {
    "no description": (lambda arrays, meta: arrays.pop("meta"), "does not hold generated frames"),
    "more in it": (lambda arrays, meta: arrays.update(more=np.zeros(1)), "does not hold generated frames"),
    "another format": (lambda arrays, meta: meta.update(format="kinesplat-clip"), "does not hold generated frames"),
    "a later version": (lambda arrays, meta: meta.update(version=4), "made by another version"),
    "half a movement": (lambda arrays, meta: arrays.pop("points"), "does not hold generated frames"),
    "no seed": (lambda arrays, meta: meta.pop("seed"), "lacks 'seed'"),
    "no cameras": (lambda arrays, meta: meta.update(cameras=None), "no usable cameras"),
    "pictures too few": (lambda arrays, meta: arrays.update(moving=arrays["moving"][:9]), "differ in shape"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_something_else(tmp_path, case):
    change, said = FILES[case]
    path = tmp_path / "frames.npz"
    rewritten(path, change)
    with pytest.raises(BadFileError, match=said):
        read_frames(path)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "frames.npz"
    write_frames(path, random_frames())
    monkeypatch.setattr("blender_addon.contract.frames.MAX_FILE_BYTES", 2 * 24 * 16 * 16 * 4)
    with pytest.raises(BadFileError, match="more than"):
        read_frames(path)
