# SPDX-License-Identifier: GPL-3.0-or-later
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.models.kinesplat_small import KinesplatSmall, load
from backend.pipelines.still_subject import generate_static
from backend.progress import UserError
from blender_addon.contract.orbit import Orbit, orbit_cameras
from tests.pipelines.tiny import RESOLUTION, ball_orbit, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> KinesplatSmall:
    return load(write_tiny_model(tmp_path_factory.mktemp("weights")))


@pytest.mark.slow
def test_an_image_decides_the_static_orbit(model) -> None:
    cameras = orbit_cameras(Orbit(), RESOLUTION, RESOLUTION, moving=True)
    ball = ball_orbit()[0][0]
    made = [
        generate_static(cameras, "ball", image, steps=4, model=model) for image in (None, ball, ball[..., [2, 1, 0, 3]])
    ]
    assert (made[0] != made[1]).any()
    assert (made[1] != made[2]).any()


def test_without_a_static_network_a_text_calls_up_a_known_subject(model) -> None:
    cameras = orbit_cameras(Orbit(frames=4), 32, 32, moving=True)
    known = replace(model, static=None)
    frames = generate_static(cameras, "a ball", model=known)
    middle = frames[:, 16, 16].astype(int)
    assert (middle[:, 3] > 200).all()
    assert (middle[:, 0] > 3 * middle[:, 1]).all()  # the red ball of the memory, from all sides
    with pytest.raises(UserError, match="names no subject"):
        generate_static(cameras, "a spaceship", model=known)


def test_without_a_static_network_an_image_is_inflated(model) -> None:
    cameras = orbit_cameras(Orbit(frames=4), 32, 32, moving=True)
    image = np.zeros((20, 20, 4), np.uint8)
    image[5:15, 5:15] = (20, 200, 40, 255)
    frames = generate_static(cameras, "", image, model=replace(model, static=None))
    assert (frames[:, 16, 16, 3] > 200).all()
    assert (frames[:, 16, 16, 1] > 100).all()


def test_a_static_orbit_of_nothing_is_refused(model) -> None:
    empty = replace(model, static=lambda latents, *_: torch.full_like(latents, -1.0))
    cameras = orbit_cameras(Orbit(), RESOLUTION, RESOLUTION, moving=True)
    with pytest.raises(UserError) as caught:
        generate_static(cameras, "ball", steps=4, model=empty)
    assert caught.value.code == "nothing_made"
