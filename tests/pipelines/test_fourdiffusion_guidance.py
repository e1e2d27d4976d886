# SPDX-License-Identifier: GPL-3.0-or-later
"""The VAE of score distillation: what is kept for its gradient and in which type changes what it says by a hair."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.pipelines import videomv_orbit
from backend.pipelines.fourdiffusion_guidance import Conditions, FourDMGuidance
from backend.pipelines.memory_plan import PLANS
from tests.pipelines import published_tiny

ASKED = Conditions(torch.zeros(2, 3, 4), torch.zeros(8, 2, 5), torch.zeros(8, 4, 4, 4))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videomv_orbit, "PIXELS", 32)


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    return published_tiny.networks()["vae"]


def encoded(vae: nn.Module, **options: object) -> tuple[Tensor, Tensor]:
    """Latents of ten pictures, and the gradient of their squares."""
    guidance = FourDMGuidance(vae, nn.Identity(), ASKED, PLANS[0], torch.device("cpu"), **options)
    pictures = torch.rand(10, 4, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    latents = guidance.encode(pictures)
    latents.square().sum().backward()
    return latents.detach(), pictures.grad


def test_keeping_is_faster_and_nothing_else(vae: nn.Module) -> None:
    for kept, again in zip(encoded(vae, keep=True), encoded(vae, keep=False), strict=True):
        torch.testing.assert_close(kept, again)
    for plain, again in zip(encoded(vae), encoded(vae, keep=False), strict=True):
        assert torch.equal(plain, again)  # without a GPU nothing is kept


def test_bf16_points_the_same_way(vae: nn.Module) -> None:
    exact, rounded = encoded(vae), encoded(vae, dtype=torch.bfloat16)
    assert rounded[0].dtype == torch.float32
    for one, other in zip(exact, rounded, strict=True):
        assert float(functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.995
    assert vae.dtype == torch.float32  # the one that decodes for people stays as it is


def test_fp16_is_not_used_where_it_overflows(vae: nn.Module) -> None:
    for plain, asked in zip(encoded(vae), encoded(vae, dtype=torch.float16), strict=True):
        assert torch.equal(plain, asked)
