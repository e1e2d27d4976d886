# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D's Eq. 1 and Eq. 2, by numbers made by hand."""

import pytest
import torch

from backend.models.motion_magnitude import (
    MagnitudeEmbedding,
    latent_magnitude,
    motion_magnitude,
    reconstruction_loss,
)


def test_magnitude_of_a_gray_pixel():
    static = torch.zeros(2, 1, 2, 4)  # two frames of two pixels, nothing there
    moving = static.clone()
    moving[1, 0, 0] = torch.tensor([0.5, 0.5, 0.5, 1.0])  # one of four pixels turns from white to half gray
    assert motion_magnitude(moving, static) == pytest.approx(255 * 0.25 / 4)
    assert motion_magnitude(moving[None].expand(3, -1, -1, -1, -1), static[None]).tolist() == pytest.approx(
        [15.9375] * 3
    )


def test_magnitude_is_of_pictures_on_white():
    static = torch.zeros(1, 1, 1, 4)
    white = torch.ones(1, 1, 1, 4)  # an opaque white pixel on white shows nothing
    assert motion_magnitude(white, static) == 0
    veil = torch.tensor([0.0, 0.0, 0.0, 0.25]).reshape(1, 1, 1, 4)  # a quarter of black
    assert motion_magnitude(veil, static) == pytest.approx(255 / 16)


def test_magnitude_of_latents_is_of_the_residual():
    latents, static = torch.full((2, 3, 4, 2, 2), 3.0), torch.full((2, 3, 4, 2, 2), 1.0)
    assert latent_magnitude(latents, static).tolist() == [4, 4]
    assert latent_magnitude(latents).tolist() == [9, 9]


def test_reconstruction_loss_is_weighted():
    predicted, target = torch.tensor([2.0, 2.0, 2.0]), torch.tensor([5.0, 5.0, 2.0])
    assert reconstruction_loss(predicted, target, torch.tensor([1.0, 0.5, 1.0])).tolist() == [9, 4.5, 0]


def test_the_embedding_begins_as_nothing():
    embedding = MagnitudeEmbedding(8)
    assert (embedding(torch.tensor([0.0, 5.0, 15.0])) == 0).all()
    torch.nn.init.ones_(embedding.outer.weight)
    out = embedding(torch.tensor([0.0, 5.0, 15.0]))
    assert out.shape == (3, 8)
    assert (out[1] != out[2]).any()
