# SPDX-License-Identifier: GPL-3.0-or-later
"""The small 4DM: a video from one side -> the same times from four sides, all views and times denoised together.

4Diffusion's construction (section 3.2) at a hundredth of the size: a multi-view network, trained on single moments,
and motion modules that are zero at first and are trained with the rest frozen. The input's own view is a fifth one,
never noisy, with a camera of zeros ("pixel" conditioning). No autoencoder: what is denoised are RGBA pictures.

Ours is the start: every view is also shown what the picture looks like from there when it is simply inflated, and the
network says what has to be added to that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.models.small import (
    Attention,
    Block,
    TextEncoder,
    blocks_to_channels,
    channels_first,
    channels_last,
    channels_to_blocks,
    sinusoid,
)
from backend.models.video_blocks import zeroed

VIEWS, FRAMES = 4, 8  # that it is trained with
CHANNELS = 4  # of latents: RGB on white and alpha, both -1..1
PATCH = 4  # pixels a side that become one position
CONTRAST = 2.0  # by which opacities move away from a half where outlines are to be hard


@dataclass(frozen=True)
class SmallFourDMConfig:
    """Sizes of the network. `widths` are channels at 1/4 and 1/8 of the pictures' resolution."""

    vocabulary: int  # words
    motion: bool  # has motion modules
    widths: tuple[int, ...] = (128, 192)
    blocks: tuple[int, ...] = (1, 3)
    embedding: int = 256
    text_width: int = 128
    heads: int = 4


@dataclass(frozen=True)
class SmallConditions:
    """What the network is told, of B clips of F frames."""

    video: Tensor  # [B, F, 4, H, W] latents of the input
    guess: Tensor  # [B, F, N, 4, H, W] latents of the inflated input, seen by the views' cameras
    camera_to_world: Tensor  # [B, N, 4, 4] of the views; the input's camera stands at -Y
    tokens: Tensor  # [B, L] int64, 0 = none

    def without(self, known: Tensor | None = None) -> "SmallConditions":
        """The same without image and cameras, for the clips that are not `known` [B] bool; None: for all."""
        known = torch.zeros_like(self.tokens[:, 0], dtype=torch.bool) if known is None else known
        wide = known[:, None, None, None, None]
        return SmallConditions(
            torch.where(wide, self.video, nothing(self.video)),
            torch.where(wide[..., None], self.guess, nothing(self.guess)),
            self.camera_to_world * known[:, None, None, None],
            self.tokens,
        )


class SmallFourDM(nn.Module):
    """Noisy latents of N views x F frames, and conditions -> clean latents (x0-prediction)."""

    def __init__(self, config: SmallFourDMConfig) -> None:
        super().__init__()
        self.config = config
        widths, width = config.widths, config.embedding
        self.time = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.camera = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.text = TextEncoder(config.vocabulary, config.text_width)
        self.text_pooled = nn.Linear(config.text_width, width)
        self.shared = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())

        patch = PATCH**2 * CHANNELS
        self.entrance = nn.Conv2d(2 * patch, widths[0], 3, padding=1)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.encoder_motion, self.decoder_motion = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(widths):
            lowest, count = level == len(widths) - 1, config.blocks[level]
            if level:
                self.downs.append(nn.Linear(4 * widths[level - 1], channels))
                self.ups.append(nn.Linear(channels, 4 * widths[level - 1]))
            self.encoder.append(nn.ModuleList(Block(channels, config, attention=lowest) for _ in range(count)))
            join = [] if lowest else [nn.Linear(2 * channels, channels)]  # of the skip connection
            blocks = [Block(channels, config, attention=lowest) for _ in range(count)]
            self.decoder.append(nn.ModuleList([*join, *blocks]))
            if config.motion:
                make = lambda: MotionModule(channels, config.heads, attention=lowest)  # noqa: E731, B023 - used at once
                self.encoder_motion.append(make())
                self.decoder_motion.append(make())
        self.exit_norm = nn.LayerNorm(widths[0])
        self.exit = zeroed(nn.Conv2d(widths[0], patch, 3, padding=1))

    def motion_modules(self) -> list[nn.Module]:
        """What is trained on a frozen base."""
        return [*self.encoder_motion, *self.decoder_motion]

    def freeze_base(self) -> None:
        """Let nothing but the motion modules be trained."""
        self.requires_grad_(False)
        for module in self.motion_modules():
            module.requires_grad_(True)

    def forward(self, latents: Tensor, timestep: Tensor, given: SmallConditions) -> Tensor:
        """Predict the clean latents.

        latents [B, F, N, 4, H, W]: noisy; timestep [B]: share of the diffusion time, 0 clean to 1 pure noise.
        H and W are multiples of 8. Returns a tensor like `latents`.
        """
        batch, frames, views = latents.shape[:3]
        rows = views + 1  # the input's own view comes last
        text, absent = self.text(given.tokens)
        whole = self.time(sinusoid(timestep, 128)) + self.text_pooled(text[:, 0])  # [B, E]
        cameras = functional.pad(given.camera_to_world.flatten(2).to(latents.dtype), (0, 0, 0, 1))  # [B, rows, 16]
        embedding = self.shared(whole[:, None] + self.camera(cameras))
        embedding = embedding[:, None].expand(-1, frames, -1, -1).flatten(0, 2)  # [B F rows, E]

        noisy = torch.cat([latents, given.video[:, :, None]], 2)
        guess = torch.cat([given.guess, given.video[:, :, None]], 2)
        patches = functional.pixel_unshuffle(torch.cat([noisy, guess], 3).flatten(0, 2), PATCH)
        x = channels_last(self.entrance(patches))  # [B F rows, h, w, C] from here on

        text, absent = (one.repeat_interleave(frames, 0) for one in (text, absent))
        context = (embedding, text, absent, rows)
        skips = []
        for level, blocks in enumerate(self.encoder):
            if level:
                x = self.downs[level - 1](blocks_to_channels(x))
            for block in blocks:
                x = block(x, *context)
            if self.config.motion:
                x = self.encoder_motion[level](x, frames, rows)
            skips.append(x)
        for level in reversed(range(len(self.encoder))):
            for part in self.decoder[level]:
                joins = isinstance(part, nn.Linear)
                x = part(torch.cat([x, skips[level]], -1)) if joins else part(x, *context)
            if self.config.motion:
                x = self.decoder_motion[level](x, frames, rows)
            if level:
                x = channels_to_blocks(self.ups[level - 1](x))
        out = self.exit(channels_first(functional.silu(self.exit_norm(x))))
        out = functional.pixel_shuffle(out, PATCH).unflatten(0, (batch, frames, rows))
        return given.guess + out[:, :, :views]


