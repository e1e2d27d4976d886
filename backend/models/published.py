# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D at its published size: VideoMV's image network with the static orbit and the motion magnitude.

The base is I2VGen-XL's network, of which VideoMV's is a fine-tuned form, in diffusers' layout. Three things are added:
camera matrices (VideoMV) and motion magnitude (Diffusion4D, section 3.3) on the time embedding, both beginning at
zero, and the static orbit's latents in the place of the repeated first image's.
"""

from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMScheduler, I2VGenXLUNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backend.models.encoders import load_pretrained
from backend.models.motion_magnitude import MagnitudeEmbedding

PREDICTION = "v_prediction"
FPS = 8.0  # that VideoMV always tells its base
NEGATIVE_PROMPT = (  # VideoMV's unconditional branch is this text, not the empty one
    "Distorted, discontinuous, Ugly, blurry, low resolution, disfigured, disconnected limbs, Ugly faces, "
    "incomplete arms"
)
FRONT_TO_X = ((0.0, -1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))  # our orbits start at -Y, VideoMV's at +X


class PublishedVideoNet(nn.Module):
    """Noisy latents and conditions -> v."""

    def __init__(self, base: I2VGenXLUNet, *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.base = base
        width = base.time_embedding.linear_2.out_features
        self.camera = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.camera[2].weight)
        nn.init.zeros_(self.camera[2].bias)
        self.magnitude = MagnitudeEmbedding(width)
        self.register_buffer("start", torch.tensor(FRONT_TO_X), persistent=False)
        self._extra: Tensor | None = None  # [B T, width]: added to the time embedding of the forward pass under way
        for block in (*base.down_blocks, base.mid_block, *base.up_blocks):
            block.register_forward_pre_hook(self._add_to_time, with_kwargs=True)
            if checkpoint_activations:  # the base has none of its own
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def forward(
        self,
        latents: Tensor,
        static_latents: Tensor,
        timestep: Tensor,
        camera_to_world: Tensor,
        text: Tensor,
        image: Tensor,
        magnitude: Tensor,
        known: Tensor,
    ) -> Tensor:  # [B, T, 4, h, w]
        """Predict v.

        latents [B, T, 4, h, w]: noisy; static_latents [B, T, 4, h, w]: of the static orbit, first view first;
        timestep [B]: 0..999; camera_to_world [B, T, 4, 4]; text [B, L, 1024]; image [B, 1024]: CLIP embedding of the
        first view; magnitude [B]: motion magnitude m; known [B] bool: False leaves m out.
        """
        cameras = (self.start @ camera_to_world.float()).flatten(2)
        embedded = self.camera(cameras) + (self.magnitude(magnitude) * known[:, None])[:, None]
        self._extra = embedded.flatten(0, 1)
        fps = torch.full((len(latents),), FPS, device=latents.device)
        out = self.base(
            latents.transpose(1, 2),
            timestep,
            fps,
            static_latents.transpose(1, 2),
            image_embeddings=image,
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
        self._extra = None
        return out.transpose(1, 2)

    def _add_to_time(self, block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if "temb" in kwargs:
            return args, {**kwargs, "temb": kwargs["temb"] + self._extra}
        return (args[0], args[1] + self._extra, *args[2:]), kwargs  # the middle block takes it by position


def scheduler() -> DDIMScheduler:
    """VideoMV's noise schedule for images: cosine, zero terminal SNR, v-prediction."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        prediction_type=PREDICTION,
        clip_sample=False,
        timestep_spacing="trailing",
    )


def load_base(weights: Path) -> I2VGenXLUNet:
    """I2VGen-XL's network from a folder in diffusers' layout (with `unet/`).

    Raises:
        UserError: the folder is missing or damaged.
    """
    return load_pretrained(I2VGenXLUNet, weights, "unet")
