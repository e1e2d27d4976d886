# SPDX-License-Identifier: GPL-3.0-or-later
"""What the published networks look through: Stable Diffusion's VAE and OpenCLIP ViT-H/14 for text and images.

VideoMV, I2VGen-XL, Stable Diffusion 2.1 and ImageDream share these encoders; their files name the tensors in three
ways: as diffusers and transformers do, as OpenCLIP does, and for the VAE as latent diffusion (LDM) does. The networks
here are those of diffusers and transformers; the other two layouts are renamed when they are loaded. All are plain
modules in evaluation mode, without gradients.
"""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.models.checkpoints import load_strictly, locate, read_tensors
from backend.models.encoder_layouts import count_blocks, ldm_vae_sizes, split_open_clip, vae_from_ldm
from backend.progress import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HEADS = 16  # of both halves of ViT-H/14; shapes do not tell them
TEXT_BLOCKS = 24  # of ViT-H/14's text half; Stable Diffusion's copy comes without the last, I2VGen-XL's with it
RESIZING = ("bilinear", "bicubic")  # of pictures for CLIP: VideoMV and I2VGen-XL; ImageDream


class TextEncoder(nn.Module):
    """Prompts -> the second-to-last block's tokens after the final norm, as Stable Diffusion 2 takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model  # CLIPTextModel without the last block

    @torch.no_grad()
    def forward(self, prompts: list[str]) -> Tensor:  # [B, 77, 1024] float32
        """Encode prompts in English; what follows the 75th token is ignored."""
        from backend.models.clip_tokens import tokens

        return self.encode(tokens(prompts))

    @torch.no_grad()
    def encode(self, tokens: Tensor) -> Tensor:  # [B, 77] int64 -> [B, 77, 1024] float32
        """Encode tokens."""
        return self.model(tokens.to(self.model.device)).last_hidden_state.float()


class ImageEncoder(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 -> CLIP's embedding or its tokens. Wide pictures lose their sides."""

    def __init__(self, model: nn.Module, resizing: str = "bilinear", chunk: int = 16) -> None:
        """`resizing`: one of RESIZING; `chunk`: pictures at once."""
        super().__init__()
        self.model = model  # CLIPVisionModelWithProjection
        self.resizing, self.chunk = resizing, chunk

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:  # [B, 1024] float32
        """The projected embedding, not normalised (VideoMV, I2VGen-XL)."""
        parts = [self.model(part).image_embeds.float() for part in self._prepared(pictures)]
        return torch.cat(parts)

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> Tensor:  # [B, 257, 1280] float32
        """All tokens after the second-to-last block, class token first, neither normed nor projected (ImageDream)."""
        parts = [
            self.model(part, output_hidden_states=True).hidden_states[-2].float() for part in self._prepared(pictures)
        ]
        return torch.cat(parts)

    def _prepared(self, pictures: Tensor) -> tuple[Tensor, ...]:
        size, device, dtype = self.model.config.image_size, self.model.device, self.model.dtype
        prepared = [clip_pixels(part.to(device), size, self.resizing).to(dtype) for part in pictures.split(self.chunk)]
        return tuple(prepared)


def clip_pixels(pictures: Tensor, size: int, resizing: str) -> Tensor:  # [B, 3, H, W] in 0..1 -> [B, 3, size, size]
    """Pictures as CLIP takes them: shorter side `size`, the middle square, normalised."""
    height, width = pictures.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        target = (max(round(height * scale), size), max(round(width * scale), size))
        pictures = functional.interpolate(pictures.float(), target, mode=resizing, antialias=True).clamp(0, 1)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        pictures = pictures[..., top : top + size, left : left + size]
    mean = torch.tensor(CLIP_MEAN, device=pictures.device)[:, None, None]
    return (pictures - mean) / torch.tensor(CLIP_STD, device=pictures.device)[:, None, None]


