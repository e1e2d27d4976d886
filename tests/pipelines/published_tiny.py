# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks of published size, shrunk to some thousand parameters, with weights of noise."""

import torch
from torch import Tensor, nn

from backend.models.diffusion4d import Diffusion4DNet
from backend.models.lgm import LGM, Size
from backend.models.videomv import VideoMV, VideoMVConfig

PIXELS = 64
WIDTH = 8  # of text tokens
SIZES = {
    "width": 32, "multipliers": (1, 2), "blocks": 1, "attention_levels": 1, "heads": 2, "head_width": 8,
    "context_width": WIDTH,
}  # fmt: skip
TEXT, IMAGE = VideoMVConfig(**SIZES), VideoMVConfig(image=True, **SIZES)
REFINER = Size(down=(32,) * 3, down_attention=(False, False, True), up=(32, 32), up_attention=(True, False))


class Letters(nn.Module):
    """Texts -> tokens that tell them apart."""

    def forward(self, texts: list[str]) -> Tensor:
        return torch.stack([torch.full((5, WIDTH), sum(map(ord, text)) % 97 / 50) for text in texts])


class Mean(nn.Module):
    """Pictures -> their mean colors."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3)).repeat(1, 3)[:, :WIDTH]


def networks() -> dict[str, nn.Module]:
    """All by name; the trained network has the weights of `image` within, and has learned something."""
    from diffusers import AutoencoderKL  # seconds, and only here

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=4, sample_size=64, **kinds)
    made = {
        "text_encoder": Letters(), "image_encoder": Mean(), "vae": vae, "text": VideoMV(TEXT), "image": VideoMV(IMAGE),
        "moving": Diffusion4DNet(IMAGE), "refiner": LGM(REFINER, rotated=True),
    }  # fmt: skip
    for network in made.values():
        for parameter in network.parameters():
            if not parameter.any():  # begins at zero, and would say nothing about what goes in
                nn.init.normal_(parameter, std=0.1)
        network.eval().requires_grad_(False)
    made["moving"].base.load_state_dict(made["image"].state_dict())
    return made
