# SPDX-License-Identifier: GPL-3.0-or-later
"""VideoMV's networks: 24 views of an orbit, denoised together (arXiv 2403.12010; code MIT, alibaba/VideoMV).

A latent U-Net of ModelScope's and I2VGen-XL's lineage that takes each frame's camera matrix on its time embedding.
There are two: from text to views (TEXT), and from an image to views (IMAGE). Released weights fit key by key, which is
why some things here look odd and have to stay:

- the image's branch is added twice;
- the second attention over time, where others attend to the text, is self-attention again;
- the transformer after the first convolution is heads x head_width = 512 wide inside, all others as their input;
- nothing tells attention over time which frame is which: only the cameras and the convolutions over time do;
- the frame rate is always embedded in the image network, though it is always 8;
- the unconditional branch of guidance keeps the cameras, and its text is a negative prompt.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from backend.models.dry_run import Cost, dry_run
from backend.models.video_blocks import (
    Conv2d,
    GroupNorm,
    ResBlock,
    SpatialTransformer,
    Stage,
    TemporalTransformer,
    Upsample,
    sinusoid,
    two_layers,
    zeroed,
)

LATENT_CHANNELS = 4
FPS = 8  # that the image network is always told
NEGATIVE_PROMPT = (  # the unconditional branch's text
    "Distorted, discontinuous, Ugly, blurry, low resolution, disfigured, disconnected limbs, Ugly faces, "
    "incomplete arms"
)
IMAGE_TOKENS = 4  # that the CLIP embedding of the image becomes


@dataclass(frozen=True)
class VideoMVConfig:
    """Sizes of a network; the defaults are the published ones. Frames, height and width are free."""

    image: bool = False  # the image network; else the text network
    width: int = 320  # channels at full latent resolution
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # of `width`, at 1, 1/2, 1/4 and 1/8
    blocks: int = 2  # to a level
    attention_levels: int = 3  # the first so many have transformers
    heads: int = 8  # of the transformer after the first convolution
    head_width: int = 64
    context_width: int = 1024  # of text tokens and of the CLIP image embedding
    dropout: float = 0.1

    @property
    def embedding(self) -> int:
        """Width of the time embedding."""
        return 4 * self.width


TEXT = VideoMVConfig()
IMAGE = VideoMVConfig(image=True)


class VideoMV(nn.Module):
    """Noisy latents and conditions -> noise (text network) or v (image network).

    `forward` takes what VideoMV's own network takes; its steps `embed`, `image_planes`, `join_context` and `denoise`
    are there for networks that add to them.
    """

    def __init__(self, config: VideoMVConfig, *, checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = checkpoint_activations  # computes them again in the backward pass
        embedding = config.embedding
        self.time_embed = two_layers(config.width, embedding, embedding)
        self.camera_embedding = two_layers(16, embedding, embedding)
        zeroed(self.camera_embedding[-1])
        inputs = LATENT_CHANNELS
        if config.image:
            inputs += LATENT_CHANNELS
            self._make_image_branch()

        widths = [config.width * multiplier for multiplier in config.multipliers]
        first = TemporalTransformer(config.width, config.heads, config.head_width)
        self.input_blocks = nn.ModuleList([Stage(Conv2d(inputs, config.width), first)])
        skips = [config.width]
        channels = config.width
        for level, outputs in enumerate(widths):
            for _ in range(config.blocks):
                self.input_blocks.append(Stage(*self._layers(channels, outputs, level)))
                skips.append(outputs)
                channels = outputs
            if level < len(widths) - 1:
                self.input_blocks.append(Stage(OrderedDict(op=Conv2d(channels, channels, stride=2))))
                skips.append(channels)
        self.middle_block = Stage(
            ResBlock(channels, channels, embedding, config.dropout),
            *self._transformers(channels),
            ResBlock(channels, channels, embedding, config.dropout),
        )
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for block in range(config.blocks + 1):
                layers = self._layers(channels + skips.pop(), widths[level], level)
                channels = widths[level]
                if level and block == config.blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), zeroed(Conv2d(channels, LATENT_CHANNELS)))

    def _make_image_branch(self) -> None:
        width, embedding, latents = self.config.context_width, self.config.embedding, LATENT_CHANNELS
        self.fps_embedding = two_layers(self.config.width, embedding, embedding)
        self.context_embedding = two_layers(width, embedding, IMAGE_TOKENS * width)
        layers = [Conv2d(latents, 16), nn.SiLU(), Conv2d(16, 16), nn.SiLU(), Conv2d(16, latents)]
        self.local_image_concat = nn.Sequential(*layers)
        self.local_temporal_encoder = FrameEncoder(latents, heads=2)
        layers = [Conv2d(latents, 32), nn.SiLU(), PoolTo32(), Conv2d(32, 64, stride=2), nn.SiLU()]
        self.local_image_embedding = nn.Sequential(*layers, Conv2d(64, width, stride=2))

    def _layers(self, inputs: int, outputs: int, level: int) -> list[nn.Module]:
        layers = [ResBlock(inputs, outputs, self.config.embedding, self.config.dropout)]
        return layers + (self._transformers(outputs) if level < self.config.attention_levels else [])

    def _transformers(self, channels: int) -> list[nn.Module]:
        head_width = self.config.head_width
        return [
            SpatialTransformer(channels, head_width, self.config.context_width),
            TemporalTransformer(channels, channels // head_width, head_width),
        ]

    def slice_transformers(self, tokens: int | None) -> None:
        """Let each transformer take at most so many latent pixels at once (None: all): slower, in less memory.

        What is saved is the inside of the transformers, some 16 times as wide as their input.
        """
        for module in self.modules():
            if isinstance(module, SpatialTransformer | TemporalTransformer):
                module.slice_tokens = tokens

    def weights_channels_last(self) -> None:
        """Lay the convolutions' weights out as the hidden states are, so that no call has to do it on a GPU.

        Save weights before: files want them contiguous.
        """
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            elif parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)

    @property
    def dtype(self) -> torch.dtype:
        """That the network computes in."""
        return self.out[-1].weight.dtype

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        camera_data: Tensor | None = None,
        image: Tensor | None = None,
        local_image: Tensor | None = None,
        fps: Tensor | None = None,
    ) -> Tensor:  # [B, 4, F, h, w], of the type of x
        """Predict noise, or v.

        x [B, 4, F, h, w]: noisy latents, h and w multiples of 8; t [B]: timesteps 0..999; y [B, L, 1024]: text tokens;
        camera_data [B, F, 16]: camera-to-world matrices row by row, in VideoMV's frame, whose orbits start at +X.
        Image network only: local_image [B, 4, 1 or F, h, w]: latents of the image, whose first frame is used;
        image [B, 1, 1024]: its CLIP embedding; fps [B]: 8 if not given.

        Raises:
            ValueError: the image network was given no local_image.
        """
        frames = x.shape[2]
        inputs, context = channels_last(x).to(self.dtype), y.to(self.dtype)
        if self.config.image:
            if local_image is None:
                raise ValueError("the image network needs local_image")
            picture = channels_last(local_image[:, :, :1]).to(self.dtype)
            inputs = torch.cat([inputs, self.image_planes(picture, frames)], -1)
            context = self.join_context(context, picture, image)
        out = self.denoise(inputs, self.embed(t, camera_data, fps), context)
        return channels_first(out).to(x.dtype)

    def embed(self, t: Tensor, camera_data: Tensor | None = None, fps: Tensor | None = None) -> Tensor:
        """The embedding [B, F, E] of timestep, cameras and frame rate; [B, 1, E] without cameras. See `forward`."""
        embedding = self.time_embed(sinusoid(t, self.config.width).to(self.dtype))
        if self.config.image:
            fps = torch.full_like(t, FPS) if fps is None else fps
            embedding = embedding + self.fps_embedding(sinusoid(fps, self.config.width).to(self.dtype))
        if camera_data is None:
            return embedding[:, None]
        return embedding[:, None] + self.camera_embedding(camera_data.to(self.dtype))

    def image_planes(self, picture: Tensor, frames: int, added: Tensor | None = None) -> Tensor:
        """What the image network sees beside the noisy latents: [B, F, h, w, 4].

        picture [B, 1, h, w, 4]: latents of the image. The other frames are told how far behind it they are. added
        [B, F, h, w, 16]: more to go through the layers after the first.
        """
        behind = torch.arange(1, frames, device=picture.device, dtype=picture.dtype) / max(frames - 1, 1)
        behind = behind[:, None, None, None].expand(len(picture), -1, *picture.shape[2:])
        first, *others = self.local_image_concat
        hidden = first(torch.cat([picture, behind], 1))
        hidden = hidden if added is None else hidden + added
        for layer in others:
            hidden = layer(hidden)
        return 2 * self.local_temporal_encoder(hidden)

    def join_context(self, text: Tensor, picture: Tensor, image: Tensor | None) -> Tensor:
        """The image network's context [B, L + 64 + 4, 1024]: text, picture and CLIP embedding. See `forward`."""
        parts = [text, self.local_image_embedding(picture).flatten(1, 3)]
        if image is not None:
            parts.append(self.context_embedding(image.to(self.dtype)).reshape(len(image), IMAGE_TOKENS, -1))
        return torch.cat(parts, 1)

    def denoise(self, x: Tensor, embedding: Tensor, context: Tensor, added: Tensor | None = None) -> Tensor:
        """The U-Net itself, channels last: x [B, F, h, w, 4 or 8] -> [B, F, h, w, 4].

        embedding [B, F or 1, E]; context [B, L, 1024]; added [B, F, h, w, width]: more beside the first convolution.
        """
        given = (embedding, context)
        convolution, transformer = self.input_blocks[0]
        x = convolution(x) if added is None else convolution(x) + added
        x = self._run(transformer, x)
        skips = [x]
        for stage in self.input_blocks[1:]:
            x = self._run(stage, x, *given)
            skips.append(x)
        x = self._run(self.middle_block, x, *given)
        for stage in self.output_blocks:
            x = self._run(stage, torch.cat([x, skips.pop()], -1), *given)
        return self.out(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def _run(self, stage: nn.Module, *given: Tensor) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(stage, *given, use_reentrant=False)
        return stage(*given)


def describe(
    config: VideoMVConfig,
    *,
    batch: int = 1,
    frames: int = 24,
    height: int = 32,
    width: int = 32,
    text_tokens: int = 77,
    dtype: torch.dtype = torch.bfloat16,
    slice_tokens: int | None = None,
    training: bool = False,
    checkpoint_activations: bool = True,
) -> Cost:
    """What a network of these sizes costs in memory, from its shapes alone; nothing is computed (see `dry_run`).

    height, width: of the latents; dtype: of weights and activations; slice_tokens: see `slice_transformers`;
    checkpoint_activations counts in training only. The published size takes about one second.
    """
    with torch.device("meta"):
        network = VideoMV(config, checkpoint_activations=checkpoint_activations).to(dtype).train(training)
        network.slice_transformers(slice_tokens)
        given = {
            "x": torch.empty(batch, LATENT_CHANNELS, frames, height, width, dtype=dtype),
            "t": torch.empty(batch, dtype=torch.int64),
            "y": torch.empty(batch, text_tokens, config.context_width, dtype=dtype),
            "camera_data": torch.empty(batch, frames, 16),
        }
        if config.image:
            given["local_image"] = torch.empty(batch, LATENT_CHANNELS, 1, height, width, dtype=dtype)
            given["image"] = torch.empty(batch, 1, config.context_width, dtype=dtype)
        stages = ["input_blocks.0.1", *(f"input_blocks.{index}" for index in range(1, len(network.input_blocks)))]
        stages += ["middle_block", *(f"output_blocks.{index}" for index in range(len(network.output_blocks)))]
        return dry_run(network, given, stages, training=training)


class FrameEncoder(nn.Module):
    """One transformer layer over the frames of each pixel of the image's branch."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        feed_forward = nn.Module()
        inner = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU())
        feed_forward.net = nn.Sequential(inner, nn.Identity(), nn.Linear(4 * channels, channels))
        self.layers = nn.ModuleList([nn.ModuleList([NormedAttention(channels, heads), feed_forward])])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, F, h, w, C]."""
        batch, frames, height, width, channels = x.shape
        rows = x.permute(0, 2, 3, 1, 4).reshape(-1, frames, channels)
        for attention, feed_forward in self.layers:
            rows = rows + attention(rows)
            rows = rows + feed_forward.net(rows)
        return rows.reshape(batch, height, width, frames, channels).permute(0, 3, 1, 2, 4)


class NormedAttention(nn.Module):
    """Layer norm, then self-attention whose heads are as wide as its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.fn = nn.Module()
        self.fn.to_qkv = nn.Linear(channels, 3 * heads * channels, bias=False)
        self.fn.to_out = nn.Sequential(nn.Linear(heads * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, C]."""
        query, key, value = self.fn.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(query, key, value)
        return self.fn.to_out(out.transpose(1, 2).flatten(2))


class PoolTo32(nn.AdaptiveAvgPool2d):
    """[..., h, w, C] -> [..., 32, 32, C], so that the image makes 64 tokens at any size."""

    def __init__(self) -> None:
        super().__init__(32)

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        return super().forward(x.flatten(0, -4).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(0, x.shape[:-3])


def channels_last(x: Tensor) -> Tensor:
    """[B, C, F, h, w] -> [B, F, h, w, C]; a view."""
    return x.permute(0, 2, 3, 4, 1)


def channels_first(x: Tensor) -> Tensor:
    """The reverse of `channels_last`."""
    return x.permute(0, 4, 1, 2, 3)
