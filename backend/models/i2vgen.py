# SPDX-License-Identifier: GPL-3.0-or-later
"""I2VGen-XL's released U-Net, in diffusers' layout, as VideoMV's image network before it learned of cameras.

VideoMV's weights have to be fetched by hand; I2VGen-XL's, on which VideoMV was trained, have not. The two differ in
three things: what is named how; cameras, which begin without effect; and that VideoMV adds the image's branch twice,
so that the first convolution's weights for it are halved here. The result computes what I2VGen-XL does.
"""

from collections.abc import Iterator, Mapping
from os import PathLike

import torch
from torch import Tensor

from backend.models.checkpoints import locate, read_tensors
from backend.models.videomv import IMAGE, LATENT_CHANNELS, VideoMVConfig

NAME = "i2vgen-xl"  # of the weights
RESIDUAL = {  # names within a residual block
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
WHOLE = {  # names of what there is once
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "fps_embedding": "fps_embedding", "context_embedding": "context_embedding",
    "image_latents_proj_in": "local_image_concat", "image_latents_context_embedding": "local_image_embedding",
    "image_latents_temporal_encoder.norm1": "local_temporal_encoder.layers.0.0.norm",
    "image_latents_temporal_encoder.attn1.to_out": "local_temporal_encoder.layers.0.0.fn.to_out",
    "image_latents_temporal_encoder.ff.net.0.proj": "local_temporal_encoder.layers.0.1.net.0.0",
    "image_latents_temporal_encoder.ff.net.2": "local_temporal_encoder.layers.0.1.net.2",
    "conv_in": "input_blocks.0.0", "transformer_in": "input_blocks.0.1", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
QKV = tuple(f"image_latents_temporal_encoder.attn1.to_{letter}.weight" for letter in "qkv")


def i2vgen_tensors(folder: str | PathLike | None = None, config: VideoMVConfig = IMAGE) -> dict[str, Tensor]:
    """The U-Net in I2VGen-XL's released weights, for VideoMV's image network. `folder`: of all weights.

    Raises:
        UserError: they are missing or damaged.
    """
    return videomv_from_i2vgen(read_tensors(locate(NAME, folder) / "unet", "", torch.float32), config)


def videomv_from_i2vgen(tensors: Mapping[str, Tensor], config: VideoMVConfig = IMAGE) -> dict[str, Tensor]:
    """Tensors in diffusers' layout of I2VGen-XL -> all that the image network of these sizes has.

    What is not known stays under its own name, and what is missing stays away: loading tells of both.
    """
    names = dict(modules(config))
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in QKV:
            continue
        prefix = next((known for known in names if name.startswith(f"{known}.")), "")
        renamed = names[prefix] + name[len(prefix) :] if prefix else name
        over_time = ".temp_attentions." in f".{name}" or name.startswith("transformer_in.")
        if over_time and name.endswith(("proj_in.weight", "proj_out.weight")):
            tensor = tensor[..., None]  # stored as a convolution of width 1
        made[renamed] = tensor
    if all(name in tensors for name in QKV):
        made["local_temporal_encoder.layers.0.0.fn.to_qkv.weight"] = torch.cat([tensors[name] for name in QKV])
    if (first := made.get("input_blocks.0.0.weight")) is not None:
        made["input_blocks.0.0.weight"] = torch.cat([first[:, :LATENT_CHANNELS], first[:, LATENT_CHANNELS:] / 2], 1)
    width = config.embedding
    fresh = {"0.weight": torch.randn(width, 16) / 4, "0.bias": torch.zeros(width)}
    fresh |= {"2.weight": torch.zeros(width, width), "2.bias": torch.zeros(width)}
    kind = next(iter(tensors.values())).dtype if tensors else torch.float32
    return made | {f"camera_embedding.{name}": tensor.to(kind) for name, tensor in fresh.items()}


def modules(config: VideoMVConfig) -> Iterator[tuple[str, str]]:
    """Names of modules: diffusers', ours."""
    yield from WHOLE.items()
    levels = len(config.multipliers)

    def block(theirs: str, place: int, ours: str, level: int) -> Iterator[tuple[str, str]]:
        yield from residual(theirs, place, f"{ours}.0")
        if level < config.attention_levels:
            yield f"{theirs}.attentions.{place}", f"{ours}.1"
            yield f"{theirs}.temp_attentions.{place}", f"{ours}.2"

    def residual(theirs: str, place: int, ours: str) -> Iterator[tuple[str, str]]:
        for name, inside in RESIDUAL.items():
            yield f"{theirs}.resnets.{place}.{name}", f"{ours}.{inside}"
        yield f"{theirs}.temp_convs.{place}", f"{ours}.temopral_conv"

    at = 1
    for level in range(levels):
        for place in range(config.blocks):
            yield from block(f"down_blocks.{level}", place, f"input_blocks.{at}", level)
            at += 1
        if level < levels - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{at}.op"
            at += 1
    yield from residual("mid_block", 0, "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.temp_attentions.0", "middle_block.2"
    yield from residual("mid_block", 1, "middle_block.3")
    at = 0
    for up, level in enumerate(reversed(range(levels))):
        for place in range(config.blocks + 1):
            yield from block(f"up_blocks.{up}", place, f"output_blocks.{at}", level)
            if level and place == config.blocks:
                after = 3 if level < config.attention_levels else 1
                yield f"up_blocks.{up}.upsamplers.0.conv", f"output_blocks.{at}.{after}.conv"
            at += 1
