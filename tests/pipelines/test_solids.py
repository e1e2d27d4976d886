# SPDX-License-Identifier: GPL-3.0-or-later
"""Solids behind pictures: what of a mesh becomes one, and that from all sides they look as what they are."""

import numpy as np
import pytest

from backend.pipelines.far_side import far_side
from backend.pipelines.solids import DEPTHS, HALF_DEPTH, INSIDE, RAYS, filled, occupancy, solid_views
from blender_addon.contract.orbit import Cameras, Orbit, orbit_cameras
from tests.dataset.tiny import QUADS

SIZE = 96
HALF = np.tan(np.radians(Orbit.fov / 2))
MIDDLE = RAYS // 2


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Corners and triangles, counter-clockwise from outside."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
    corners = np.float32(low) + corners * (np.float32(high) - np.float32(low))
    return corners, np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))], np.int32)


def depth_of(index: float) -> float:
    return (index / DEPTHS * 2 - 1) * HALF_DEPTH


def test_a_box_is_filled():
    points, faces = box((-0.3, -0.2, -0.1), (0.3, 0.4, 0.1))
    solid = occupancy(points, faces, HALF)
    inside = np.flatnonzero(solid[MIDDLE, MIDDLE])
    assert depth_of(inside[0]) == pytest.approx(-0.2, abs=0.016)
    assert depth_of(inside[-1] + 1) == pytest.approx(0.4, abs=0.016)
    assert np.ptp(inside) == len(inside) - 1
    wide = np.flatnonzero(solid.any(-1)[MIDDLE])
    assert len(wide) == pytest.approx(0.6 / 1.8 * RAYS / 2 / HALF, abs=1)  # its nearest face, at 1.8


def test_two_boxes_behind_each_other_are_two():
    one, faces = box((-0.2, -0.4, -0.2), (0.2, -0.2, 0.2))
    two, _ = box((-0.2, 0.2, -0.2), (0.2, 0.4, 0.2))
    solid = occupancy(np.concatenate([one, two]), np.concatenate([faces, faces + 8]), HALF)
    steps = np.diff(solid[MIDDLE, MIDDLE].astype(int))
    assert (steps == 1).sum() == (steps == -1).sum() == 2


def test_behind_a_hole_there_is_nothing():
    points, faces = box((-0.3, -0.2, -0.3), (0.3, 0.2, 0.3))
    back = (points[faces][:, :, 1] > 0.19).all(1)
    ray = occupancy(points, faces[~back], HALF)[MIDDLE, MIDDLE]
    assert np.flatnonzero(ray).tolist() == [int((HALF_DEPTH - 0.2) / (2 * HALF_DEPTH) * DEPTHS)]  # the face alone


def test_an_outline_with_nothing_behind_it_is_inflated_where_the_rest_is():
    points, faces = box((-0.2, 0.2, -0.2), (0.2, 0.4, 0.2))
    solid = occupancy(points, faces, HALF)
    mask = solid.any(-1)
    mask[:MIDDLE, : MIDDLE - 2] = False  # a quarter of the box is not in the picture
    mask[MIDDLE - 4 : MIDDLE + 4, 100:120] = True  # and something is that the box does not reach
    whole = filled(solid, mask, HALF) > INSIDE
    assert not whole[MIDDLE - 5, MIDDLE - 8].any()
    np.testing.assert_array_equal(whole[MIDDLE + 5, MIDDLE + 5], solid[MIDDLE + 5, MIDDLE + 5])
    found = np.flatnonzero(whole[MIDDLE, 110])
    assert 0.2 < depth_of(found.mean()) < 0.4  # where the rays beside it are in the box
    assert len(found) > 3


def around(frames: int = 4) -> Cameras:
    return orbit_cameras(Orbit(frames=frames, closed=False), SIZE, SIZE, moving=False)


