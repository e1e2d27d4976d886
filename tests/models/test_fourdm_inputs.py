# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of a clip: as the public code's SDS lays them out, and as its demo does."""

import pytest
import torch

from backend.models.fourdm_cameras import condition
from backend.models.fourdm_inputs import add_pixel_view, drop_pixel_view, join, lay_out, unconditional
from tests.models.fourdm_small import fourdm, ring, tensors

FRAMES, VIEWS = 8, 4
FEATURES = 1.0 + torch.arange(FRAMES)[:, None, None].expand(-1, 3, 1280)  # frame i says i + 1


def clips() -> tuple:
    wanted = tensors("layout")
    shown = lay_out(wanted["text"][0], condition(wanted["c2w"]), FEATURES, wanted["pixels"])
    return wanted, shown, unconditional(shown, wanted["negative"][0])


def test_rows_are_those_of_the_public_sds() -> None:
    wanted, shown, plain = clips()
    both = join(shown, plain)
    assert (both.frames, both.views) == (FRAMES, VIEWS + 1)
    torch.testing.assert_close(both.cameras, wanted["camera"], atol=1e-6, rtol=0)
    assert torch.equal(both.image[:, 0, 0] - 1, wanted["token_frame"].float())  # -1: zeros
    conditional = wanted["context_is_cond"].bool()[:, None, None]
    assert torch.equal(both.text, torch.where(conditional, wanted["text"], wanted["negative"]))
    assert torch.equal(both.pixels[:FRAMES], wanted["pixels"])
    assert (both.pixels[FRAMES:] == 0).all()


def test_latents_make_room_for_the_pixel_view() -> None:
    wanted = tensors("layout")
    rows = add_pixel_view(wanted["latents"], VIEWS)
    torch.testing.assert_close(rows[:10], wanted["x_first10"], atol=1e-6, rtol=0)
    assert torch.equal(drop_pixel_view(rows, VIEWS + 1), wanted["latents"])


@pytest.mark.slow
@torch.no_grad()
def test_the_unconditional_clip_through_the_network() -> None:
    """Its pixel view is flat: group norms divide by next to nothing there, and must still be exact."""
    wanted, _, plain = clips()
    out = fourdm()(
        add_pixel_view(wanted["latents"], VIEWS),
        wanted["t"][:40],
        plain.text,
        cameras=plain.cameras,
        image=plain.image,
        pixels=plain.pixels,
        frames=plain.frames,
        views=plain.views,
    )
    torch.testing.assert_close(out[::2], wanted["unconditional"], atol=1e-4, rtol=0)


def test_the_demo_pairs_rows_and_tokens_wrongly() -> None:
    text, cameras, pixels = torch.zeros(77, 16), ring(VIEWS), torch.zeros(FRAMES, 4, 16, 16)
    right = lay_out(text, cameras, FEATURES, pixels).image[:, 0, 0] - 1
    demo = lay_out(text, cameras, FEATURES, pixels, demo_order=True).image[:, 0, 0] - 1
    assert right.tolist() == [frame for frame in range(FRAMES) for _ in range(VIEWS + 1)]
    assert demo.tolist() == [*range(FRAMES)] * (VIEWS + 1)


def test_local_mode_has_no_pixel_view() -> None:
    clip = lay_out(torch.zeros(77, 16), ring(VIEWS), FEATURES, None)
    assert (clip.views, clip.pixels, unconditional(clip, torch.zeros(77, 16)).pixels) == (VIEWS, None, None)
    assert (clip.cameras.abs().sum(1) > 0).all()


def test_moving_cameras() -> None:
    cameras = torch.stack([ring(VIEWS, azimuth_start=90.0 + frame) for frame in range(FRAMES)])
    clip = lay_out(torch.zeros(77, 16), cameras, FEATURES, torch.zeros(FRAMES, 4, 16, 16))
    assert torch.equal(clip.cameras[6], cameras[1, 1])
    assert (clip.cameras[4::5] == 0).all()
