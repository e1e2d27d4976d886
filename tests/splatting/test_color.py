# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
import torch

from backend.splatting.color import decoded, encoded, linear_to_srgb, srgb_to_linear


def test_the_curve_is_that_of_iec_61966_2_1() -> None:
    srgb = torch.tensor([0.0, 0.04045, 0.5, 1.0])
    linear = torch.tensor([0.0, 0.0031308, 0.2140411, 1.0])
    torch.testing.assert_close(srgb_to_linear(srgb), linear, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(linear_to_srgb(linear), srgb, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("space", ["srgb", "linear"])
def test_pictures_come_back_as_they_were(space: str) -> None:
    pictures = torch.rand(2, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    pictures[0, 0] = 0
    pictures[..., :3] *= pictures[..., 3:]
    torch.testing.assert_close(encoded(decoded(pictures, space), space), pictures, atol=1e-5, rtol=1e-4)


def test_it_is_the_color_that_is_converted_not_color_times_alpha() -> None:
    half = torch.tensor([[0.25, 0.25, 0.25, 0.5]])  # mid grey, half covered
    assert float(decoded(half, "linear")[0, 0]) == pytest.approx(0.5 * 0.2140411, abs=1e-6)
    assert float(decoded(half, "linear")[0, 3]) == 0.5
