# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole way, and the crop: one for all frames, the subject as large as the networks expect it."""

import json

import numpy as np
import pytest

from backend.progress import JobCancelled, UserError
from backend.video.framing import FOURDIFFUSION, Crop, Framing, crop_of, resampled
from backend.video.intake import STAGE_SHARES, take_in
from backend.video.reading import Span
from tests.video.films import SQUARE, run_in, write_video

FAR = Framing(2.0, 39.6)  # as the cameras of Diffusion4D


def masks_of(left, top=20, side=30, count=5, size=(80, 120)) -> np.ndarray:
    masks = np.zeros((count, *size), bool)
    for t in range(count):
        masks[t, top : top + side, left(t) : left(t) + side] = True
    return masks


def test_the_fill_is_that_of_the_camera():
    assert FAR.fill == pytest.approx(0.694, abs=1e-3)
    assert FOURDIFFUSION.fill == 0.9  # its camera at 1.1 would crop
    assert Framing(4.0, 39.6).fill == pytest.approx(FAR.fill / 2)


def test_one_crop_round_the_whole_path():
    crop, notes = crop_of(masks_of(lambda t: 20 + 5 * t), 240, 160, Framing(2.0, 39.6, 64))
    assert crop.side == pytest.approx(100 / FAR.fill)  # 50 wide at half the size
    assert (crop.left + crop.side / 2, crop.top + crop.side / 2) == pytest.approx((90, 70))
    assert notes == []


def test_what_is_said_of_small_and_travelling_subjects():
    _, notes = crop_of(masks_of(lambda t: 20 * t), 120, 80, FOURDIFFUSION)
    assert any("3.7 times" in note for note in notes)
    assert any("110 pixels" in note for note in notes)


@pytest.mark.parametrize("crop", [Crop(10.5, 4.25, 20.0), Crop(-8.0, -8.0, 60.0), Crop(30.0, 20.0, 40.0)])
def test_resampling_keeps_place_color_and_mass(crop):
    picture = np.zeros((40, 50, 4), np.float32)
    picture[12:20, 16:26] = (0.8, 0.4, 0.0, 1.0)
    picture[12:20, 26:30] = (0.4, 0.2, 0.0, 0.5)
    out = resampled(picture, crop, 80)
    assert out.shape == (80, 80, 4)
    assert (out[..., :3] <= out[..., 3:] + 1e-6).all()
    solid = out[..., 3] > 0.3
    assert out[solid][:, :3] / out[solid][:, 3:] == pytest.approx(np.tile([0.8, 0.4, 0.0], (solid.sum(), 1)), abs=1e-3)
    y, x = np.mgrid[:40, :50] + 0.5
    inside = (x > crop.left) & (x < crop.left + crop.side) & (y > crop.top) & (y < crop.top + crop.side)
    if crop.left < 16:
        assert out[..., 3].sum() * (crop.side / 80) ** 2 == pytest.approx((picture[..., 3] * inside).sum(), rel=0.02)
        center = (out[..., 3].sum(axis=0) @ (np.arange(80) + 0.5)) / out[..., 3].sum() * crop.side / 80 + crop.left
        expected = (picture[..., 3] * x * inside).sum() / (picture[..., 3] * inside).sum()
        assert center == pytest.approx(expected, abs=0.2)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", count=30, size=(192, 128))


def test_from_a_file_to_frames(film, tmp_path):
    told: list[str] = []
    run = run_in(tmp_path, on_progress=lambda progress: told.append(progress.stage))
    intake = take_in(film, run, count=8, span=Span(0.25, 1.0), framing=Framing(2.0, 39.6, 64))
    assert intake.frames.shape == (8, 64, 64, 4)
    assert intake.frames.dtype == np.float32
    assert intake.times == pytest.approx(np.array([6, 9, 11, 14, 16, 19, 21, 24]) / 24, abs=0.043)
    assert intake.fps == pytest.approx(7 / 0.75)
    assert list(dict.fromkeys(told)) == list(STAGE_SHARES)
    assert run.notes == intake.done["notes"]
    json.dumps(intake.done)
    alpha = intake.frames[..., 3]
    ever = alpha.max(axis=0) > 0.5
    assert (np.flatnonzero(ever.any(0))[[0, -1]]) == pytest.approx([32 - 22, 32 + 21], abs=1.5)  # 0.694 of 64
    centers = [np.average(np.arange(64), weights=frame.sum(axis=0)) for frame in alpha]
    assert np.diff(centers) == pytest.approx(
        (intake.times[1:] - intake.times[:-1]) * 48 / intake.crop.side * 64, abs=0.35
    )
    middle = intake.frames[3, 32, round(centers[3])]
    assert middle == pytest.approx([*(np.array(SQUARE) / 255), 1.0], abs=0.03)


def test_transparent_films_need_no_guessing(tmp_path, decoded_here):
    film = write_video(tmp_path / "film.webm", "libvpx-vp9", "yuva420p", alpha=True)
    intake = take_in(film, run_in(tmp_path), framing=Framing(2.0, 39.6, 64))
    assert intake.done["method"] == "alpha"
    assert intake.done["file"]["codec"] == "vp9"


@pytest.mark.parametrize("stage", STAGE_SHARES)
def test_cancelled_in_every_stage(stage, film, tmp_path):
    seen: list[str] = []
    run = run_in(tmp_path, on_progress=lambda progress: seen.append(progress.stage), is_cancelled=lambda: stage in seen)
    with pytest.raises(JobCancelled):
        take_in(film, run)
    assert seen[-1] == stage


def test_a_film_without_a_subject(tmp_path, decoded_here):
    film = write_video(
        tmp_path / "film.mp4", frame=lambda index, size, alpha: np.full((size[1], size[0], 4), 255, np.uint8)
    )
    with pytest.raises(UserError, match="No subject"):
        take_in(film, run_in(tmp_path))
