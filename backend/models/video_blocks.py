# SPDX-License-Identifier: GPL-3.0-or-later
"""The blocks that VideoMV's networks are built of: a 2-D block with convolutions over time, and two transformers.

Hidden states are [B, F, h, w, C]: batch, frames, latent pixels, channels last in memory. Convolutions and norms see
views of them, linear layers and attention need no rearrangement, and only attention over time makes copies. Child
modules carry the names of the released weights, `temopral_conv` included.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.models.fused import GROUPS, Kernels


class GroupNorm(nn.GroupNorm):
    """Group norm of [N, ..., C] whose statistics are taken over everything between N and C.

    torch's kernels sum in float32 whatever the type of x.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(GROUPS, channels, eps)
        self.fused: Kernels | None = None  # see `backend.models.fused`

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        if self.fused is not None:
            return self.fused.normed(x, self, False)
        # A picture one pixel wide: its memory is channels-last, for which torch has a kernel of its own on the CPU.
        picture = x.reshape(len(x), -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
        return super().forward(picture).permute(0, 2, 3, 1).reshape(x.shape)

    def activated(self, x: Tensor) -> Tensor:
        """Normalise, then SiLU."""
        if self.fused is not None:
            return self.fused.normed(x, self, True)
        return functional.silu(self(x))


class Activated(nn.Sequential):
    """Group norm, SiLU, and what comes after them."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N, ..., C]."""
        norm, _, *others = self
        x = norm.activated(x)
        for layer in others:
            x = layer(x)
        return x


class Conv2d(nn.Conv2d):
    """Convolution of [..., h, w, C], padded to keep h and w (stride 2 halves them)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        pictures = x.flatten(0, -4).permute(0, 3, 1, 2)
        return super().forward(pictures).permute(0, 2, 3, 1).unflatten(0, x.shape[:-3])


class TimeConv(nn.Conv3d):
    """Convolution of [B, F, h, w, C] over three frames."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: the frames are the rows of a picture F high and h w wide."""
        picture = x.flatten(2, 3).permute(0, 3, 1, 2)
        out = functional.conv2d(picture, self.weight[..., 0], self.bias, padding=(1, 0))
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:4], -1)


