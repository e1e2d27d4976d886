# SPDX-License-Identifier: GPL-3.0-or-later
"""The VAE: 24 pictures of 256 pixels to latents and back. What the program does is float32, 8 pictures at once."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backend.models.encoders import Encoders
from benchmarks.gpu.setting import Clock, Setting, peak_gib, reset_peak, timed
from benchmarks.report import Figure


def measure(setting: Setting, clock: Clock) -> Iterator[dict | Figure]:
    """A row by type and memory format; the difference of the latents is to float32 without TF32."""
    vae = copy.deepcopy(setting.networks("vae")["vae"]).to(setting.device)
    pictures = torch.rand(setting.frames, 3, setting.pixels, setting.pixels, generator=torch.Generator().manual_seed(0))
    with exact():
        truth = Encoders(vae, None, None).latents(pictures, None)
    types = dict.fromkeys((torch.float32, setting.dtype if setting.dtype is torch.bfloat16 else torch.float32))
    for dtype in types:
        for layout in (torch.contiguous_format, torch.channels_last):
            look = Encoders(vae.to(dtype).to(memory_format=layout), None, None)
            reset_peak(setting.device)
            latents = look.latents(pictures, None)
            encode = timed(lambda look=look: look.latents(pictures, None, 8), setting.device, setting.repeats)
            decode = timed(
                lambda look=look, latents=latents: look.pictures(latents, 8), setting.device, setting.repeats
            )
            yield {
                "type": str(dtype).removeprefix("torch."),
                "layout": "channels last" if layout is torch.channels_last else "contiguous",
                "encode s": encode,
                "decode s": decode,
                "GiB": peak_gib(setting.device),
                "largest difference of the latents": float((latents - truth).abs().max()),
            }


@contextmanager
def exact() -> Iterator[None]:
    """Convolutions in float32 without TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
