# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of kinesplat-small: shapes, what it begins as, and that each condition is heard."""

import pytest
import torch

from backend.models import small
from backend.models.small import SmallConfig, SmallVideoNet

FRAMES = 6
SIZES = {"widths": (8, 8, 8, 16), "blocks": (0, 1, 0, 1), "embedding": 16, "text_width": 8, "heads": 2}


def network(**changes) -> SmallVideoNet:
    torch.manual_seed(0)
    return SmallVideoNet(
        SmallConfig(**{"latent_channels": 4, "condition_channels": 16, "vocabulary": 5, **SIZES, **changes})
    )


def awake(net: SmallVideoNet) -> SmallVideoNet:
    """The network with everything that begins at zero set to something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.3)
    return net


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(2)
    cameras = torch.linalg.qr(torch.randn(batch, FRAMES, 4, 4, generator=noise)).Q
    return {
        "latents": torch.randn(batch, FRAMES, 4, 8, 8, generator=noise),
        "condition": torch.randn(batch, FRAMES, 16, 8, 8, generator=noise),
        "timestep": torch.full((batch,), 0.7),
        "frame_times": torch.linspace(0, 1, FRAMES).expand(batch, -1),
        "camera_to_world": cameras,
        "tokens": torch.tensor([[1, 3, 0]]).expand(batch, -1),
        "magnitude": torch.full((batch,), 2.0),
        "known": torch.ones(batch, dtype=torch.bool),
    }


@torch.no_grad()
def test_it_begins_by_predicting_zero():
    out = network(vector_channels=3)(**inputs())
    assert out.shape == (2, FRAMES, 4, 8, 8)
    assert (out == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("name", [*inputs()])
def test_every_condition_is_heard(name):
    net, given = awake(network(vector_channels=3)), inputs()
    other = {
        "tokens": torch.tensor([[2, 3, 0], [1, 3, 0]]),
        "known": torch.tensor([False, True]),
        "magnitude": torch.tensor([9.0, 2.0]),
    }.get(name)
    if other is None:
        other = given[name].clone()
        other[0] = other[0].flip(0) if other[0].ndim else other[0] * 0.3
    before, after = net(**given), net(**{**given, name: other})
    assert (before[0] - after[0]).abs().max() > 1e-4
    torch.testing.assert_close(before[1], after[1], rtol=1e-4, atol=1e-5)  # the other sample hears nothing of it


@torch.no_grad()
def test_an_unknown_magnitude_is_no_magnitude():
    net, given = awake(network()), inputs()
    given["known"] = torch.tensor([False, False])
    few = net(**given)
    assert torch.equal(few, net(**{**given, "magnitude": torch.tensor([15.0, 0.0])}))


@torch.no_grad()
def test_padding_says_nothing():
    net, given = awake(network()), inputs()
    longer = {**given, "tokens": torch.tensor([[1, 3, 0, 0, 0]]).expand(2, -1)}
    torch.testing.assert_close(net(**given), net(**longer), rtol=1e-4, atol=1e-5)
    nothing = {**given, "tokens": torch.zeros(2, 3, dtype=torch.long)}
    assert net(**nothing).isfinite().all()
    assert (net(**nothing) - net(**given)).abs().max() > 1e-4


@torch.no_grad()
def test_frames_may_be_more_and_pictures_larger():
    net, given = awake(network()), inputs(1)
    for name in ("latents", "condition"):
        given[name] = given[name].repeat(1, 2, 1, 2, 3)
    given["frame_times"] = torch.linspace(0, 1, 2 * FRAMES)[None]
    given["camera_to_world"] = given["camera_to_world"].repeat(1, 2, 1, 1)
    assert net(**given).shape == (1, 2 * FRAMES, 4, 16, 24)


@pytest.mark.parametrize("masked", [False, True])
def test_more_sequences_than_a_gpu_takes_at_once_are_attended_in_parts(monkeypatch, masked):
    query, key, value = torch.randn(3, 5, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    seen = torch.arange(5)[:, None, None, None] >= torch.arange(4) if masked else None
    launched, fused = [], small.functional.scaled_dot_product_attention

    def launch(query, *args, **options):
        launched.append(len(query))
        return fused(query, *args, **options)

    monkeypatch.setattr(small.functional, "scaled_dot_product_attention", launch)
    monkeypatch.setattr(small, "MOST_SEQUENCES", 2)
    torch.testing.assert_close(small.attend_fused(query, key, value, seen), small.attend(query, key, value, seen))
    assert launched == [2, 2, 1]
