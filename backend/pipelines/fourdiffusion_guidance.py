# SPDX-License-Identifier: GPL-3.0-or-later
"""4DM as a judge of renders: its VAE with a gradient, its predictions for the frames and cameras of an iteration."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from backend.guidance import sds
from backend.guidance.sampling import Branches
from backend.guidance.schedules import DDIMScheduler, linear_schedule
from backend.models.fourdm import FourDM
from backend.models.fourdm_cameras import from_orbit
from backend.models.fourdm_inputs import lay_out, unconditional
from backend.pictures import on_white
from backend.pipelines import videomv_orbit
from backend.pipelines.memory_plan import GIB, MemoryPlan, Networks, free_bytes
from backend.pipelines.multi_view_video import RUN_FRAMES, VIEWS, branches_of
from backend.pipelines.videomv_orbit import encode, encode_texts

NEGATIVE_PROMPT = (  # of 4Diffusion's optimisation; sampling has another
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
    "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)

KEPT = 0.38 * GIB  # that the VAE's encoder keeps of a picture of 256 pixels for its gradient, in bf16; from shapes


class Guidance(Protocol):
    """What score distillation asks a video network."""

    dtype: torch.dtype  # that the network computes in
    schedule: DDIMScheduler  # of the noise that it knows
    scale: float  # of classifier-free guidance
    rescale: float  # how much of the contrast that guidance has added is taken back, see `sds.reconstruction`

    def encode(self, pictures: Tensor) -> Tensor:  # [B, 4, H, W] 0..1 -> [B, C, h, w]
        """Latents of pictures, colour times alpha and alpha, with a gradient."""

    def branches(self, poses: Tensor, frames: np.ndarray) -> Branches:
        """Predictions with and without conditions for latents [(F' V), C, h, w], time outer.

        poses [V, 4, 4]: camera-to-world, clip space; frames [F']: of the clip.
        """


@dataclass(frozen=True)
class Conditions:
    """What 4DM is told of the input, which is on white as the renders are."""

    text: Tensor  # [2, L, D]: prompt and negative prompt
    tokens: Tensor  # [F, T, C] of the frames, in main memory
    latents: Tensor  # [F, 4, h, w] of the frames, in main memory


def conditions_of(video: Tensor, prompt: str, networks: Networks) -> Conditions:
    """The conditions of a video [F, 3, H, W] 0..1 on white; networks: text_encoder, image_encoder, vae."""
    text = encode_texts([prompt, NEGATIVE_PROMPT], networks)
    with networks.using("image_encoder") as [encoder]:
        tokens = encoder.tokens(video).cpu()
    return Conditions(text, tokens, encode(video, networks).cpu())


class FourDMGuidance:
    """`Guidance` by 4DM. Its networks stay on the device meanwhile; neither gets a gradient."""

    def __init__(
        self,
        vae: nn.Module,
        network: FourDM,
        conditions: Conditions,
        plan: MemoryPlan,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        on_part: Callable[[], None] = lambda: None,
        keep: bool | None = None,
    ) -> None:
        """`on_part` is called before each few pictures are encoded, also for their gradient; may cancel by raising.

        Where 4DM computes in bf16 its VAE does so, too, here: its gradient would otherwise cost more than 4DM itself.
        Pictures for people are decoded in float32 nevertheless. keep: whether all that the encoder has computed is kept
        for the gradient, rather than computed once more; None: where there is plenty of memory.
        """
        self.schedule, self.scale, self.rescale = linear_schedule(), sds.GUIDANCE, sds.RESCALE
        self._on_part = on_part
        self._vae, self._network = vae.requires_grad_(False), network.requires_grad_(False)
        if dtype == torch.bfloat16:  # fp16 overflows in it
            self._vae = nn.Module.to(copy.deepcopy(self._vae), dtype)
        share = (videomv_orbit.PIXELS / 256) ** 2 * (1 if dtype == torch.bfloat16 else 2)
        kept = share * KEPT * RUN_FRAMES * VIEWS
        if keep is None:  # as much again has to be left, for 4DM and for what is optimised
            keep = plan.resident and device.type == "cuda" and free_bytes(device) > 2 * kept
        self._keeps = keep
        self._conditions, self._plan, self._device, self.dtype = conditions, plan, device, dtype

    def encode(self, pictures: Tensor) -> Tensor:
        """Means of the encoder's distributions, on white; the public code draws from them, whose spread is tiny.

        A few pictures at a time, and once more for their gradient, so that memory does not grow with their number; only
        where there is plenty of memory they are done once.
        """
        side = videomv_orbit.PIXELS
        parts = pictures.split(self._plan.vae_chunk)
        if self._keeps:
            return torch.cat([self._encoded(part, side) for part in parts])
        return torch.cat([checkpoint(self._encoded, part, side, use_reentrant=False) for part in parts])

    def branches(self, poses: Tensor, frames: np.ndarray) -> Branches:
        """See `Guidance`."""
        known, device = self._conditions, self._device
        shown = torch.from_numpy(frames)
        tokens, latents = known.tokens[shown].to(device), known.latents[shown].to(device)
        given = lay_out(known.text[0], from_orbit(poses.to(device)), tokens, latents)
        return branches_of(self._network, (given, unconditional(given, known.text[1])), together=self._plan.together)

    def _encoded(self, pictures: Tensor, side: int) -> Tensor:
        self._on_part()
        vae = self._vae
        pictures = on_white(pictures, 1)  # as in the public code, in its network's training data, and in the input
        if pictures.shape[-1] != side:
            pictures = functional.interpolate(pictures, (side, side), mode="bilinear")
        latents = vae.encode(pictures.to(self._device, vae.dtype) * 2 - 1).latent_dist.mean.float()
        return latents * vae.config.scaling_factor
