# SPDX-License-Identifier: GPL-3.0-or-later
"""Which known subjects a prompt means, and what their shapes make of a picture."""

import numpy as np
import pytest

from backend.models.kinesplat_small import KinesplatSmall, load
from backend.pipelines.known_shapes import alike, known_shape
from backend.pipelines.solids import INSIDE, RAYS
from blender_addon.contract.orbit import Orbit, orbit_cameras

HALF = np.tan(np.radians(Orbit.fov / 2))


@pytest.fixture(scope="module")
def model() -> KinesplatSmall:
    return load()


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ("a clown fish swims", {"fish"}),
        ("the red fox runs", {"fox"}),
        ("a knight attacks with a sword", {"knight"}),
        ("a cat walks", {"fox", "dog", "wolf"}),
        ("a husky", {"fox", "dog", "wolf"}),
        ("an eagle flies", {"bird"}),
        ("a spaceship lands", set()),
        ("", set()),
    ],
)
def test_a_prompt_names_what_is_built_like_its_subject(model, prompt, kinds):
    found = alike(model.memory, model.motions.actions, prompt)
    assert {model.memory.subjects[one].split()[-1] for one in found} == kinds


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
