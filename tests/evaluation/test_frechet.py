# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
import torch

from backend.evaluation.frechet import frechet_distance, fvd_handcrafted, handcrafted_features


def test_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((400, 3))
    a = (a - a.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T  # mean 0, covariance 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, a + np.array([3, 4, 0])) == pytest.approx(25)
    assert frechet_distance(a, 2 * a) == pytest.approx(3)  # trace(1 + 4 - 2 * 2) in three dimensions
    skewed = a @ np.array([[1, 2, 0], [0, 1, 0], [0, 0, 1]])
    assert frechet_distance(a, skewed) == pytest.approx(frechet_distance(skewed, a))


def test_distance_needs_two() -> None:
    with pytest.raises(ValueError, match="two videos"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


def moving_dots(count: int, speed: float, seed: int) -> torch.Tensor:  # [N, T, H, W, 3]
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:32, :32]
    videos = np.ones((count, 12, 32, 32, 3), np.float32)
    for video in videos:
        x, y, angle = *rng.uniform(10, 22, 2), rng.uniform(0, 2 * np.pi)
        for t, frame in enumerate(video):
            away = np.hypot(xs - x - speed * t * np.cos(angle), ys - y - speed * t * np.sin(angle))
            frame[:] = (away / 6).clip(0, 1)[..., None]
    return torch.from_numpy(videos)


def test_handcrafted_distance_is_zero_for_the_same_videos_and_grows_with_corruption() -> None:
    videos = moving_dots(12, 0.5, seed=0)
    noise = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    distances = [fvd_handcrafted((videos + level * noise).clamp(0, 1), videos) for level in (0, 0.02, 0.1, 0.3)]
    assert distances[0] == pytest.approx(0, abs=1e-4)
    assert distances == sorted(distances)
    assert distances[1] > 1


def test_handcrafted_distance_sees_motion_and_not_which_videos_they_are() -> None:
    truth = moving_dots(24, 0.8, seed=0)
    others = fvd_handcrafted(moving_dots(24, 0.8, seed=1), truth)
    still = fvd_handcrafted(truth[:, :1].expand_as(truth), truth)
    assert still > 2 * others


def test_features_have_one_row_per_window() -> None:
    features = handcrafted_features(torch.rand(3, 24, 16, 16, 3))
    assert features.shape == (3 * 5, 76)
    assert handcrafted_features(torch.rand(2, 4, 16, 16, 3)).shape == (2, 76)
