# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures on grey and white backgrounds, cut out again."""

import numpy as np
import pytest

from backend.pipelines.matte import cut_out
from tests.pipelines.tiny import ball_orbit


def on(background: float, pictures: np.ndarray) -> np.ndarray:
    values = pictures / 255
    return values[..., :3] * values[..., 3:] + background * (1 - values[..., 3:])


def smooth_balls() -> np.ndarray:
    """Balls with soft rims [4, 64, 64, 4] uint8."""
    large = ball_orbit(256)[0][::6].astype(np.float64)
    premultiplied = np.concatenate([large[..., :3] * large[..., 3:] / 255, large[..., 3:]], -1)
    small = premultiplied.reshape(4, 64, 4, 64, 4, 4).mean((2, 4))
    color = small[..., :3] / np.maximum(small[..., 3:] / 255, 1e-3)
    return np.concatenate([color, small[..., 3:]], -1).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("background", [128 / 255, 1.0, 0.93])
def test_subjects_come_off_plain_backgrounds(background: float) -> None:
    truth = smooth_balls()
    noise = np.random.default_rng(0).normal(scale=0.008, size=(4, 64, 64, 3))
    cut, unplain = cut_out((on(background, truth) + noise).clip(0, 1))
    assert unplain == 0
    assert cut.dtype == np.uint8
    assert np.abs(cut[..., 3].astype(int) - truth[..., 3]).mean() < 3
    inside = truth[..., 3] > 250
    assert (cut[inside][:, 3] > 230).mean() > 0.99  # noise says up to 5% less
    assert np.abs(cut[inside][:, :3].astype(int) - truth[inside][:, :3]).mean() < 4
    far = truth[..., 3] == 0
    assert (cut[far][:, 3] == 0).mean() > 0.97
    # On another background nothing of the old one shows.
    shown = on(0.0, cut)[inside]
    assert np.abs(shown - on(0.0, truth)[inside]).mean() < 0.02


def test_parts_of_the_backgrounds_color_stay() -> None:
    """A white belly in front of white."""
    truth = smooth_balls()
    truth[:, 28:36, 28:36, :3] = 255
    cut, _ = cut_out(on(1.0, truth))
    assert (cut[:, 28:36, 28:36, 3] == 255).all()
    assert (cut[:, 28:36, 28:36, :3] == 255).all()


def test_specks_go_and_an_empty_picture_is_empty() -> None:
    picture = np.full((2, 64, 64, 3), 0.5)
    picture[0, 20, 20] = 0.0
    cut, unplain = cut_out(picture)
    assert not cut.any()
    assert unplain == 0


def test_a_background_that_is_not_plain_is_told() -> None:
    picture = np.random.default_rng(1).uniform(size=(3, 64, 64, 3))
    picture[0] = 1.0
    assert cut_out(picture)[1] == pytest.approx(2 / 3)
