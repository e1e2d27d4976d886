# SPDX-License-Identifier: GPL-3.0-or-later
"""The motion network of kinesplat-small: a spatio-temporal U-Net that denoises 24 frames of an orbit.

It takes the conditions of Diffusion4D's published network: text by cross-attention, pictures by concatenation, camera
matrices and motion magnitude on the time embedding. It predicts the clean latents. Convolutions are 2 + 1: over the
picture, then over time, in channels-last layout throughout; attention is joint over space and time at the lowest
level only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.models.motion_magnitude import MagnitudeEmbedding
from backend.models.video_blocks import zeroed

MOST_SEQUENCES = 2**16 - 1  # of one launch of attention on a GPU


@dataclass(frozen=True)
class SmallConfig:
    """Sizes of the network. `widths` are channels at 1, 1/2, 1/4 and 1/8 of the latents' resolution."""

    latent_channels: int  # of what is denoised
    condition_channels: int  # of the pictures beside it
    vocabulary: int  # words
    vector_channels: int = 0  # the first so many latents (0 or 3) are a vector in world axes
    widths: tuple[int, ...] = (48, 96, 192, 256)
    blocks: tuple[int, ...] = (0, 1, 2, 2)
    embedding: int = 384
    text_width: int = 192
    heads: int = 4


