# SPDX-License-Identifier: GPL-3.0-or-later
from types import SimpleNamespace

import numpy as np
import pytest

from backend.splatting import control_points
from backend.splatting.control_points import farthest_points, geodesic_distances, make_control_points


def tied(points: np.ndarray, count: int) -> SimpleNamespace:
    """Control points as arrays."""
    return SimpleNamespace(
        **{name: np.asarray(value) for name, value in vars(make_control_points(points, count)).items()}
    )


def horseshoe(legs_apart: float = 0.1, step: float = 0.01) -> np.ndarray:
    """Two parallel legs joined at the top."""
    down = np.arange(0, 1, step)
    left = np.stack([np.zeros_like(down), np.zeros_like(down), -down], axis=1)
    across = np.arange(step, legs_apart - 1e-9, step)
    top = np.stack([across, np.zeros_like(across), np.zeros_like(across)], axis=1)
    return np.concatenate([left, top, left + np.array([legs_apart, 0, 0])]).astype(np.float32)


def test_geodesic_distance_goes_along_the_surface() -> None:
    points = horseshoe()
    foot_left = int(points[:100, 2].argmin())
    foot_right = len(points) - 1
    distance = geodesic_distances(points, np.array([foot_left]))[0]
    assert distance[foot_left] == 0
    assert np.linalg.norm(points[foot_left] - points[foot_right]) < 0.11
    np.testing.assert_allclose(distance[foot_right], 2 * 0.99 + 0.1, rtol=0.02)


def test_a_leg_does_not_follow_the_other_leg() -> None:
    points = horseshoe()
    control = tied(points, 20)
    low_left = np.flatnonzero((points[:, 0] == 0) & (points[:, 2] < -0.5))
    followed = control.points[control.index[low_left]]
    strong = control.weights[low_left] > 1e-3
    assert (followed[..., 0][strong] < 0.01).all()


def test_weights_are_a_mean_and_the_nearest_counts_most() -> None:
    control = tied(np.random.default_rng(0).random((200, 3)).astype(np.float32), 16)
    np.testing.assert_allclose(control.weights.sum(axis=1), 1, atol=1e-6)
    assert (control.weights > 0).all()
    assert (np.diff(control.weights, axis=1) <= 1e-7).all()
    assert control.index.dtype == np.int32
    assert control.index.max() < 16
    assert len(control.edges) == 16 * 8
    assert (control.edges[:, 0] != control.edges[:, 1]).all()


def test_loose_parts_and_doubled_points_are_tied_too() -> None:
    rng = np.random.default_rng(0)
    part = rng.random((40, 3)).astype(np.float32) * 0.1
    points = np.concatenate([part, part[:10], part + 5])
    control = tied(points, 12)
    assert np.isfinite(control.weights).all()
    assert np.isfinite(control.edge_weights).all()
    follows_far = np.linalg.norm(control.points[control.index[:, 0]] - points, axis=1)
    assert follows_far.max() < 1


def test_few_gaussians_are_their_own_control_points() -> None:
    control = tied(np.random.default_rng(0).random((6, 3)).astype(np.float32), 128)
    assert len(control.points) == 6


def test_farthest_points_are_spread_and_differ() -> None:
    points = np.random.default_rng(0).random((500, 2))
    points = np.concatenate([points, np.zeros((500, 1))], axis=1).astype(np.float32)
    chosen = farthest_points(points, 25)
    assert len(set(chosen.tolist())) == 25
    between = np.linalg.norm(points[chosen][:, None] - points[chosen][None], axis=-1) + np.eye(25)
    by_chance = np.linalg.norm(points[:25][:, None] - points[:25][None], axis=-1) + np.eye(25)
    assert between.min() > 0.1 > by_chance.min()


def test_more_gaussians_than_the_graph_holds_are_tied_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).permutation(horseshoe(step=0.0025))
    exact = tied(points, 20)
    monkeypatch.setattr(control_points, "GRAPH_POINTS", 250)
    monkeypatch.setattr(control_points, "CHUNK", 300)
    thinned = tied(points, 20)
    assert thinned.index.shape == exact.index.shape == (len(points), 4)
    for control in (exact, thinned):  # each follows points beside it, on its own leg
        followed = (control.weights[..., None] * control.points[control.index]).sum(axis=1)
        assert np.linalg.norm(followed - points, axis=1).max() < 0.12
        low = points[:, 2] < -0.5
        assert np.abs(followed - points)[low, 0].max() < 0.02