@dataclass(frozen=True)
class Encoders:
    """The three encoders of one pipeline; none of it is trained."""

    vae: nn.Module  # diffusers' AutoencoderKL
    text: TextEncoder | Callable[[list[str]], Tensor]  # -> [B, 77, 1024]
    image: ImageEncoder | Callable[[Tensor], Tensor]  # [B, 3, H, W] in 0..1 -> [B, 1024]

    @torch.no_grad()
    def latents(self, pictures: Tensor, noise: torch.Generator | None, chunk: int = 8) -> Tensor:
        """Latents [..., 4, H/8, W/8] float32 of pictures [..., 3, H, W] in 0..1, H and W divisible by 8.

        Drawn from the encoder's distribution with `noise`, on any device; without it, its mean. Scaled by 0.18215, as
        diffusion takes them. `chunk`: pictures at once; it does not change the result.
        """
        frames = pictures.flatten(0, -4)
        moments = []
        for part in frames.split(chunk):
            pixels = part.to(self.vae.device, self.vae.dtype) * 2 - 1
            distribution = self.vae.encode(pixels).latent_dist
            moments.append(torch.stack([distribution.mean.float(), distribution.std.float()]))
        mean, std = torch.cat(moments, dim=1)
        if noise is not None:
            mean = mean + std * torch.randn(mean.shape, generator=noise, device=noise.device).to(mean.device)
        return (mean * self.vae.config.scaling_factor).unflatten(0, pictures.shape[:-3])

    @torch.no_grad()
    def pictures(self, latents: Tensor, chunk: int = 4) -> Tensor:
        """Pictures [..., 3, H, W] float32 in 0..1 of scaled latents [..., 4, H/8, W/8]; the inverse of `latents`."""
        frames = latents.flatten(0, -4) / self.vae.config.scaling_factor
        parts = [
            self.vae.decode(part.to(self.vae.device, self.vae.dtype)).sample.float() for part in frames.split(chunk)
        ]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1).unflatten(0, latents.shape[:-3])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Encoders":
        """Move all three, as modules do it; offloading moves single ones."""
        for part in (self.vae, self.text, self.image):
            part.to(device, dtype) if dtype else part.to(device)
        return self


