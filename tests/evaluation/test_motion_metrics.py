# SPDX-License-Identifier: GPL-3.0-or-later
import math

import pytest
import torch

from backend.evaluation.motion_metrics import (
    clip_psnr,
    energy_error,
    motion_cosine,
    motion_error,
    sharpness,
    stray,
)

FRAMES, SIZE = 8, 32


def square(x: int, y: int = 12, colour: float = 0.0, side: int = 8) -> torch.Tensor:  # [H, W, 4] premultiplied
    image = torch.zeros(SIZE, SIZE, 4)
    image[y : y + side, x : x + side] = torch.tensor([colour, colour, colour, 1.0])
    return image


@pytest.fixture(scope="module")
def static() -> torch.Tensor:
    return square(12).repeat(FRAMES, 1, 1, 1)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return torch.stack([square(12 + min(t, 4)) for t in range(FRAMES)])


def test_clip_psnr_pools_the_error_and_leaves_out_the_first_frame(static: torch.Tensor) -> None:
    other = static.clone()
    other[0] = 1.0  # white: counts for nothing
    other[1] *= 0.5  # half transparent in one of seven frames: 0.5 off in 64 of 1024 pixels
    other[1, ..., 3] = static[1, ..., 3] * 0.5
    assert clip_psnr(other, static) == pytest.approx(-10 * math.log10(0.25 * 64 / 1024 / 7), abs=1e-4)
    assert clip_psnr(static, static) == 100


def test_motion_error_of_the_truth_of_no_motion_and_of_motion_elsewhere(
    static: torch.Tensor, truth: torch.Tensor
) -> None:
    assert motion_error(truth, truth, static) == 0
    # black and white swap in exactly the pixels that move
    assert motion_error(static, truth, static) == pytest.approx(1.0)
    away = torch.stack([square(12 - min(t, 4)) for t in range(FRAMES)])  # as far to the other side: twice the pixels
    assert motion_error(away, truth, static) == pytest.approx(math.sqrt(2))


def test_motion_error_is_the_size_of_the_step_in_brightness(static: torch.Tensor) -> None:
    truth = static.clone()
    truth[1:, ..., :3] = 0.5 * static[1:, ..., 3:]
    assert motion_error(static, truth, static) == pytest.approx(0.5)
    halfway = static.clone()
    halfway[1:, ..., :3] = 0.25 * static[1:, ..., 3:]
    assert motion_error(halfway, truth, static) == pytest.approx(0.25)


def test_motion_cosine_minds_direction_and_not_strength(static: torch.Tensor, truth: torch.Tensor) -> None:
    assert motion_cosine(truth, static, truth, static) == pytest.approx(1, abs=1e-5)
    assert motion_cosine((truth + static) / 2, static, truth, static) == pytest.approx(1, abs=1e-5)
    away = torch.stack([square(12 - min(t, 4)) for t in range(FRAMES)])
    assert motion_cosine(away, static, truth, static) == pytest.approx(0, abs=1e-6)  # other pixels altogether
    assert motion_cosine(static, static, truth, static) == 0
    grey = square(12, colour=0.5).repeat(FRAMES, 1, 1, 1)
    brighter, darker = grey.clone(), grey.clone()
    brighter[1:, ..., :3] *= 1.4
    darker[1:, ..., :3] *= 0.8
    assert motion_cosine(brighter, grey, darker, grey) == pytest.approx(-1, abs=1e-5)


def test_energy_error_forgives_a_shift_in_phase_and_not_a_wrong_place(
    static: torch.Tensor, truth: torch.Tensor
) -> None:
    assert energy_error(truth, static, truth, static) == 0
    assert energy_error(static, static, truth, static) == pytest.approx(1)
    late = torch.cat([truth[:1], truth[:-1]])
    up = torch.stack([square(12, 12 - min(2 * t, 10)) for t in range(FRAMES)])
    assert energy_error(late, static, truth, static) < 0.35
    assert motion_error(late, truth, static) > 0.4
    assert energy_error(up, static, truth, static) > 0.8


def test_sharpness_finds_a_ghost(static: torch.Tensor) -> None:
    truth = torch.stack([square(12), *[square(22)] * (FRAMES - 1)])
    assert sharpness(truth, static, truth, static) == pytest.approx(1)
    ghost = (truth + static) / 2  # half there, half where it was
    assert sharpness(ghost, static, truth, static) < 0.75
    blurred = torch.nn.functional.avg_pool2d(truth.permute(0, 3, 1, 2), 9, 1, 4).permute(0, 2, 3, 1)
    assert sharpness(blurred, static, truth, static) < 0.6
    assert sharpness(static, static, static, static) == 1


def test_stray_is_the_share_of_detached_pieces(static: torch.Tensor) -> None:
    assert stray(static) == 0
    torn = torch.maximum(static, square(24, 24, side=4).repeat(FRAMES, 1, 1, 1))  # 16 pixels beside 64
    assert stray(torn) == pytest.approx(16 / 80)
    touching = torch.maximum(static, square(20, 20, side=4).repeat(FRAMES, 1, 1, 1))  # at the corner
    assert stray(touching) == 0
    assert stray(torch.zeros_like(static)) == 0