class Pointwise(nn.Conv1d):
    """A linear layer of [..., C] that is stored as a convolution of width 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return functional.linear(x, self.weight[..., 0], self.bias)


class ResBlock(nn.Module):
    """2-D residual block with the embedding added in its middle, then four convolutions over time."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = Activated(GroupNorm(inputs), nn.SiLU(), Conv2d(inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.out_layers = Activated(
            GroupNorm(outputs), nn.SiLU(), nn.Dropout(dropout), zeroed(Conv2d(outputs, outputs))
        )
        self.skip_connection = nn.Identity() if inputs == outputs else Conv2d(inputs, outputs, 1)
        self.temopral_conv = TimeConvs(outputs, dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, F, h, w, C]; embedding [B, F or 1, E]."""
        batch = x.shape[:2]
        pictures = x.flatten(0, 1)
        hidden = self.in_layers(pictures).unflatten(0, batch) + self.emb_layers(embedding)[:, :, None, None]
        hidden = self.out_layers(hidden.flatten(0, 1)) + self.skip_connection(pictures)
        return self.temopral_conv(hidden.unflatten(0, batch))


class TimeConvs(nn.Module):
    """Four convolutions over time with a residual connection; the norms take in all frames at once."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        layer = lambda: (GroupNorm(channels), nn.SiLU(), nn.Dropout(dropout), TimeConv(channels, channels))  # noqa: E731
        norm, activation, _, conv = layer()
        self.conv1 = Activated(norm, activation, conv)  # without dropout, so that its key is one less
        self.conv2 = Activated(*layer())
        self.conv3 = Activated(*layer())
        self.conv4 = Activated(*layer())
        zeroed(self.conv4[-1])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, F, h, w, C]."""
        return x + self.conv4(self.conv3(self.conv2(self.conv1(x))))


class SpatialTransformer(nn.Module):
    """Each frame's pixels attend to each other, then to the context."""

    def __init__(self, channels: int, head_width: int, context_width: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, 1e-6)
        self.proj_in = nn.Linear(channels, channels)
        block = TransformerBlock(channels, channels // head_width, head_width, context_width)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = zeroed(nn.Linear(channels, channels))
        self.slice_tokens: int | None = None  # see VideoMV.slice_transformers

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, F, h, w, C]; context [B, L, context_width], of all frames."""
        batch, frames, height, width, _ = x.shape
        rows = self.norm(x.flatten(0, 1)).reshape(batch, frames, height * width, -1)
        at_once = slices(self.slice_tokens, frames, batch * height * width)
        parts = [self._transform(part, context) for part in rows.split(at_once, 1)]
        return x + joined(parts, 1).reshape(x.shape)

    def _transform(self, rows: Tensor, context: Tensor) -> Tensor:  # [B, f, h w, C]
        hidden = self.transformer_blocks[0](self.proj_in(rows).flatten(0, 1), context)
        return self.proj_out(hidden).reshape(rows.shape)


class TemporalTransformer(nn.Module):
    """Each pixel's frames attend to each other, twice. Nothing tells them their place in time.

    The norm takes in all frames at once. The inner width, heads x head_width, need not be that of x.
    """

    def __init__(self, channels: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.norm = GroupNorm(channels, 1e-6)
        self.proj_in = Pointwise(channels, inner)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads, head_width)])
        self.proj_out = zeroed(Pointwise(inner, channels))
        self.slice_tokens: int | None = None  # see VideoMV.slice_transformers

    def forward(self, x: Tensor) -> Tensor:
        """x [B, F, h, w, C]."""
        batch, frames, height, width, _ = x.shape
        rows = self.norm(x).flatten(2, 3).transpose(1, 2)  # [B, h w, F, C]
        at_once = slices(self.slice_tokens, height * width, batch * frames)
        parts = [self._transform(part) for part in rows.split(at_once, 1)]
        return x + joined(parts, 1).transpose(1, 2).reshape(x.shape)

    def _transform(self, rows: Tensor) -> Tensor:  # [B, n, F, C]
        hidden = self.transformer_blocks[0](self.proj_in(rows).flatten(0, 1))
        return self.proj_out(hidden).reshape(rows.shape)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context (without one: self-attention again), feed-forward layer."""

    def __init__(self, width: int, heads: int, head_width: int, context_width: int | None = None) -> None:
        super().__init__()
        self.attn1 = Attention(width, heads, head_width)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, heads, head_width, context_width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [N, L, C]; context [n, M, context_width], each row of which serves N / n rows of x in turn."""
        x = x + self.attn1(self.norm1(x))
        if context is None:
            x = x + self.attn2(self.norm2(x))
        else:  # rows with the same context become one long row, whose keys and values are made once
            x = x + self.attn2(self.norm2(x).reshape(len(context), -1, x.shape[-1]), context).reshape(x.shape)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int, head_width: int, context_width: int | None = None) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context_width or width, inner, bias=False)
        self.to_v = nn.Linear(context_width or width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [N, L, C]; context [N, M, context_width], x itself without one."""
        context = x if context is None else context
        split = lambda tokens: tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        query, key, value = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        out = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers around a gated GELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedGelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C]."""
        return self.net(x)


class GatedGelu(nn.Module):
    """A linear layer whose second half opens or closes its first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 2 * outputs)
        self.fused: Kernels | None = None  # see `backend.models.fused`

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C]."""
        if self.fused is not None:
            return self.fused.gate(self.proj(x))
        value, gate = self.proj(x).chunk(2, -1)
        return value * functional.gelu(gate)


class Upsample(nn.Module):
    """Twice the size, each pixel repeated, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, F, h, w, C]."""
        pictures = functional.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
        return self.conv(pictures.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]))


class Stage(nn.Sequential):
    """Layers in a row, each given what it takes."""

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """x [B, F, h, w, C]; embedding [B, F or 1, E]; context [B, L, context_width]."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


def two_layers(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """The form of every embedding: linear, SiLU, linear."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


def sinusoid(values: Tensor, width: int) -> Tensor:  # [B] -> [B, width] float32
    """Cosines, then sines, of frequencies 10000^(-i / (width / 2)): timesteps and frame rates before their embedding.

    In float32 always: half precision has no room for an angle of 999.
    """
    half = width // 2
    steps = torch.arange(half, device=values.device, dtype=torch.float32)
    angles = values.float()[:, None] * torch.pow(10000.0, -steps / half)
    return torch.cat([angles.cos(), angles.sin()], -1)


def zeroed(layer: nn.Module) -> nn.Module:
    """A layer that begins by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def slices(tokens: int | None, rows: int, row_tokens: int) -> int:
    """How many of `rows` rows of `row_tokens` tokens each a transformer takes at once: all if `tokens` is None."""
    return rows if tokens is None else max(1, min(rows, tokens // row_tokens))


def joined(parts: list[Tensor], dim: int) -> Tensor:
    """Concatenation that does not copy a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
