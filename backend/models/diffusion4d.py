# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D's network: VideoMV, told how much moves and what stands still (NeurIPS 2024, sections 3.3 and 3.4).

Two conditions are added, both beginning at zero, so that with VideoMV's weights it is VideoMV to the bit until it is
trained: the motion magnitude m on the time embedding, and the static orbit's latents by concatenation. A sample may
lack either; to one that lacks both, this network is the VideoMV network inside it.
"""

import torch
from torch import Tensor, nn

from backend.models.motion_magnitude import MagnitudeEmbedding
from backend.models.video_blocks import Conv2d, zeroed
from backend.models.videomv import LATENT_CHANNELS, VideoMV, VideoMVConfig


class Diffusion4DNet(nn.Module):
    """Noisy latents of a moving orbit and conditions -> noise (text network) or v (image network)."""

    def __init__(self, config: VideoMVConfig, *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.base = VideoMV(config, checkpoint_activations=checkpoint_activations)
        self.magnitude = MagnitudeEmbedding(config.embedding)
        # To concatenate channels before a convolution is to add a convolution of theirs to it. In the image network
        # they stand beside the image and its constant planes, in the text network beside the noisy latents.
        beside = self.base.local_image_concat[0] if config.image else self.base.input_blocks[0][0]
        self.static_orbit = zeroed(Conv2d(LATENT_CHANNELS, beside.out_channels, bias=False))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        camera_to_world: Tensor,
        text: Tensor,
        *,
        magnitude: Tensor | None = None,
        magnitude_known: Tensor | None = None,
        static_latents: Tensor | None = None,
        static_known: Tensor | None = None,
        image: Tensor | None = None,
        image_latents: Tensor | None = None,
    ) -> Tensor:  # [B, T, 4, h, w], of the type of latents
        """Predict noise, or v.

        latents [B, T, 4, h, w]: noisy, h and w multiples of 8; timestep [B]: 0..999; camera_to_world [B, T, 4, 4]:
        Blender world, OpenGL camera axes, orbits that start at -Y; text [B, L, 1024]: tokens.
        magnitude [B]: motion magnitude m; static_latents [B, T, 4, h, w]: of the static orbit, seen by the same
        cameras. Either can be None, or unknown for single samples: magnitude_known, static_known [B] bool.
        Image network only: image_latents [B, 4, h, w] of the first view; image [B, 1024]: its CLIP embedding, zeros for
        the unconditional branch.

        Raises:
            ValueError: the image network was given no image_latents.
        """
        base = self.base
        inputs, context = last(latents).to(base.dtype), text.to(base.dtype)
        embedding = base.embed(timestep, videomv_cameras(camera_to_world))
        if magnitude is not None:
            embedding = embedding + where_known(self.magnitude(magnitude.to(base.dtype))[:, None], magnitude_known)
        static = None
        if static_latents is not None:
            static = where_known(self.static_orbit(last(static_latents).to(base.dtype)), static_known)
        if base.config.image:
            if image_latents is None:
                raise ValueError("the image network needs image_latents")
            picture = last(image_latents[:, None]).to(base.dtype)
            inputs = torch.cat([inputs, base.image_planes(picture, latents.shape[1], static)], -1)
            context = base.join_context(context, picture, None if image is None else image[:, None])
            static = None
        out = base.denoise(inputs, embedding, context, static)
        return out.permute(0, 1, 4, 2, 3).to(latents.dtype)


def videomv_cameras(camera_to_world: Tensor) -> Tensor:  # [..., 4, 4] -> [..., 16]
    """Camera matrices as VideoMV's networks take them: its orbits start at +X, ours at -Y (Blender's front).

    The world is turned by +90 degrees about Z, (x, y) -> (-y, x); distances stay.
    """
    x, y, z, w = camera_to_world.unbind(-2)
    return torch.cat([-y, x, z, w], -1)


def where_known(values: Tensor, known: Tensor | None) -> Tensor:
    """[B, ...], zero where `known` [B] says that it is not; None: all known."""
    return values if known is None else values * known.reshape(-1, *[1] * (values.ndim - 1)).to(values.dtype)


def last(x: Tensor) -> Tensor:
    """[B, T, C, h, w] -> [B, T, h, w, C]; a view."""
    return x.permute(0, 1, 3, 4, 2)
