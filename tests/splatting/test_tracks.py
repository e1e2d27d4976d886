# SPDX-License-Identifier: GPL-3.0-or-later
"""Surfaces whose faces come, go, grow or are made anew, followed as far as that goes."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from backend.splatting.tracks import RANDOM_SPACING, Tracks, make_tracks
from blender_addon.contract import rotations
from blender_addon.contract.surface import SurfacePieces

Sampled = tuple[np.ndarray, np.ndarray, np.ndarray]  # points [L, n, 3], normals [L, n, 3], sizes [L, n]


def pieces_of(parts: list[tuple[int, int, Sampled]], times: int) -> SurfacePieces:
    """Of whose piece it is, its first time, and its samples."""
    spans = [[part, first, *sampled[0].shape[:2]] for part, first, sampled in parts]
    points, normals = (
        np.concatenate([sampled[kind].reshape(-1, 3) for *_, sampled in parts]).astype(np.float32) for kind in (0, 1)
    )
    sizes = np.concatenate([sampled[2].ravel() for *_, sampled in parts]).astype(np.float32)
    return SurfacePieces(np.array(spans, np.int32), points, normals, sizes, np.array(times, np.int32))


def ball(rng: np.random.Generator, count: int, centre: tuple = (0, 0, 0), radius: float = 0.3) -> Sampled:
    """A ball at one time, its points drawn anew."""
    normals = rng.normal(size=(1, count, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return radius * normals + np.array(centre), normals, np.ones((1, count))


def lasting(sampled: Sampled, times: int) -> Sampled:
    """The same at so many times."""
    return tuple(np.tile(array, (times, *[1] * (array.ndim - 1))) for array in sampled)


def off_the_ball(tracks: Tracks, time: int, centre: tuple = (0, 0, 0), radius: float = 0.3) -> float:
    """Largest distance from the ball of what is there."""
    there = tracks.means[time, tracks.there[time]]
    return float(np.abs(np.linalg.norm(there - centre, axis=1) - radius).max())


def largest_gap(tracks: Tracks, time: int, points: np.ndarray) -> float:
    """The farthest that any of these points is from what is there, in sides of a square of the surface with one."""
    there = tracks.means[time, tracks.there[time]]
    return float(cKDTree(there).query(points)[0].max()) / (tracks.spacing / RANDOM_SPACING)


def test_what_keeps_its_faces_is_followed_and_turns_along() -> None:
    """Also about its own normal, of which the normals say nothing."""
    rest, upward, _ = ball(np.random.default_rng(0), 2_000)
    angles = np.linspace(0, 3, 9)
    c, s, o = np.cos(angles), np.sin(angles), np.zeros(9)
    turns = np.stack([c, -s, o, s, c, o, o, o, o + 1], 1).reshape(-1, 3, 3)
    turned = [np.einsum("tij,nj->tni", turns, array[0]) for array in (rest, upward)]
    tracks = make_tracks(pieces_of([(0, 0, (*turned, np.ones((9, 2_000))))], 9), 500, 4, 0)
    assert tracks.means.shape == (9, 500, 3)
    assert tracks.there.all()
    assert (tracks.sizes == 1).all()
    assert (tracks.homes == 4).all()
    np.testing.assert_allclose(tracks.means, np.einsum("tij,nj->tni", turns, tracks.means[0]), atol=1e-5)
    matrices = rotations.to_matrix(tracks.quats)
    np.testing.assert_allclose(matrices, np.einsum("tij,njk->tnik", turns, matrices[0]), atol=1e-4)
    assert largest_gap(tracks, 4, turned[0][4]) < 1.7  # points drawn by chance would leave gaps of 2 and more


def test_more_tracks_than_points() -> None:
    sampled = lasting(ball(np.random.default_rng(0), 300), 2)
    tracks = make_tracks(pieces_of([(0, 0, sampled)], 2), 900, 0, 0)
    assert len(np.unique(tracks.means[0].round(5), axis=0)) == 900
    assert off_the_ball(tracks, 1) < 0.05


def test_what_grows_from_nothing_goes_along_with_its_size() -> None:
    rest, normals, _ = ball(np.random.default_rng(0), 1_000)
    growth = np.linspace(0, 1, 5)[:, None, None]
    sampled = growth * rest, np.tile(normals, (5, 1, 1)), np.broadcast_to(growth[..., 0], (5, 1_000))
    tracks = make_tracks(pieces_of([(0, 0, sampled)], 5), 400, 4, 0)
    assert (tracks.homes == 4).all()
    assert not tracks.there[0].any()
    assert tracks.there[1:].all()
    np.testing.assert_allclose(tracks.sizes[1:], np.broadcast_to(growth[1:, :, 0], (4, 400)), atol=1e-6)
    assert off_the_ball(tracks, 2, radius=0.15) < 1e-5


def test_what_is_made_anew_where_it_was_stays() -> None:
    """A ball that gets other faces each time: nothing seems to move, and nothing is missing."""
    rng = np.random.default_rng(0)
    tracks = make_tracks(pieces_of([(0, time, ball(rng, 2_000)) for time in range(8)], 8), 500, 0, 0)
    assert 500 <= tracks.means.shape[1] < 700
    always = tracks.there.all(axis=0)
    assert always.sum() > 440
    assert np.linalg.norm(tracks.means[:, always] - tracks.means[0, always], axis=-1).max() < 0.02
    for time in range(8):
        assert off_the_ball(tracks, time) < 0.01
        assert largest_gap(tracks, time, ball(rng, 500)[0][0]) < 1.9
        np.testing.assert_allclose(tracks.normals()[time, always], tracks.means[time, always] / 0.3, atol=0.25)


def test_what_is_made_anew_elsewhere_is_followed_as_well_as_can_be() -> None:
    """A ball that travels by half its radius each time, with other faces: most of it travels along."""
    rng = np.random.default_rng(0)
    centres = [(0.15 * time - 0.3, 0, 0) for time in range(5)]
    made_anew = [(0, time, ball(rng, 2_000, centre)) for time, centre in enumerate(centres)]
    tracks = make_tracks(pieces_of(made_anew, 5), 500, 0, 0)
    for time, centre in enumerate(centres):
        assert off_the_ball(tracks, time, centre) < 0.01
        assert largest_gap(tracks, time, ball(rng, 500, centre)[0][0]) < 2
    both = tracks.there[0] & tracks.there[1]
    assert both.sum() > 0.8 * tracks.there[0].sum()
    way = tracks.means[1, both] - tracks.means[0, both]
    assert np.linalg.norm(way - [0.15, 0, 0], axis=1).mean() < 0.08
    assert tracks.means.shape[1] < 3 * 500


def test_what_is_cut_away_ends_and_what_it_lays_bare_begins() -> None:
    """From the middle on a flat roof stands where the upper part of the ball was."""
    rng = np.random.default_rng(0)
    whole, normals, sizes = ball(rng, 2_000)
    below = whole[0, :, 2] < 0.1
    spots = rng.uniform(-0.28, 0.28, (700, 2))
    spots = spots[np.linalg.norm(spots, axis=1) < 0.28]
    roof = np.concatenate([spots, np.full((len(spots), 1), 0.1)], axis=1)[None]
    points = np.concatenate([whole[:, below], roof], axis=1)
    upward = np.concatenate([normals[:, below], np.broadcast_to([0.0, 0.0, 1.0], roof.shape)], axis=1)
    cut = points, upward, np.ones(points.shape[:2])
    parts = [(0, 0, lasting((whole, normals, sizes), 2)), (0, 2, lasting(cut, 2))]
    tracks = make_tracks(pieces_of(parts, 4), 500, 0, 0)
    above = (tracks.means[0, :, 2] > 0.14) & tracks.there[0]
    assert above.any()
    assert not tracks.there[2:, above].any()
    begun = tracks.there[2] & ~tracks.there[1]
    assert (np.abs(tracks.means[2, begun, 2] - 0.1) < 0.02).mean() > 0.8
    assert largest_gap(tracks, 2, roof[0]) < 2
    gone_on = tracks.there.all(axis=0)
    np.testing.assert_allclose(tracks.means[3, gone_on], tracks.means[0, gone_on], atol=0.03)


def test_parts_that_come_and_go_are_there_when_they_are() -> None:
    rng = np.random.default_rng(0)
    one, other = (lasting(ball(rng, 600, (x, 0, 0), 0.1), 2) for x in (-0.2, 0.2))
    tracks = make_tracks(pieces_of([(0, 0, one), (1, 1, other)], 4), 600, 1, 0)
    is_left = tracks.means[0, :, 0] < 0
    assert tracks.there[:, is_left].all(axis=1).tolist() == [True, True, False, False]
    assert tracks.there[:, ~is_left].all(axis=1).tolist() == [False, True, True, False]
    assert not tracks.there[3].any()
    np.testing.assert_array_equal(tracks.means[3, is_left], tracks.means[1, is_left])  # held for what is between frames


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_points_alone(count) -> None:
    sampled = lasting(ball(np.random.default_rng(0), count), 3)
    tracks = make_tracks(pieces_of([(0, 0, sampled)], 3), 10, 0, 0)
    assert np.isfinite(tracks.means).all()
    np.testing.assert_allclose(np.linalg.norm(tracks.quats, axis=-1), 1, atol=1e-5)


def test_of_many_small_pieces_only_some_get_a_track() -> None:
    """There may be more of them than tracks."""
    rng = np.random.default_rng(0)
    grains = [(part, 0, ball(rng, 2, tuple(rng.uniform(-0.5, 0.5, 3)), 0.01)) for part in range(400)]
    tracks = make_tracks(pieces_of(grains, 2), 50, 0, 0)
    assert 25 <= tracks.there[0].sum() <= 150
    assert not tracks.there[1].any()
