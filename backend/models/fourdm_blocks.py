# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of 4Diffusion's U-Net: ImageDream's (residual blocks, attention over the views, image prompt) and the
motion modules (attention over time).

Module names are those of the released state dicts. Feature maps are [B, C, h, w]; the rows are B = b f n in this
order: clip, time, view. Memory is contiguous, not channels-last: on the latter torch's group norm on the CPU is
inexact (1e-3 where a picture is nearly flat, as the pixel view of the unconditional branch is) and crashes on the way
back where its input needs no gradient, as in the first motion module on a frozen base; on CUDA it copies.
"""

import math
from typing import NamedTuple

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from backend.models.video_blocks import zeroed
from backend.progress import UserError

GROUPS = 32  # of every group norm
# Of one call of the attention kernel; CUDA's launch grids end at 65,535.
MOST_ROWS = 2**15


class Conditions(NamedTuple):
    """What every layer may look at."""

    embedding: Tensor  # [B, E]: of diffusion time and camera
    text: Tensor  # [B, L, D]
    image: Tensor  # [B, K, D]: tokens of the image prompt
    image_weight: float
    frames: int  # f
    views: int  # n, with the pixel view where there is one


class Stage(nn.Sequential):
    """Layers at one resolution, each under the same conditions."""

    def forward(self, x: Tensor, conditions: Conditions, checkpointed: bool = False) -> Tensor:
        """x [B, C, h, w]. `checkpointed`: keep only each layer's input, and compute the rest again on the way back."""
        for layer in self:
            x = checkpoint(layer, x, conditions, use_reentrant=False) if checkpointed else layer(x, conditions)
        return x


