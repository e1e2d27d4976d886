# SPDX-License-Identifier: GPL-3.0-or-later
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.models.kinesplat_small import KinesplatSmall, load
from backend.pipelines.orbit_pictures import as_pictures
from backend.pipelines.still_subject import generate_static
from backend.progress import Run, UserError
from backend.splatting.observations import read_orbit_folder
from blender_addon.contract.orbit import Orbit, orbit_cameras
from tests.pipelines.tiny import RESOLUTION, ball_orbit, write_tiny_model

FOX = Path(__file__).parent.parent / "data" / "fox_orbit"


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
    with pytest.raises(UserError, match="names no subject") as caught:
        generate_static(cameras, "ein Raumschiff", model=known)
    assert "English" in caught.value.hint


def test_a_text_that_names_nothing_known_is_told_what_is_built_alike() -> None:
    with pytest.raises(UserError, match="names no subject") as caught:
        generate_static(orbit_cameras(Orbit(frames=1), 32, 32, moving=True), "a cat walks", model=load())
    assert "red fox" in caught.value.hint
    assert "avocado" not in caught.value.hint


def test_without_a_static_network_an_image_is_made_round(model) -> None:
    cameras = orbit_cameras(Orbit(frames=4, closed=False), 64, 64, moving=True)
    line = np.arange(60) - 29.5
    image = np.zeros((60, 60, 4), np.uint8)
    image[np.hypot(*np.meshgrid(line, line)) < 29] = (20, 200, 40, 255)
    image[28:32, 10:50, :3] = 0  # finer than a pixel of the network
    still = replace(model, static=None)
    frames = generate_static(cameras, "", image, model=still)
    solid = frames[..., 3].astype(float) / 255
    assert solid[0].sum() == pytest.approx(np.pi / 4 * (0.7 * 64) ** 2, rel=0.05)  # framed as orbits are
    assert ((solid[0] > 0.1) & (solid[0] < 0.9)).sum() > 20  # a smooth outline
    assert 0.5 * solid[0].sum() < solid[1].sum() < solid[0].sum()  # round from the side too, and a little flatter
    assert (frames[[0, 2], 16, 32, :3] == (20, 200, 40)).all()  # in its own light, and so behind
    assert frames[0, 32, 32, :3].max() < 100
    faint = image.copy()
    faint[..., 3] //= 4
    np.testing.assert_allclose(generate_static(cameras, "", faint, model=still)[..., 3], frames[..., 3], atol=10)


def test_a_thin_line_is_whole_from_all_sides(model) -> None:
    image = np.zeros((400, 400, 4), np.uint8)
    for row in range(400):
        image[row, 150 + row // 4 : 155 + row // 4] = (20, 40, 200, 255)
    cameras = orbit_cameras(Orbit(frames=8, closed=False), 64, 64, moving=True)
    frames = generate_static(cameras, "", image, model=replace(model, static=None))
    assert (frames[:, 13:51, :, 3].max(axis=2) > 100).all()  # 70% of the height; a little less behind


def test_a_static_orbit_of_nothing_is_refused(model) -> None:
    empty = replace(model, static=lambda latents, *_: torch.full_like(latents, -1.0))
    cameras = orbit_cameras(Orbit(), RESOLUTION, RESOLUTION, moving=True)
    with pytest.raises(UserError) as caught:
        generate_static(cameras, "ball", steps=4, model=empty)
    assert caught.value.code == "nothing_made"


def test_a_picture_gets_the_shape_of_what_its_prompt_names() -> None:
    """The fox of the tests, which is not among the known ones, from sides that its picture does not show."""
    side = 0  # of 24 cameras, a closed orbit: from the front
    views = read_orbit_folder(FOX / "static")
    truth = views.images[..., 3].numpy() > 0.5
    picture = as_pictures(views.images[side].permute(2, 0, 1)[None, None])[0]
    told: list[str] = []
    run = Run(Path(), lambda progress: None)
    run.note = told.append

    def overlap(prompt: str) -> float:
        frames = generate_static(views.cameras, prompt, picture, model=load(), run=run)[..., 3] > 127
        seen = [(frames[k], truth[k + side]) for k in range(2, 24 - side)]
        return float(np.mean([(one & two).sum() / (one | two).sum() for one, two in seen]))

    inflated = overlap("")
    assert told == []
    assert overlap("a fox") > inflated + 0.2
    assert len(told) == 1
    assert "fox" in told[0]
    assert overlap("a fish") == inflated
    assert "inflated" in told[1]