class SmallVideoNet(nn.Module):
    """Noisy latents and conditions -> clean latents (x0-prediction)."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.config = config
        widths, width = config.widths, config.embedding
        self.time = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.frame_time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.camera = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.magnitude = MagnitudeEmbedding(width, scale=2.0)
        self.text = TextEncoder(config.vocabulary, config.text_width)
        self.text_pooled = nn.Linear(config.text_width, width)
        self.shared = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())

        turned = config.vector_channels  # vectors are given and taken in world and in camera axes
        self.entrance = nn.Conv2d(config.latent_channels + turned + config.condition_channels, widths[0], 3, padding=1)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(widths):
            if level:
                self.downs.append(nn.Linear(4 * widths[level - 1], channels))
                self.ups.append(nn.Linear(channels, 4 * widths[level - 1]))
            lowest = level == len(widths) - 1
            make = lambda: Block(channels, config, attention=lowest)  # noqa: E731, B023 - used at once
            self.encoder.append(nn.ModuleList(make() for _ in range(config.blocks[level])))
            join = [] if lowest else [nn.Linear(2 * channels, channels)]  # of the skip connection
            self.decoder.append(nn.ModuleList(join + [make() for _ in range(config.blocks[level])]))
        self.exit_norm = nn.LayerNorm(widths[0])
        self.exit = nn.Conv2d(widths[0], config.latent_channels + turned, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(
        self,
        latents: Tensor,
        condition: Tensor,
        timestep: Tensor,
        frame_times: Tensor,
        camera_to_world: Tensor,
        tokens: Tensor,
        magnitude: Tensor,
        known: Tensor,
    ) -> Tensor:  # [B, T, C, h, w]
        """Predict the clean latents.

        latents [B, T, C, h, w]: noisy; condition [B, T, Cc, h, w]; timestep [B]: share of the diffusion time, 0 clean
        to 1 pure noise; frame_times [B, T] 0..1; camera_to_world [B, T, 4, 4]; tokens [B, L] int64, 0 = none;
        magnitude [B]: motion magnitude m; known [B] bool: False leaves m out, as for the unconditional branch.
        h and w are multiples of 8.
        """
        batch, frames = latents.shape[:2]
        text, absent = self.text(tokens)
        embedding = (
            self.time(sinusoid(timestep, 128))[:, None]
            + self.text_pooled(text[:, 0])[:, None]
            + self.frame_time(sinusoid(frame_times, 64))
            + self.camera(camera_to_world.flatten(2).to(latents.dtype))
        )
        # The amplitude of motion goes with the root of m.
        embedding = embedding + (self.magnitude(magnitude.sqrt()) * known[:, None])[:, None]
        embedding = self.shared(embedding).flatten(0, 1)  # [B T, E]

        rotation = camera_to_world[..., :3, :3].to(latents.dtype)
        given = [latents, condition]
        if self.config.vector_channels:
            given.append(torch.einsum("btji,btjhw->btihw", rotation, latents[:, :, :3]))
        x = channels_last(self.entrance(torch.cat(given, 2).flatten(0, 1)))  # [B T, h, w, C] from here on

        context = (embedding, text, absent, frames)
        skips = []
        for level, blocks in enumerate(self.encoder):
            if level:
                x = self.downs[level - 1](blocks_to_channels(x))
            for block in blocks:
                x = block(x, *context)
            skips.append(x)
        for level in reversed(range(len(self.encoder))):
            for part in self.decoder[level]:
                joins = isinstance(part, nn.Linear)
                x = part(torch.cat([x, skips[level]], -1)) if joins else part(x, *context)
            if level:
                x = channels_to_blocks(self.ups[level - 1](x))
        out = self.exit(channels_first(functional.silu(self.exit_norm(x)))).unflatten(0, (batch, frames))
        if self.config.vector_channels:
            out, turned = out[:, :, : self.config.latent_channels], out[:, :, self.config.latent_channels :]
            world = torch.einsum("btij,btjhw->btihw", rotation.to(out.dtype), turned)
            out = torch.cat([out[:, :, :3] + world, out[:, :, 3:]], 2)
        return out


class Block(nn.Module):
    """Convolution over the picture, convolution over time, and at the lowest level attention over both and the text."""

    def __init__(self, channels: int, config: SmallConfig, *, attention: bool) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(channels, elementwise_affine=False)
        self.film = nn.Linear(config.embedding, 2 * channels)
        # Where attention mixes the positions, the rest of the block need not (and 3 x 3 of 4 x 4 pixels are slow).
        hidden, kernel = (4 * channels, 1) if attention else (channels, 3)
        self.conv_in = Conv(channels, hidden, kernel)
        self.norm_out = nn.LayerNorm(hidden)
        self.conv_out = zeroed(Conv(hidden, channels, kernel))
        self.norm_time = nn.LayerNorm(channels)
        self.conv_time = zeroed(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))
        self.attention = Attention(channels, config) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor | None, absent: Tensor | None, frames: int) -> Tensor:
        """x [B T, H, W, C]; embedding [B T, E]; text, absent as `Attention` takes them."""
        scale, shift = self.film(embedding)[:, None, None].chunk(2, -1)
        hidden = functional.silu(torch.addcmul(shift, self.norm_in(x), 1 + scale))
        hidden = functional.silu(self.norm_out(self.conv_in(hidden)))
        x = x + self.conv_out(hidden)
        # Over time: the rows of a [T, h w] picture, with no copy.
        rows = functional.silu(self.norm_time(x)).reshape(-1, frames, x.shape[1] * x.shape[2], x.shape[3])
        x = x + channels_last(self.conv_time(channels_first(rows))).reshape(x.shape)
        return x if self.attention is None else self.attention(x, text, absent, frames)


def Conv(inputs: int, outputs: int, kernel: int) -> nn.Module:  # noqa: N802 - makes a module
    """A square convolution of [N, H, W, C], which for kernel 1 is a linear layer."""
    return nn.Linear(inputs, outputs) if kernel == 1 else SpatialConv(inputs, outputs, kernel, padding=kernel // 2)


class SpatialConv(nn.Conv2d):
    """A convolution whose pictures are [N, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:  # [N, H, W, C] -> the same with other channels
        """Convolve."""
        return channels_last(super().forward(channels_first(x)))


class Attention(nn.Module):
    """Every position of every frame attends to all the others, then to the words."""

    def __init__(self, channels: int, config: SmallConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm_self = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = zeroed(nn.Linear(channels, channels))
        self.text_width = getattr(config, "text_width", 0)
        if self.text_width:
            self.norm_text = nn.LayerNorm(channels)
            self.query = nn.Linear(channels, channels, bias=False)
            self.key_value = nn.Linear(self.text_width, 2 * channels, bias=False)
            self.out_text = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, text: Tensor | None, absent: Tensor | None, frames: int) -> Tensor:
        """x [B T, H, W, C]; text, absent as `TextEncoder` gives them, None for networks without text."""
        shape = x.shape
        x = x.reshape(shape[0] // frames, -1, shape[-1])
        query, key, value = map(self._split, self.qkv(self.norm_self(x)).chunk(3, -1))
        x = x + self.out(self._join(attend(query, key, value)))
        if not self.text_width:
            return x.reshape(shape)
        query = self._split(self.query(self.norm_text(x)))
        key, value = map(self._split, self.key_value(text).chunk(2, -1))
        x = x + self.out_text(self._join(attend(query, key, value, ~absent[:, None, None, :])))
        return x.reshape(shape)

    def _split(self, x: Tensor) -> Tensor:  # [B, L, C] -> [B, heads, L, C / heads]
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(-2)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention; `seen` is False where a key is not to be looked at."""
    if query.is_cuda:
        return attend_fused(query, key, value, seen)
    # Measured on the CPU at 384 tokens, bf16, forward and backward: 15 ms so, 91 ms in torch's fused kernel.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1).to(value) @ value


def attend_fused(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """`attend` by torch's fused kernels, which count sequences in 16 bits: more than that go one part after another."""
    attended = []
    for start in range(0, len(query), MOST_SEQUENCES):
        part = slice(start, start + MOST_SEQUENCES)
        mask = None if seen is None else seen[part]
        attended.append(functional.scaled_dot_product_attention(query[part], key[part], value[part], attn_mask=mask))
    return attended[0] if len(attended) == 1 else torch.cat(attended)


class TextEncoder(nn.Module):
    """A transformer layer over word embeddings; token 0 of its output stands for the whole text, also an empty one."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary + 1, width, padding_idx=0)
        self.whole = nn.Parameter(torch.randn(width) * 0.02)
        self.layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, L] -> encoded [B, 1 + L, width], and where there is no word: [B, 1 + L] bool."""
        absent = functional.pad(tokens == 0, (1, 0), value=False)
        embedded = torch.cat([self.whole.expand(len(tokens), 1, -1), self.words(tokens)], 1)
        hidden = self.layer(embedded, src_key_padding_mask=absent)
        return self.norm(hidden) * ~absent[..., None], absent


def sinusoid(values: Tensor, width: int) -> Tensor:  # [...] in 0..1 -> [..., width]
    """Sines and cosines of geometrically spaced frequencies, half a turn to 500 turns over the range."""
    frequencies = torch.pi * torch.logspace(0, 3, width // 2, device=values.device, dtype=values.dtype)
    angles = values[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def channels_first(x: Tensor) -> Tensor:
    """[N, H, W, C] -> [N, C, H, W] in channels-last memory; a view."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The reverse of `channels_first`."""
    return x.permute(0, 2, 3, 1)


def blocks_to_channels(x: Tensor) -> Tensor:
    """[N, H, W, C] -> [N, H/2, W/2, 4 C]."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)


def channels_to_blocks(x: Tensor) -> Tensor:
    """The reverse of `blocks_to_channels`."""
    return x.unflatten(3, (2, 2, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