class ResBlock(nn.Module):
    """Two convolutions; the embedding is added between them."""

    def __init__(self, channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout of 0: keeps the place, and so the key, of the convolution
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        """x [B, C, h, w]."""
        hidden = self.in_layers(x) + self.emb_layers(conditions.embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class Downsample(nn.Module):
    """Halves the picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        """x [B, C, h, w] -> [B, C, h/2, w/2]."""
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        """x [B, C, h, w] -> [B, C, 2h, 2w]."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class SpatialTransformer(nn.Module):
    """Attention within a time: over all views, then to text and image prompt (ImageDream, section 3)."""

    def __init__(self, channels: int, head_channels: int, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([SpatialBlock(channels, channels // head_channels, context)])
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        """x [B, C, h, w]."""
        tokens = self.proj_in(to_tokens(self.norm(x)))
        for block in self.transformer_blocks:
            tokens = block(tokens, conditions)
        return x + to_picture(self.proj_out(tokens), x)


class SpatialBlock(nn.Module):
    """Multi-view self-attention, cross-attention, feed-forward."""

    def __init__(self, channels: int, heads: int, context: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, heads)
        self.ff = FeedForward(channels, activation_fn="geglu")
        self.attn2 = ImageTextAttention(channels, context, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, conditions: Conditions) -> Tensor:
        """tokens [(b f n), h w, C]."""
        rows, positions, channels = tokens.shape
        joint = self.norm1(tokens).view(rows // conditions.views, conditions.views * positions, channels)
        tokens = tokens + self.attn1(joint, joint).view(tokens.shape)  # "3D": the views of a time see each other
        tokens = tokens + self.attn2(self.norm2(tokens), conditions)
        return tokens + self.ff(self.norm3(tokens))


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values have no bias."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """tokens [B, N, C], context [B, M, D] -> [B, N, C]."""
        return self.to_out[0](attend(self.to_q(tokens), self.to_k(context), self.to_v(context), self.heads))


class ImageTextAttention(Attention):
    """Decoupled cross-attention (IP-Adapter, Eq. 5): one softmax over the text, another over the image prompt."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__(channels, context, heads)
        self.to_k_ip = nn.Linear(context, channels, bias=False)
        self.to_v_ip = nn.Linear(context, channels, bias=False)

    def forward(self, tokens: Tensor, conditions: Conditions) -> Tensor:
        """tokens [B, N, C]."""
        queries, text, image = self.to_q(tokens), conditions.text, conditions.image
        seen = attend(queries, self.to_k(text), self.to_v(text), self.heads)
        prompted = attend(queries, self.to_k_ip(image), self.to_v_ip(image), self.heads)
        return self.to_out[0](seen + conditions.image_weight * prompted)


class MotionModule(nn.Module):
    """Attention over the times of one view and one pixel, on a residual branch that begins at zero (4Diffusion, 3.2).

    What is released has 8 frames and 5 views built in; here both are free, up to `positions` frames.
    """

    def __init__(self, channels: int, heads: int, positions: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, heads, positions)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        """x [B, C, h, w]."""
        moved = self.temporal_transformer(x, conditions.frames, conditions.views)
        return (x.view(moved.shape) + moved).flatten(0, 2)


class TemporalTransformer(nn.Module):
    """`rows_at_once`: how many pixels of how many views are worked on together; less is slower and takes less memory.

    Each pixel's times are on their own, so the result is the same.
    """

    def __init__(self, channels: int, heads: int, positions: int) -> None:
        super().__init__()
        self.rows_at_once = MOST_ROWS
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)  # statistics of each picture by itself
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(channels, heads, positions)])
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, frames: int, views: int) -> Tensor:
        """x [(b f n), C, h, w] -> what moves, [b, f, n, C, h, w]."""
        clips = self.norm(x).unflatten(0, (-1, frames, views)).permute(0, 2, 4, 5, 1, 3)  # [b, n, h, w, f, C]
        parts = [self.transform(part) for part in clips.flatten(0, 3).split(self.rows_at_once)]
        moved = parts[0] if len(parts) == 1 else torch.cat(parts)
        return moved.view(clips.shape).permute(0, 4, 1, 5, 2, 3)

    def transform(self, rows: Tensor) -> Tensor:
        """rows [R, f, C]: one pixel of one view each."""
        rows = self.proj_in(rows)
        for block in self.transformer_blocks:
            rows = block(rows)
        return self.proj_out(rows)


class TemporalBlock(nn.Module):
    """Two temporal self-attentions and a feed-forward."""

    def __init__(self, channels: int, heads: int, positions: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(TemporalAttention(channels, heads, positions) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in self.attention_blocks)
        self.ff = FeedForward(channels, activation_fn="geglu")
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, rows: Tensor) -> Tensor:
        """rows [R, f, C]."""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            rows = rows + attention(norm(rows))
        return rows + self.ff(self.ff_norm(rows))


class TemporalAttention(Attention):
    """Self-attention that is told each token's place in time."""

    def __init__(self, channels: int, heads: int, positions: int) -> None:
        super().__init__(channels, channels, heads)
        self.pos_encoder = PositionTable(channels, positions)

    def forward(self, rows: Tensor) -> Tensor:
        """rows [R, f, C]."""
        rows = self.pos_encoder(rows)
        return super().forward(rows, rows)


class PositionTable(nn.Module):
    """Adds sinusoids of the place in time: sine and cosine in turns, wavelengths 2 pi to 20,000 pi."""

    def __init__(self, channels: int, positions: int) -> None:
        super().__init__()
        self.register_buffer("pe", torch.empty(1, positions, channels))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Compute the table anew."""
        _, positions, channels = self.pe.shape
        where = torch.arange(positions, device=self.pe.device)[:, None]
        angles = where * torch.exp(torch.arange(0, channels, 2, device=self.pe.device) * (-math.log(1e4) / channels))
        self.pe.copy_(torch.stack([angles.sin(), angles.cos()], -1).flatten(1))

    def forward(self, rows: Tensor) -> Tensor:
        """rows [R, f, C]."""
        return rows + self.pe[:, : rows.shape[1]]


class Resampler(nn.Module):
    """Features of an image encoder -> a fixed number of prompt tokens (IP-Adapter plus: a perceiver)."""

    def __init__(self, features: int, width: int, tokens: int, *, depth: int = 4, heads: int = 12) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in = nn.Linear(features, width)
        self.proj_out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, heads),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, 4 * width, bias=False),
                        nn.GELU(),
                        nn.Linear(4 * width, width, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        """features [B, T, F] -> tokens [B, K, D]."""
        features = self.proj_in(features)
        tokens = self.latents.expand(len(features), -1, -1)
        for attention, feed_forward in self.layers:
            tokens = tokens + attention(features, tokens)
            tokens = tokens + feed_forward(tokens)
        return self.norm_out(self.proj_out(tokens))


class PerceiverAttention(nn.Module):
    """Prompt tokens look at the features and at each other."""

    def __init__(self, width: int, heads: int, head_channels: int = 64) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_channels
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """features [B, T, D], tokens [B, K, D]."""
        tokens = self.norm2(tokens)
        keys, values = self.to_kv(torch.cat([self.norm1(features), tokens], 1)).chunk(2, -1)
        return self.to_out(attend(self.to_q(tokens), keys, values, self.heads))


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in each head. queries [B, N, C], keys and values [B, M, C] -> [B, N, C]."""
    split = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (queries, keys, values))
    return functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h w, C]; no copy."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_picture(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, h w, C] -> [B, C, h, w] of `like`; no copy."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def check_frames(frames: int, positions: int) -> None:
    """Raises UserError where the position table is too short for so many frames."""
    if frames > positions:
        raise UserError(
            "too_many_frames",
            f"4Diffusion's motion modules know {positions} times, and {frames} frames were asked for.",
            f"Ask for at most {positions} frames, or make several runs.",
        )
