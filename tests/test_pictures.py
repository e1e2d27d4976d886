# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures on white, side by side, and how alike they are."""

import numpy as np
import pytest
import torch

from backend.pictures import dssim, on_white, over_white, ssim, tiled


def test_rows_and_columns_lie_where_they_belong() -> None:
    pictures = torch.zeros(2, 3, 4, 5, 4)  # premultiplied
    pictures[1, 2] = 1.0
    pictures[1, 2, 0, 0, 1:3] = 0.0  # one red pixel
    pictures[0, 1, ..., 3] = 1.0
    shown = tiled(over_white(pictures))
    assert (shown.shape, shown.dtype) == ((8, 15, 3), np.uint8)
    assert (shown[:4, 5:10] == 0).all()
    assert shown[4, 10].tolist() == [255, 0, 0]
    shown[:4, 5:10] = shown[4, 10] = 255
    assert (shown == 255).all()


def test_on_white_nothing_is_cut_off_and_channels_may_lie_anywhere() -> None:
    pictures = torch.tensor([[0.6, 0.2, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    torch.testing.assert_close(on_white(pictures), torch.tensor([[1.1, 0.7, 0.5], [1.0, 1.0, 1.0]]))
    assert torch.equal(over_white(pictures.T, 0).T, over_white(pictures))
    assert over_white(pictures).max() == 1
    on_white(pictures).sum().backward()
    assert (pictures.grad == torch.tensor([1.0, 1.0, 1.0, -3.0])).all()


def test_ssim_is_1_for_the_same_picture_and_falls_with_noise() -> None:
    torch.manual_seed(0)
    picture = torch.rand(1, 32, 32, 3)
    assert ssim(picture, picture) == pytest.approx(1, abs=1e-5)
    little, much = (ssim(picture, (picture + level * torch.randn_like(picture)).clamp(0, 1)) for level in (0.05, 0.4))
    assert 1 > little > much
    assert ssim(torch.full_like(picture, 0.5), picture) < 0.1


def test_ssim_of_constant_pictures_by_its_formula() -> None:
    a, b = torch.full((1, 16, 16, 1), 0.4), torch.full((1, 16, 16, 1), 0.6)
    assert ssim(a, b) == pytest.approx((2 * 0.24 + 1e-4) / (0.16 + 0.36 + 1e-4), rel=1e-3)


def test_dssim_is_the_complement_of_ssim() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 24, 24, 3)
    assert dssim(a, a) == pytest.approx(0, abs=1e-6)
    assert dssim(a, b) == pytest.approx((1 - float(ssim(a, b))) / 2)
