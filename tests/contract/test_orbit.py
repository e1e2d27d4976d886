# SPDX-License-Identifier: GPL-3.0-or-later
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.orbit import (
    FURTHER_VIEWS,
    ORBIT_JSON,
    Cameras,
    Orbit,
    further_cameras,
    orbit_cameras,
    read_orbit_json,
    write_orbit_json,
)


def project(cameras: Cameras, view: int, point) -> np.ndarray:
    x, y, z, _ = cameras.viewmats()[view] @ [*point, 1]
    assert z > 0, "in front of the camera"
    return (cameras.Ks[view] @ [x / z, y / z, 1])[:2]


def test_the_first_camera_stands_in_front_with_z_up() -> None:
    cameras = orbit_cameras(Orbit(frames=24), 128, 128, moving=True)
    np.testing.assert_allclose(cameras.camera_to_world[0, :3, 3], [0, -2, 0], atol=1e-12)
    np.testing.assert_allclose(project(cameras, 0, [0, 0, 0]), [64, 64])
    right, up = project(cameras, 0, [0.1, 0, 0]), project(cameras, 0, [0, 0, 0.1])
    assert right[0] > 64
    assert right[1] == pytest.approx(64)
    assert up[1] < 64  # pictures grow downwards


def test_azimuth_grows_counter_clockwise_seen_from_above() -> None:
    position = orbit_cameras(Orbit(frames=4, closed=False), 64, 64, moving=True).camera_to_world[:, :3, 3]
    np.testing.assert_allclose(position, [[0, -2, 0], [2, 0, 0], [0, 2, 0], [-2, 0, 0]], atol=1e-12)


def test_closed_orbits_end_where_they_began_and_open_ones_one_step_before() -> None:
    closed, open_ = Orbit(frames=24), Orbit(frames=24, closed=False)
    np.testing.assert_allclose(closed.camera_to_world()[0], closed.camera_to_world()[-1], atol=1e-12)
    assert open_.azimuths()[-1] == pytest.approx(345)


@settings(max_examples=50, deadline=None)
@given(
    frames=st.integers(1, 96),
    azimuth=st.floats(-720, 720),
    elevation=st.floats(-80, 80),
    distance=st.floats(1.5, 10),
    closed=st.booleans(),
    moving=st.booleans(),
)
def test_cameras_look_at_the_origin_and_survive_json(frames, azimuth, elevation, distance, closed, moving) -> None:
    orbit = Orbit(frames, azimuth, elevation, distance, closed=closed)
    cameras = orbit_cameras(orbit, 96, 64, moving=moving)
    cameras.check()
    np.testing.assert_allclose(project(cameras, frames - 1, [0, 0, 0]), [48, 32], atol=1e-6)
    assert project(cameras, 0, [0, 0, 0.01])[1] < 32
    again = Cameras.from_json(json.loads(json.dumps(cameras.to_json())))
    for name in ("camera_to_world", "Ks", "times"):
        np.testing.assert_array_equal(getattr(again, name), getattr(cameras, name))


def test_field_of_view_is_horizontal() -> None:
    cameras = orbit_cameras(Orbit(fov=90, distance=1), 200, 100, moving=False)
    np.testing.assert_allclose(project(cameras, 0, [1, 0, 0]), [200, 50], atol=1e-9)


def test_orbit_json_round_trip(tmp_path) -> None:
    cameras = orbit_cameras(Orbit(frames=8), 64, 64, moving=True)
    write_orbit_json(tmp_path, cameras)
    np.testing.assert_array_equal(read_orbit_json(tmp_path).times, cameras.times)


GOOD = orbit_cameras(Orbit(frames=3), 64, 64, moving=True).to_json()
BAD = {
    "no times": {name: value for name, value in GOOD.items() if name != "times"},
    "times too few": {**GOOD, "times": [0.0]},
    "time above 1": {**GOOD, "times": [0.0, 0.5, 1.5]},
    "matrix with text": {**GOOD, "camera_to_world": "identity"},
    "ragged": {**GOOD, "camera_to_world": [[[1.0]], [[1.0, 2.0]]]},
    "NaN": {**GOOD, "times": [0.0, float("nan"), 1.0]},
    "zero width": {**GOOD, "width": 0},
    "text as width": {**GOOD, "width": "64"},
    "no views": {**GOOD, "camera_to_world": [], "Ks": [], "times": []},
    "sheared camera": {**GOOD, "camera_to_world": (np.array(GOOD["camera_to_world"]) * 2).tolist()},
    "focal length 0": {**GOOD, "Ks": np.zeros((3, 3, 3)).tolist()},
    "skew": {**GOOD, "Ks": (np.array(GOOD["Ks"]) + np.eye(3, k=1) * [0, 0.5, 0]).tolist()},
    "homogeneous scale": {**GOOD, "Ks": (2 * np.array(GOOD["Ks"])).tolist()},
    "not a dictionary": [],
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_bad_cameras_are_refused_in_one_sentence(data) -> None:
    with pytest.raises(BadFileError, match="The orbit has no usable cameras"):
        Cameras.from_json(data)


@pytest.mark.parametrize("wrong", ["times", ["a", "b", "c"], [[1.0], [1.0, 2.0]], [10**400]])
def test_what_is_no_list_of_numbers_is_told_in_our_words(wrong) -> None:
    with pytest.raises(BadFileError, match=r"^a/orbit.json has no usable cameras: times must be there, numbers alone "):
        Cameras.from_json({**GOOD, "times": wrong}, "a/orbit.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "kinesplat-orbit", "version": 9}', "[" * 100_000])
def test_bad_orbit_files_are_refused(text, tmp_path) -> None:
    (tmp_path / ORBIT_JSON).write_text(text)
    with pytest.raises(BadFileError, match=ORBIT_JSON):
        read_orbit_json(tmp_path)


def test_a_folder_without_an_orbit_is_named(tmp_path) -> None:
    with pytest.raises(BadFileError, match="is missing: this is not an orbit folder"):
        read_orbit_json(tmp_path)


def test_further_views_look_from_above_and_below():
    cameras = further_cameras(Orbit(distance=3), 32, 16)
    assert len(cameras.times) == FURTHER_VIEWS
    assert not cameras.times.any()
    cameras.check()
    places = cameras.camera_to_world[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), 3)
    heights = np.degrees(np.arcsin(places[:, 2] / 3)).round()
    assert sorted(heights) == [-90, -45, -45, -45, 45, 45, 45, 90]
    np.testing.assert_allclose(cameras.camera_to_world[:, :3, 2] * 3, places)  # at the middle
