# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffusion4D at its published size: where its weights come from, and what it looks through.

The network is VideoMV's for images with Diffusion4D's additions (see `diffusion4d`); latent space, text and image
encoders are I2VGen-XL's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from backend.models.diffusion4d import Diffusion4DNet
from backend.models.state_dicts import load_strictly, released_state
from backend.progress import UserError

PREDICTION = "v_prediction"
HINT = (
    "Name a folder with --weights that holds VideoMV's image weights as safetensors in its subfolder videomv, and "
    "I2VGen-XL's encoders in diffusers' layout (vae, text_encoder, tokenizer, image_encoder, feature_extractor)."
)
BASE = "videomv"  # subfolder of the weights
CAMERAS = "camera_embedding."  # that I2VGen-XL, whose fine-tuned form VideoMV is, lacks


@dataclass(frozen=True)
class Encoders:
    """What the network looks through; none of it is trained."""

    vae: AutoencoderKL
    text: Callable[[list[str]], Tensor]  # -> [B, L, 1024]
    image: Callable[[Tensor], Tensor]  # [B, 3, H, W] in 0..1 -> [B, 1024]

    @torch.no_grad()
    def latents(self, pictures: Tensor, noise: torch.Generator, chunk: int = 8) -> Tensor:
        """Latents [B, T, 4, H/8, W/8] of pictures [B, T, 3, H, W] in 0..1, drawn from the encoder's distribution."""
        frames = pictures.flatten(0, 1).to(self.vae.dtype) * 2 - 1
        parts = [self.vae.encode(part).latent_dist.sample(noise) for part in frames.split(chunk)]
        return (torch.cat(parts) * self.vae.config.scaling_factor).float().unflatten(0, pictures.shape[:2])


def scheduler() -> DDIMScheduler:
    """VideoMV's noise schedule for images: cosine, zero terminal SNR, v-prediction."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        prediction_type=PREDICTION,
        clip_sample=False,
        timestep_spacing="trailing",
    )


def load_base(network: Diffusion4DNet, weights: Path) -> None:
    """Load VideoMV's weights into the network within, from the safetensors files in `weights`/videomv.

    I2VGen-XL's own weights in their original layout do as well: camera embeddings then begin at zero.

    Raises:
        UserError: files are missing, damaged, or of another network.
    """
    folder = Path(weights) / BASE
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError("no_weights", f"There are no VideoMV weights (*.safetensors) in {folder}.", HINT)
    released: dict[str, Tensor] = {}
    for file in files:
        try:
            released.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise UserError("damaged_weights", f"The weights in {file} cannot be loaded: {error}", HINT) from error
    state, _ = released_state(released)
    if not any(key.startswith(CAMERAS) for key in state):
        own = network.base.state_dict()
        state |= {key: value for key, value in own.items() if key.startswith(CAMERAS)}
    load_strictly(network.base, state, f"The weights in {folder}")


def load_encoders(weights: Path, device: torch.device) -> Encoders:
    """VAE, text and image encoders from a folder in diffusers' layout of I2VGen-XL.

    Raises:
        UserError: a part is missing or damaged, or the package transformers is.
    """
    try:
        from transformers import (
            CLIPImageProcessor,
            CLIPTextModel,
            CLIPTokenizer,
            CLIPVisionModelWithProjection,
        )
    except ImportError as error:
        raise UserError(
            "no_transformers",
            "The published-size network needs the package transformers for its text and image encoders.",
            'Install it: pip install ".[train]".',
        ) from error
    vae = _load(AutoencoderKL, weights, "vae").to(device).requires_grad_(False)
    text_model = _load(CLIPTextModel, weights, "text_encoder").to(device).requires_grad_(False)
    image_model = _load(CLIPVisionModelWithProjection, weights, "image_encoder").to(device).requires_grad_(False)
    tokenizer = _load(CLIPTokenizer, weights, "tokenizer")
    processor = _load(CLIPImageProcessor, weights, "feature_extractor")

    @torch.no_grad()
    def text(prompts: list[str]) -> Tensor:
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text_model(tokens.to(device)).last_hidden_state.float()

    @torch.no_grad()
    def image(pictures: Tensor) -> Tensor:
        pixels = processor(images=pictures.cpu(), do_rescale=False, return_tensors="pt").pixel_values
        return image_model(pixels.to(device)).image_embeds.float()

    return Encoders(vae, text, image)


def _load(kind: type, weights: Path, part: str) -> object:
    folder = Path(weights) / part
    if not folder.is_dir():
        raise UserError("no_weights", f"The weights' folder {folder} does not exist.", HINT)
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError("damaged_weights", f"The weights in {folder} cannot be loaded: {error}", HINT) from error
