# SPDX-License-Identifier: GPL-3.0-or-later
"""Which known subjects a prompt means, and what their shapes make of a picture."""

from dataclasses import replace

import numpy as np
import pytest

from backend.models.kinesplat_small import KinesplatSmall, load
from backend.models.text import plain_form
from backend.pipelines.known_poses import PHASES, known_poses, motions_of
from backend.pipelines.known_shapes import BUILDS, PEOPLE, alike, known_shape
from backend.pipelines.solids import INSIDE, RAYS
from backend.progress import JobCancelled
from blender_addon.contract.orbit import Orbit, orbit_cameras

HALF = np.tan(np.radians(Orbit.fov / 2))


@pytest.fixture(scope="module")
def model() -> KinesplatSmall:
    return load()


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ("a clown fish swims", {"fish"}),
        ("the red fox runs", {"fox"}),  # there are enough of them
        ("a horse runs", {"horse"}),
        ("a small brown horse runs", {"horse"}),
        ("a large robot", {"enemy", "legs", "gun", "flying", "large", "small"}),
        ("a knight attacks with a sword", set()),  # people are inflated
        ("a cat walks", {"fox", "dog", "wolf"}),
        ("A HUSKY!", {"fox", "dog", "wolf"}),
        ("a knight on a horse", set()),
        ("a picture of a horse, and a fish", {"horse"}),
        ("a child waves", set()),
        ("a trout swims", {"fish"}),
        ("an eagle flies", {"bird"}),
        ("a spaceship lands", set()),
        ("", set()),
    ],
)
def test_a_prompt_names_what_is_built_like_its_subject(model, prompt, kinds):
    found = alike(model, prompt)
    assert {model.memory.subjects[one].split()[-1] for one in found} == kinds


def test_words_are_in_the_form_in_which_prompts_are_read():
    assert [word for word in PEOPLE.union(*BUILDS) if plain_form(word) != word] == []


def picture_of(model: KinesplatSmall, subject: str, azimuth: float, wide: float = 1.0) -> np.ndarray:
    """Coverage [RAYS, RAYS] of a known subject from a side, stretched."""
    number = model.memory.subjects.index(subject)
    cameras = orbit_cameras(Orbit(frames=1, azimuth_start=azimuth), RAYS, RAYS, moving=False)
    alpha = model.memory.mesh(number).pictures(cameras)[0, ..., 3]
    at = ((np.arange(RAYS) + 0.5 - RAYS / 2) / wide + RAYS / 2).clip(0, RAYS - 1).astype(int)
    return alpha[:, at]


@pytest.mark.parametrize(("azimuth", "wide"), [(0, 1.0), (270, 0.85)])
def test_a_known_subject_is_known_again_and_fills_its_outline(model, azimuth, wide):
    alpha = picture_of(model, "cow", azimuth, wide)
    shape = known_shape(alpha[None], model, "a cow walks", HALF)
    assert shape.subject == "cow"
    solid, mask = shape.solid(0) > INSIDE, alpha > 0.5
    seen = solid.any(-1)
    assert seen[mask].mean() > 0.98
    assert (seen & ~mask).sum() < 0.3 * mask.sum()  # pixels at its edge
    deep = np.ptp(np.flatnonzero(solid.any((0, 1))))
    assert deep > 60 if azimuth == 0 else deep < 45  # as long as it is, and as narrow
    if azimuth == 270:  # legs on both sides; inflated they would be in one plane
        lowest = np.flatnonzero(solid.any((1, 2)))[-6]
        assert np.diff(np.flatnonzero(solid[lowest].any(0))).max() > 3


def test_what_is_another_thing_keeps_its_outline(model):
    alpha = np.zeros((RAYS, RAYS), np.float32)
    alpha[30:98, 62:66] = alpha[62:66, 30:98] = 1  # a cross
    assert known_shape(alpha[None], model, "a fish", HALF) is None
    assert known_shape(picture_of(model, "cow", 90)[None], model, "a spaceship", HALF) is None
    assert known_shape(np.zeros_like(alpha)[None], model, "a fish", HALF) is None


def walking(model: KinesplatSmall, subject: str, azimuth: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage [N, RAYS, RAYS] of a known subject that walks, from a side and from a quarter of a turn farther."""
    number = model.memory.subjects.index(subject)
    walk = next(clip for clip in motions_of(model)[number] if model.motions.actions[clip] == "walk")
    poses = known_poses(model, number, {walk})
    cameras = orbit_cameras(Orbit(frames=4, azimuth_start=azimuth, closed=False), RAYS, RAYS, moving=False).picked(
        [0, 1]
    )
    seen = [
        replace(poses.mesh, positions=0.8 * one).pictures(cameras)[..., 3] for one in poses.positions[1 : 1 + count]
    ]
    return np.stack(seen, 1)


def test_one_subject_is_behind_all_pictures_of_a_video(model):
    shown, truth = walking(model, "white horse", 90, 6)
    shown[2] = 0
    shown[2, 40:90, 40:90] = 1  # one that fits nothing: a flash, or another subject
    told = []
    shape = known_shape(shown, model, "a horse walks", HALF, told.append)
    assert "horse" in shape.subject
    assert told[-1] == 1
    assert told == sorted(told)
    assert sum(0 < share < 0.3 for share in told) > PHASES  # while it is sought, too
    for picture in range(6):
        solid = shape.solid(picture) > INSIDE
        seen, mask = solid.any(-1), shown[picture] > 0.5
        assert seen[mask].mean() > 0.97
        if picture != 2:
            deep = solid.any(1)  # [rows, depths]: as it is seen from the quarter of a turn farther, nearly
            wide = np.ptp(np.flatnonzero(deep.any(0))) / 96 * 2 * 0.72
            true = np.ptp(np.flatnonzero((truth[picture] > 0.5).any(0))) / RAYS * 2 * HALF * Orbit.distance
            assert wide == pytest.approx(true, rel=0.4)


def test_a_subject_may_leave_the_picture_for_a_while(model):
    shown, _ = walking(model, "white horse", 90, 6)
    shown[[0, 3]] = 0
    shown[3, 60, 0] = 1  # its tail
    shape = known_shape(shown, model, "a horse walks", HALF)
    assert "horse" in shape.subject
    sizes = [(shape.solid(picture) > INSIDE).sum() for picture in range(6)]
    assert sizes[0] == 0
    assert sizes[3] < 500 < 10_000 < min(sizes[1], sizes[2], sizes[4], sizes[5])


def test_its_legs_are_where_they_are_in_the_pictures(model):
    """The pose is found that comes nearest, without leaps: legs that are apart have the hind one behind."""
    shown, _ = walking(model, "white horse", 90, 8)
    walks = known_shape(shown, model, "a horse walks", HALF)
    apart = [np.abs(one - two).mean() for one, two in zip(walks.points, walks.points[1:], strict=False)]
    assert max(apart) < 0.03
    low = walks.points[0][:, 2] < np.quantile(walks.points[0][:, 2], 0.1)
    assert np.ptp(np.stack(walks.points)[:, low, 0], axis=0).mean() > 0.12  # bent from where it stands: 0.07


def test_it_can_be_cancelled(model):
    shown, _ = walking(model, "white horse", 90, 2)

    def stop(share: float) -> None:
        raise JobCancelled

    with pytest.raises(JobCancelled):
        known_shape(shown, model, "a horse walks", HALF, stop)
