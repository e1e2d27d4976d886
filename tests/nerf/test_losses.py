# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses by hand, and against the project's own metrics."""

import pytest
import torch

from backend.nerf import losses
from backend.nerf.rendering import Rendered
from backend.pictures import dssim


def rendered(opacity: list[float], away: list[float] | None = None) -> Rendered:
    count = len(opacity)
    extra = (torch.zeros(count, 3), torch.tensor(away)) if away else ()
    return Rendered(torch.zeros(count, 3), torch.tensor(opacity), torch.zeros(count), *extra)


def test_the_schedule_is_4diffusion_s_and_scales() -> None:
    assert losses.weights_at(0) == losses.Weights(10, 100, 0)
    assert losses.weights_at(2_500).orient == pytest.approx(505)
    assert losses.weights_at(5_000).orient == losses.weights_at(30_000).orient == pytest.approx(1_000)
    assert (losses.weights_at(9_999).opaque, losses.weights_at(10_000).opaque) == (0, 100)
    for iteration in (0, 2_000, 10_000, 35_000):
        scaled = losses.weights_at(iteration // 10, 3_500)
        assert vars(scaled) == pytest.approx(vars(losses.weights_at(iteration)))


def test_orientation_counts_rays_that_hit_something() -> None:
    assert float(losses.orientation(rendered([0.5, 1.0, 0.0], [0.2, 0.4, 0.0]))) == pytest.approx(0.3)
    assert float(losses.orientation(rendered([0.0], [0.0]))) == 0
    with pytest.raises(ValueError, match="with_normals"):
        losses.orientation(rendered([1.0]))


def test_sparsity_and_opaqueness() -> None:
    opacity = torch.tensor([0.0, 1.0, 0.5])
    assert float(losses.sparsity(opacity)) == pytest.approx((0.1 + 1.01**0.5 + 0.26**0.5) / 3)
    certain = -(0.001 * torch.tensor(0.001).log() + 0.999 * torch.tensor(0.999).log())
    assert float(losses.opaqueness(opacity)) == pytest.approx(float((2 * certain + torch.tensor(2.0).log()) / 3))
    lower = torch.tensor([0.3, 0.8], requires_grad=True)
    losses.opaqueness(lower).backward()
    assert lower.grad[0] > 0 > lower.grad[1]  # towards 0 and towards 1


def test_the_anchor_is_lpips_and_dssim_or_says_what_it_is() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 16, 20, 3, requires_grad=True), torch.rand(2, 16, 20, 3)
    assert float(losses.anchor(b, b, None)) == pytest.approx(0, abs=1e-4)
    known = losses.anchor(a, b, lambda x, y: (x - y).square().mean(dim=(1, 2, 3)))
    expected = 200 * (a - b).square().mean() + 100 * dssim(a, b).mean()
    torch.testing.assert_close(known, expected)
    torch.testing.assert_close(losses.anchor(a, b, None), 200 * (a - b).abs().mean() + 100 * dssim(a, b).mean())
    known.backward()
    assert torch.isfinite(a.grad).all()
    assert "L1" in losses.WITHOUT_LPIPS


def test_frames_are_put_over_the_background_of_the_renders() -> None:
    frames = torch.tensor([1.0, 0.5, 0.0, 0.25]).expand(1, 2, 2, 4)
    background = torch.tensor([0.2, 0.4, 1.0]).expand(1, 2, 2, 3)
    torch.testing.assert_close(losses.over_background(frames, background)[0, 0, 0], torch.tensor([0.4, 0.425, 0.75]))