def ellipsoid(radii: tuple[float, float, float], middle: tuple[float, float, float] = (0, 0, 0)):
    """A picture [SIZE, SIZE, 4] of one, red on its left half, and the solid behind it."""
    y = ((np.arange(DEPTHS) + 0.5) / DEPTHS * 2 - 1) * HALF_DEPTH

    def within(size: int) -> np.ndarray:  # [size, size, DEPTHS]: 1 in the middle, 0 at the surface
        line = ((np.arange(size) + 0.5) / size * 2 - 1)[:, None] * HALF * (2 + y)
        places = np.stack(np.broadcast_arrays(line[None], y, -line[:, None]), -1)
        return 1 - (((places - middle) / radii) ** 2).sum(-1)

    picture = np.zeros((SIZE, SIZE, 4), np.float32)
    picture[(within(SIZE) > 0).any(-1)] = (0.1, 0.8, 0.2, 1)
    picture[:, : SIZE // 2, :3] *= np.float32([8, 0.25, 1])
    return picture, (within(RAYS) + INSIDE).astype(np.float32)


def mirrored(picture: np.ndarray) -> np.ndarray:
    return far_side(picture, mirrored=True)


def extent(view: np.ndarray) -> tuple[int, int]:
    """Of what is seen: width and height."""
    rows, columns = np.nonzero(view[..., 3])
    return np.ptp(columns) + 1, np.ptp(rows) + 1


def test_a_ball_is_a_ball_from_all_sides():
    picture, solid = ellipsoid((0.3,) * 3)
    views = solid_views(picture, mirrored(picture), solid, around())
    assert ((views[0] != picture).any(-1)).mean() < 0.01
    for view in views:
        assert extent(view) == pytest.approx(extent(picture), abs=3)
    assert views[0][48, 40, 0] == views[2][48, 56, 0] == pytest.approx(0.8)  # what is left here is right from behind


@pytest.mark.parametrize("depth", [0.3, 0.6])
def test_the_far_side_has_its_own_color(depth):
    """Behind the middle; of what is deeper than wide, from where a ball would end."""
    picture, solid = ellipsoid((0.3, depth, 0.3))
    far = np.tile(np.float32([0, 0, 1]), (SIZE, SIZE, 1))
    front, right, back, _ = solid_views(picture, far, solid, around(), whole=False)
    assert not (front[..., 2] > 0.5).any()
    assert (back[back[..., 3] > 0][:, :3] == (0, 0, 1)).all()
    row = right[48][right[48, :, 3] > 0]  # from the subject's right, its front is on the left
    turned = np.flatnonzero(row[:, 2] > 0.5)
    assert (np.diff(turned) == 1).all()
    share = {0.3: 0.5, 0.6: 0.25}[depth]
    assert turned[0] / len(row) == pytest.approx(share, abs=0.12)
    assert turned[-1] == len(row) - 1


def test_what_is_longer_than_its_picture_shows_is_seen_whole():
    picture, solid = ellipsoid((0.2, 0.6, 0.5))
    views = solid_views(picture, mirrored(picture), solid, around(8))
    wide, high = extent(views[2])
    assert wide / high == pytest.approx(0.6 / 0.5, rel=0.1)
    for view in views:
        assert not view[[0, -1]].any()
        assert not view[:, [0, -1]].any()
    assert extent(views[0])[1] == pytest.approx(extent(picture)[1] / 1.2, rel=0.1)  # smaller as a whole


def test_places_are_where_the_cameras_say():
    picture, solid = ellipsoid((0.1, 0.1, 0.1), middle=(0.2, 0.3, 0.0))
    for view, aside in zip(
        solid_views(picture, mirrored(picture), solid, around()), (0.2, 0.3, -0.2, -0.3), strict=True
    ):
        middle = np.nonzero(view[..., 3])[1].mean()
        away = {0.2: 2.3, 0.3: 1.8, -0.2: 1.7, -0.3: 2.2}[aside]
        assert middle == pytest.approx(SIZE / 2 * (1 + aside / away / HALF), abs=2)


def test_what_is_finer_than_the_grid_is_seen_and_no_more_than_it():
    """Each pixel of the picture has something behind it, and not all of its ray."""
    picture, solid = ellipsoid((0.3,) * 3)
    picture[10:30, 48] = (0, 0, 0, 1)
    whole = filled(solid > INSIDE, occupied_by(picture), HALF)
    front, side = solid_views(picture, mirrored(picture), whole, around())[:2]
    assert front[12:30, 48, 3].all()
    assert 1 <= (side[12:20, :, 3] > 0).sum(-1).max() <= 8


def occupied_by(picture: np.ndarray) -> np.ndarray:  # [RAYS, RAYS]
    at = ((np.arange(RAYS) + 0.5) / RAYS * SIZE).astype(int)
    return picture[np.ix_(at, at)][..., 3] > 0.5


def test_of_nothing_nothing_is_seen():
    picture = np.zeros((SIZE, SIZE, 4), np.float32)
    assert not solid_views(picture, mirrored(picture), np.zeros((RAYS, RAYS, DEPTHS), np.float32), around()).any()
