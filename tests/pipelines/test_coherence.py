# SPDX-License-Identifier: GPL-3.0-or-later
"""Latents are brought into line: a torn picture follows the others, what agrees stays, amplitudes scale."""

import numpy as np
import pytest
import torch

from backend.models.motion_latents import latent_unit
from backend.pipelines.coherence import Coherence
from backend.splatting.surface_motion import Surface, flow_of, make_surface
from tests.splatting.scenes import swinging_arm
from tests.splatting.test_surface_motion import sway

UNIT = latent_unit(torch.tensor([3.0]))


@pytest.fixture(scope="module")
def surface() -> Surface:
    scene = swinging_arm(pixels=64, static_views=24)
    return make_surface(scene.surface, scene.static, np.linspace(0, 1, len(scene.static.images)))


def latents_of(surface: Surface) -> torch.Tensor:  # [1, T, 4, 32, 32]
    """Those of one movement; the coverage channel is 1."""
    noisy = torch.zeros(1, len(surface.viewmats), 4, 32, 32)
    told, coverage = flow_of(surface, sway(surface), 32)
    mean = told.sum((2, 3), keepdim=True) / coverage.sum((2, 3), keepdim=True)
    noisy[0, :, :3] = told + (1 - coverage) * mean
    noisy = noisy / UNIT
    noisy[:, :, 3] = 1
    return noisy


def test_what_agrees_stays(surface: Surface) -> None:
    latents = latents_of(surface)
    found = Coherence(surface, UNIT)(latents)
    _, coverage = flow_of(surface, sway(surface), 32)
    error = ((found - latents)[0, :, :3] * coverage).norm() / (latents[0, :, :3] * coverage).norm()
    assert error < 0.35
    assert (found[:, :, 3] == 1).all()  # coverage is not flow


def test_a_torn_picture_follows_the_others(surface: Surface) -> None:
    latents, at = latents_of(surface), 12
    torn = latents.clone()
    torn[:, at, :3] += 3
    whole, mended = Coherence(surface, UNIT)(latents), Coherence(surface, UNIT)(torn)
    before, after = ((one - whole)[0, at, :3].norm() for one in (torn, mended))
    assert after < 0.3 * before


def test_a_larger_size_moves_further(surface: Surface) -> None:
    cohere = Coherence(surface, UNIT)
    latents = latents_of(surface)
    cohere(latents)
    single = cohere(latents)
    larger = cohere(latents, 1.5)
    ratio = larger[:, :, :3].norm() / single[:, :, :3].norm()
    assert 1.25 < float(ratio) < 1.75
    further = cohere.told.norm()
    again = cohere(latents)  # the size was that of one call
    assert 1.25 < float(further / cohere.told.norm()) < 1.75
    assert (again - single).norm() < 0.02 * single.norm()