class MotionModule(nn.Module):
    """Along time alone, at each place of each view: convolution, at the lowest level attention. Adds zero at first."""

    def __init__(self, channels: int, heads: int, *, attention: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.attention = Attention(channels, TimeAttention(heads)) if attention else None
        self.position = nn.Linear(64, channels) if attention else None
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, frames: int, rows: int) -> Tensor:
        """x [B F rows, H, W, C]."""
        shape = x.shape
        places = self.norm(x).reshape(-1, frames, rows * shape[1] * shape[2], shape[3])  # [B, F, places, C]
        hidden = functional.silu(channels_last(self.conv(channels_first(places))))
        if self.attention is not None:
            when = sinusoid(torch.linspace(0, 1, frames, device=x.device, dtype=x.dtype), 64)
            hidden = (hidden + self.position(when)[None, :, None]).transpose(1, 2)  # [B, places, F, C]
            sequences = hidden.flatten(0, 1)[:, :, None]  # [B places, F, 1, C]
            sequences = self.attention(sequences.flatten(0, 1)[:, None], None, None, frames)
            hidden = sequences.reshape(hidden.shape).transpose(1, 2)
        return x + self.out(hidden).reshape(shape)


@dataclass(frozen=True)
class TimeAttention:
    """An `Attention` without text."""

    heads: int


def to_latents(pictures: Tensor) -> Tensor:
    """[..., 4, H, W] 0..1 premultiplied RGBA -> RGB on white and alpha, -1..1; differentiable."""
    color, alpha = pictures[..., :3, :, :], pictures[..., 3:, :, :]
    return torch.cat([color + 1 - alpha, alpha], -3) * 2 - 1


def to_pictures(latents: Tensor) -> Tensor:
    """The reverse of `to_latents`, of whatever a network says."""
    on_white, alpha = (latents / 2 + 0.5).clamp(0, 1).split([3, 1], -3)
    return torch.cat([(on_white - 1 + alpha).clamp_min(0).minimum(alpha), alpha], -3)


def completed(views: Tensor, guess: Tensor) -> Tensor:
    """Latents [..., 4, H, W] of views, made as opaque as the inflated input at least, in its color where that adds.

    What the input shows is there, though a network that is unsure of its place leaves out what is thin.
    """
    (color, alpha), (guessed, known) = ((one / 2 + 0.5).split([3, 1], -3) for one in (views, guess))  # color on white
    lacking = (known - alpha).clamp(0, 1)
    share = lacking / known.clamp_min(1e-3)
    return torch.cat([color - share * (1 - guessed), alpha + lacking], -3) * 2 - 1


def decided(views: Tensor) -> Tensor:
    """Latents [..., 4, H, W] of views with harder outlines: the likeliest outline in the place of the mean of all."""
    on_white, alpha = (views / 2 + 0.5).clamp(0, 1).split([3, 1], -3)
    color = ((on_white - 1 + alpha) / alpha.clamp_min(0.05)).clamp(0, 1)
    alpha = ((alpha - 0.5) * CONTRAST + 0.5).clamp(0, 1)
    return torch.cat([color * alpha + 1 - alpha, alpha], -3) * 2 - 1


def nothing(like: Tensor) -> Tensor:
    """Latents [..., 4, H, W] of empty pictures."""
    empty = torch.ones(CHANNELS, 1, 1, device=like.device, dtype=like.dtype)
    empty[3] = -1
    return empty.expand(like.shape)