def load_imagedream_encoders(
    folder: Path | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Encoders:
    """The copies inside ImageDream's checkpoint, with which 4Diffusion was trained.

    `folder`: of all weights; by default the usual one (see `weights_folder`).

    Raises:
        UserError: ImageDream's weights are missing, damaged or of another network.
    """
    file = locate("imagedream", folder)
    vae = ldm_vae(read_tensors(file, "vae_model.", dtype), str(file))
    text, image = open_clip(read_tensors(file, "clip_model.model.", dtype), str(file))
    return _ready(vae, text, image, device, "bicubic")


def load_videomv_encoders(
    folder: Path | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Encoders:
    """OpenCLIP and Stable Diffusion's VAE, from their own files, with which VideoMV was trained.

    `folder`: of all weights; by default the usual one (see `weights_folder`).

    Raises:
        UserError: weights are missing, damaged or of another network.
    """
    text, image = load_videomv_clip(folder, dtype)
    return Encoders(load_videomv_vae(folder, dtype), text, image).to(device)


def load_videomv_vae(folder: Path | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The VAE of `load_videomv_encoders` alone."""
    vae = load_pretrained(_vae_class(), locate("sd21-vae", folder), "vae", dtype)
    return vae.eval().requires_grad_(False)


def load_videomv_clip(
    folder: Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[TextEncoder, ImageEncoder]:
    """The text and the image encoder of `load_videomv_encoders` alone."""
    file = locate("openclip-vit-h14", folder)
    text, image = open_clip(read_tensors(file, "", dtype), str(file))
    return TextEncoder(text), ImageEncoder(image)


def load_pretrained(kind: type, weights: Path, part: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One part of a folder in diffusers' layout, half-precision files if only those are there. Never downloads.

    Raises:
        UserError: the part is missing or damaged.
    """
    folder = Path(weights) / part
    hint = f"Remove {weights} and fetch it again: python -m backend weights fetch {Path(weights).name}"
    if not folder.is_dir():
        raise UserError("no_weights", f"The weights' folder {folder} does not exist.", hint)
    halves, wholes = list(folder.glob("*.fp16.safetensors")), list(folder.glob("*.safetensors"))
    variant = "fp16" if halves and len(halves) == len(wholes) else None
    try:
        return kind.from_pretrained(folder, local_files_only=True, torch_dtype=dtype, variant=variant)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError("damaged_weights", f"The weights in {folder} cannot be loaded: {error}", hint) from error


def ldm_vae(tensors: Mapping[str, Tensor], what: str = "The VAE") -> nn.Module:
    """The VAE from tensors in latent diffusion's layout; sizes are read off them. Tensors are taken, not copied.

    Raises:
        UserError: names or shapes are not those of such a VAE; `what` names the file.
    """
    with _layout(what):
        channels, layers = ldm_vae_sizes(tensors)
        renamed = vae_from_ldm(tensors)
        latent = tensors["post_quant_conv.weight"].shape[0]
    with torch.device("meta"):
        vae = _vae_class()(
            block_out_channels=channels,
            layers_per_block=layers,
            latent_channels=latent,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            scaling_factor=0.18215,
        )
    load_strictly(vae, renamed, what, assign=True)
    return vae.eval().requires_grad_(False)


def open_clip(
    tensors: Mapping[str, Tensor], what: str = "The CLIP model", *, text_heads: int = HEADS, image_heads: int = HEADS
) -> tuple[nn.Module, nn.Module]:
    """CLIPTextModel without its last block and CLIPVisionModelWithProjection, from tensors in OpenCLIP's layout.

    Sizes are read off the tensors, which are taken, not copied.

    Raises:
        UserError: names or shapes are not those of OpenCLIP, or the package transformers is missing.
    """
    transformers = _transformers()
    with _layout(what):
        text_tensors, image_tensors, rest = split_open_clip(tensors)
        if rest:
            raise KeyError(", ".join(sorted(rest)[:3]))
        text_config = transformers.CLIPTextConfig(
            vocab_size=tensors["token_embedding.weight"].shape[0],
            hidden_size=tensors["token_embedding.weight"].shape[1],
            intermediate_size=tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            max_position_embeddings=tensors["positional_embedding"].shape[0],
            num_hidden_layers=count_blocks(text_tensors, "encoder.layers."),
            num_attention_heads=text_heads,
            hidden_act="gelu",
        )
        patch, tokens = tensors["visual.conv1.weight"].shape[-1], tensors["visual.positional_embedding"].shape[0]
        image_config = transformers.CLIPVisionConfig(
            hidden_size=tensors["visual.conv1.weight"].shape[0],
            intermediate_size=tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            projection_dim=tensors["visual.proj"].shape[1],
            num_hidden_layers=count_blocks(image_tensors, "vision_model.encoder.layers."),
            num_attention_heads=image_heads,
            image_size=round((tokens - 1) ** 0.5) * patch,
            patch_size=patch,
            hidden_act="gelu",
        )
    with torch.device("meta"):
        text = transformers.CLIPTextModel(text_config)
        image = transformers.CLIPVisionModelWithProjection(image_config)
    for network, given in ((text, text_tensors), (image, image_tensors)):
        if "text_model.embeddings.token_embedding.weight" in network.state_dict():  # transformers before 5
            given = {f"text_model.{name}": tensor for name, tensor in given.items()}
        load_strictly(network, given, what, assign=True)
        _fill_positions(network)
        network.eval().requires_grad_(False)
    return text, image


def empty_encoders(dtype: torch.dtype = torch.float32) -> Encoders:
    """The encoders of published size on the meta device: shapes alone. `dtype`: of CLIP; the VAE is in float32."""
    transformers = _transformers()
    levels = 4
    common = {"intermediate_size": 4096, "num_attention_heads": HEADS, "hidden_act": "gelu"}
    text = transformers.CLIPTextConfig(hidden_size=1024, num_hidden_layers=TEXT_BLOCKS - 1, **common)
    image = transformers.CLIPVisionConfig(
        **{**common, "intermediate_size": 5120}, hidden_size=1280, num_hidden_layers=32, patch_size=14,
        projection_dim=1024,
    )  # fmt: skip
    with torch.device("meta"):
        vae = _vae_class()(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        )
        clip = transformers.CLIPTextModel(text), transformers.CLIPVisionModelWithProjection(image)
    for network in clip:
        network.to(dtype)
    for network in (vae, *clip):
        network.eval().requires_grad_(False)
    return Encoders(vae, TextEncoder(clip[0]), ImageEncoder(clip[1]))


def _fill_positions(network: nn.Module) -> None:
    """The positions 0, 1, ... that transformers keeps outside the checkpoint; all else has come from it."""
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))


@contextmanager
def _layout(what: str):
    """A tensor that is not there, or not of that shape, said in a sentence."""
    try:
        yield
    except (KeyError, IndexError, ValueError) as error:
        hint = "It is a file of another network. See: python -m backend weights verify"
        raise UserError("weights_mismatch", f"{what} is not laid out as expected: {error}.", hint) from error


def _ready(vae: nn.Module, text: nn.Module, image: nn.Module, device: torch.device | str, resizing: str) -> Encoders:
    for network in (vae, text, image):
        network.eval().requires_grad_(False)
    return Encoders(vae, TextEncoder(text), ImageEncoder(image, resizing)).to(device)


def _vae_class() -> type:
    """AutoencoderKL; its module brings transformers, which takes 2 s to import and is needed for nothing else here."""
    from diffusers import AutoencoderKL

    return AutoencoderKL


def _transformers():
    """The package, where it and what the tokens need are installed."""
    try:
        import transformers

        from backend.models import clip_tokens  # noqa: F401
    except ImportError as error:
        raise UserError(
            "no_transformers",
            f"The package {error.name} is missing, which the published-size networks' encoders need.",
            'Install it: pip install ".[published]".',
        ) from error
    return transformers
