# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest

from backend.data.curation import (
    Limits,
    front_ssims,
    magnitude_of,
    touches_border,
    why_front_is_unfit,
    why_orbit_is_unfit,
)

SIZE = 32


def video(*, first: int = 10, speed: float = 0.0, noise: bool = False) -> np.ndarray:
    """A shaded square that walks to the right; with `noise` every frame is another picture."""
    rng = np.random.default_rng(0)
    frames = np.zeros((24, SIZE, SIZE, 4), np.uint8)
    texture = np.linspace(60, 200, 12).repeat(36).reshape(12, 12, 3)
    for k, frame in enumerate(frames):
        if noise:
            frame[1:-1, 1:-1, :3] = rng.integers(0, 256, (SIZE - 2, SIZE - 2, 3))
            frame[1:-1, 1:-1, 3] = 255
            continue
        left = first + round(speed * k)
        frame[10:22, left : left + 12, :3] = texture[:, : SIZE - left]
        frame[10:22, left : left + 12, 3] = 255
    return frames


def test_what_stands_still_is_static() -> None:
    assert front_ssims(video()) == pytest.approx((1, 1))
    assert why_front_is_unfit(video(), Limits()) == "static"


def test_what_jumps_is_broken() -> None:
    assert min(front_ssims(video(noise=True))) < 0.4
    assert why_front_is_unfit(video(noise=True), Limits()) == "broken or jumps"


def test_what_moves_a_little_is_kept() -> None:
    assert why_front_is_unfit(video(speed=0.2), Limits()) == ""


def test_times_are_those_of_the_paper() -> None:
    """Motion between T/4 and T/2 shows in the second likeness only, what comes later in none."""
    frames = video()
    frames[7:13] = video(first=14)[7:13]
    quarter, half = front_ssims(frames)
    assert quarter == pytest.approx(1)
    assert half < 0.95
    frames = video()
    frames[13:] = video(first=14)[13:]
    assert front_ssims(frames) == pytest.approx((1, 1))


def test_nothing_to_be_seen() -> None:
    assert why_front_is_unfit(np.zeros((24, SIZE, SIZE, 4), np.uint8), Limits()) == "nothing is to be seen"


def test_what_leaves_the_picture_is_dropped() -> None:
    assert not touches_border(video(first=19))
    assert touches_border(video(first=20))
    assert why_orbit_is_unfit(video(speed=0.5), video(), Limits()) == "leaves the picture"


def test_bounds_on_the_motion() -> None:
    moving, static = video(speed=0.2), video()
    magnitude = magnitude_of(moving, static)
    assert magnitude > 1
    assert why_orbit_is_unfit(moving, static, Limits()) == ""
    assert why_orbit_is_unfit(moving, static, Limits(least_magnitude=magnitude + 1)) == "hardly moves"
    assert why_orbit_is_unfit(moving, static, Limits(most_magnitude=magnitude - 1)) == "moves too much"
