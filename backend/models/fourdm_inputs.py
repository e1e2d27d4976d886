# SPDX-License-Identifier: GPL-3.0-or-later
"""How a clip of 4DM is laid out in rows: f times, each with its n views and then the pixel view.

Row (time, view) of time i is told by the image tokens of input frame i, and the pixel view of time i holds that
frame's latents. 4Diffusion's demo pairs rows and tokens wrongly (`demo_order`); its 4D-aware SDS pairs them rightly.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from backend.models.fourdm_cameras import with_pixel_view


@dataclass(frozen=True)
class ClipConditions:
    """Conditions of one or more clips, row by row: what `FourDM.forward` takes beside latents and diffusion time."""

    text: Tensor  # [B, L, D]
    cameras: Tensor  # [B, 16]
    image: Tensor  # [B, T, F]
    pixels: Tensor | None  # [b f, 4, h, w]; None in local mode
    frames: int
    views: int  # with the pixel view


def lay_out(
    text: Tensor, cameras: Tensor, image: Tensor, pixels: Tensor | None, *, demo_order: bool = False
) -> ClipConditions:
    """Conditions of one clip.

    text [L, D]: of the prompt; cameras [n, 16] or, where they move, [f, n, 16]: without the pixel view;
    image [f, T, F]: the image encoder's features of the input's frames; pixels [f, 4, h, w]: their clean latents, or
    None for local mode, which has no pixel view.
    demo_order: give row r the tokens of frame r mod f, as the released demo does, to compare with it.
    """
    frames = len(image)
    cameras = cameras.expand(frames, *cameras.shape[-2:])
    if pixels is not None:
        cameras = with_pixel_view(cameras)
    views = cameras.shape[1]
    tokens = image.repeat(views, 1, 1) if demo_order else image.repeat_interleave(views, 0)
    return ClipConditions(
        text.expand(frames * views, *text.shape), cameras.flatten(0, 1), tokens, pixels, frames, views
    )


def unconditional(conditional: ClipConditions, text: Tensor) -> ClipConditions:
    """The other branch of classifier-free guidance: text [L, D] of the negative prompt, no image; the same cameras."""
    pixels = conditional.pixels
    return replace(
        conditional,
        text=text.expand_as(conditional.text),
        image=torch.zeros_like(conditional.image),
        pixels=None if pixels is None else torch.zeros_like(pixels),
    )


def join(*clips: ClipConditions) -> ClipConditions:
    """Several clips of one length in one batch, one after the other."""
    joined = {}
    for field in fields(ClipConditions):
        values = [getattr(clip, field.name) for clip in clips]
        joined[field.name] = torch.cat(values) if isinstance(values[0], Tensor) else values[0]
    return ClipConditions(**joined)


def add_pixel_view(latents: Tensor, views: int) -> Tensor:
    """[(b f n), 4, h, w] -> [(b f (n + 1)), 4, h, w]: room (zeros) for the pixel view after every n = `views` rows."""
    rows = latents.unflatten(0, (-1, views))
    return torch.cat([rows, torch.zeros_like(rows[:, :1])], 1).flatten(0, 1)


def drop_pixel_view(latents: Tensor, views: int) -> Tensor:
    """[(b f n), 4, h, w] -> [(b f (n - 1)), 4, h, w]; `views` = n counts the pixel view."""
    return latents.unflatten(0, (-1, views))[:, :-1].flatten(0, 1)
