# SPDX-License-Identifier: GPL-3.0-or-later
"""4DM, the multi-view video network of 4Diffusion (section 3.2), and its base ImageDream: one U-Net, with and without
motion modules.

ImageDream is Stable Diffusion 2.1 that makes the n views of an object together and takes an image prompt: through
tokens of an image encoder ("local" mode), and besides through one more view whose latents are those of the image
itself ("pixel" mode). 4DM makes f times of those n views together. Parameters have the names of the released files.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from backend.models.dry_run import Cost, dry_run
from backend.models.fourdm_blocks import (
    GROUPS,
    MOST_ROWS,
    Conditions,
    Downsample,
    MotionModule,
    Resampler,
    ResBlock,
    SpatialTransformer,
    Stage,
    TemporalTransformer,
    Upsample,
    check_frames,
)
from backend.models.video_blocks import zeroed


@dataclass(frozen=True)
class FourDMConfig:
    """Sizes of the network; the defaults are those of what is released. `motion=False` is ImageDream."""

    motion: bool = True
    latent_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # of model_channels, at 1, 1/2, 1/4, 1/8 of the latents' resolution
    blocks: int = 2  # residual blocks at each resolution
    attention_levels: tuple[int, ...] = (0, 1, 2)  # resolutions with spatial transformers
    head_channels: int = 64
    context_width: int = 1024  # of text and image tokens
    camera_width: int = 16
    image_width: int = 1280  # of the image encoder's features
    image_tokens: int = 16
    motion_heads: int = 8
    motion_positions: int = 32  # most frames

    @property
    def base(self) -> "FourDMConfig":
        """ImageDream at these sizes."""
        return replace(self, motion=False)

    @property
    def embedding_width(self) -> int:
        """Of diffusion time and camera."""
        return 4 * self.model_channels


PUBLISHED = FourDMConfig()
IMAGEDREAM = PUBLISHED.base


class FourDM(nn.Module):
    """Noisy latents and conditions -> noise (eps-prediction). Works in the type of its weights, and answers in it.

    `gradient_checkpointing`: in training, keep only each layer's input and compute the rest again on the way back.
    """

    def __init__(self, config: FourDMConfig = PUBLISHED) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        base, width = config.model_channels, config.embedding_width
        self.time_embed = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))
        self.camera_embed = nn.Sequential(nn.Linear(config.camera_width, width), nn.SiLU(), nn.Linear(width, width))
        self.image_embed = Resampler(config.image_width, config.context_width, config.image_tokens)

        def layers(channels: int, out_channels: int, level: int) -> list[nn.Module]:
            made: list[nn.Module] = [ResBlock(channels, out_channels, width)]
            if level in config.attention_levels:
                made.append(SpatialTransformer(out_channels, config.head_channels, config.context_width))
            return made + motion(out_channels)

        def motion(channels: int) -> list[nn.Module]:
            return [MotionModule(channels, config.motion_heads, config.motion_positions)] if config.motion else []

        channels, levels = base, range(len(config.channel_mult))
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(config.latent_channels, base, 3, padding=1))])
        skips = [base]
        for level in levels:
            for _ in range(config.blocks):
                out_channels = config.channel_mult[level] * base
                self.input_blocks.append(Stage(*layers(channels, out_channels, level)))
                skips.append(channels := out_channels)
            if level != levels[-1]:
                self.input_blocks.append(Stage(Downsample(channels)))
                skips.append(channels)

        self.middle_block = Stage(
            ResBlock(channels, channels, width),
            SpatialTransformer(channels, config.head_channels, config.context_width),
            *motion(channels),
            ResBlock(channels, channels, width),
        )

        self.output_blocks = nn.ModuleList()
        for level in reversed(levels):
            for block in range(config.blocks + 1):
                out_channels = config.channel_mult[level] * base
                made = layers(channels + skips.pop(), out_channels, level)
                channels = out_channels
                if level and block == config.blocks:
                    made.append(Upsample(channels))
                self.output_blocks.append(Stage(*made))
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            zeroed(nn.Conv2d(channels, config.latent_channels, 3, padding=1)),
        )

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        *,
        frames: int = 1,
        views: int,
        cameras: Tensor | None = None,
        image: Tensor | None = None,
        pixels: Tensor | None = None,
        image_weight: float = 1.0,
    ) -> Tensor:  # [B, 4, h, w]
        """Predict the noise of B = b f n latents, in the order clip, time, view.

        latents [B, 4, h, w]: noisy, h and w multiples of 8; timesteps [B]: 0..999; text [B, L, 1024];
        frames f (ImageDream looks at each by itself); views n, which counts the pixel view;
        cameras [B, 16]: see `fourdm_cameras`; image [B, T, 1280]: the image encoder's features, zeros for none;
        pixels [b f, 4, h, w]: clean latents of the input's frames, which take the place of every last view of n
        ("pixel" mode; what comes out for that view means nothing). `latents` stays as it is.
        image_weight: of the image prompt's tokens.

        Without `image` the last 16 text tokens are taken for the image prompt's, as in the released code.

        Raises:
            UserError: more frames than the motion modules have positions for.
            ValueError: B is not a multiple of f n.
        """
        frames = frames if self.config.motion else 1  # ImageDream: every time by itself
        check_frames(frames, self.config.motion_positions)
        if len(latents) % (frames * views):
            raise ValueError(f"{len(latents)} latents are not a number of clips of {frames} frames x {views} views")

        kind = self.time_embed[0].weight.dtype
        embedding = self.time_embed(sinusoid(timesteps, self.config.model_channels).to(kind))
        if cameras is not None:
            embedding = embedding + self.camera_embed(cameras.to(kind))
        text = text.to(kind)
        if image is None:
            text, tokens = text[:, : -self.config.image_tokens], text[:, -self.config.image_tokens :]
        else:
            tokens = self.image_embed(image.to(kind))
        conditions = Conditions(embedding, text, tokens, image_weight, frames, views)

        if pixels is not None:
            noisy = latents.unflatten(0, (-1, views))[:, :-1]
            latents = torch.cat([noisy, pixels[:, None].to(latents.dtype)], 1).flatten(0, 1)
        x = self.input_blocks[0](latents.to(kind).contiguous())  # not channels-last: see `fourdm_blocks`
        skips = [x]
        checkpointed = self.gradient_checkpointing and torch.is_grad_enabled()
        for stage in self.input_blocks[1:]:
            x = stage(x, conditions, checkpointed)
            skips.append(x)
        x = self.middle_block(x, conditions, checkpointed)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], 1), conditions, checkpointed)
        return self.out(x)

    def motion_modules(self) -> Iterator[MotionModule]:
        """In the order of the forward pass; none in ImageDream."""
        return (module for module in self.modules() if isinstance(module, MotionModule))

    def motion_parameters(self) -> list[nn.Parameter]:
        """What 4Diffusion trains."""
        return [parameter for module in self.motion_modules() for parameter in module.parameters()]

    def freeze_base(self) -> list[nn.Parameter]:
        """Let only the motion modules be trained. Returns their parameters, for the optimiser."""
        self.requires_grad_(False)
        trained = self.motion_parameters()
        for parameter in trained:
            parameter.requires_grad_(True)
        return trained

    def slice_motion(self, rows: int | None) -> None:
        """How many pixels (of all views) the motion modules take at once; None: as many as the kernels allow.

        Fewer take less memory and give the same result.
        """
        for module in self.modules():
            if isinstance(module, TemporalTransformer):
                module.rows_at_once = min(rows or MOST_ROWS, MOST_ROWS)


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """[B] -> [B, width] float32: cosines, then sines, wavelengths 2 pi to 20,000 pi."""
    return get_timestep_embedding(timesteps, width, flip_sin_to_cos=True, downscale_freq_shift=0)


def describe(
    config: FourDMConfig = PUBLISHED,
    *,
    batch: int = 1,
    frames: int = 8,
    views: int = 5,
    height: int = 32,
    width: int = 32,
    text_tokens: int = 77,
    image_features: int = 257,
    dtype: torch.dtype = torch.bfloat16,
    motion_rows: int | None = None,
    training: bool = False,
    checkpoint_activations: bool = True,
) -> Cost:
    """What a network of these sizes costs in memory, from its shapes alone; nothing is computed (see `dry_run`).

    batch: clips at once; views: with the pixel view; height, width: of the latents; image_features: of each picture;
    motion_rows: see `slice_motion`; training: of the motion modules, the base being frozen; checkpoint_activations
    counts in training only.
    """
    rows = batch * frames * views
    with torch.device("meta"):
        network = FourDM(config).to(dtype)
        network.freeze_base()
        network.slice_motion(motion_rows)
        network.gradient_checkpointing = checkpoint_activations
        given = {
            "latents": torch.empty(rows, config.latent_channels, height, width, dtype=dtype),
            "timesteps": torch.empty(rows, dtype=torch.int64),
            "text": torch.empty(rows, text_tokens, config.context_width, dtype=dtype),
            "cameras": torch.empty(rows, config.camera_width, dtype=dtype),
            "image": torch.empty(rows, image_features, config.image_width, dtype=dtype),
            "pixels": torch.empty(batch * frames, config.latent_channels, height, width, dtype=dtype),
            "frames": frames,
            "views": views,
        }
        stages = ["image_embed", *(f"input_blocks.{index}" for index in range(1, len(network.input_blocks)))]
        stages += ["middle_block", *(f"output_blocks.{index}" for index in range(len(network.output_blocks)))]
        return dry_run(network, given, stages, training=training)
