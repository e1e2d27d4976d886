# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of the encoders' tensors: from latent diffusion's and OpenCLIP's to those of diffusers and transformers."""

import re
from collections.abc import Mapping

from torch import Tensor

LDM_VAE_NAMES = (  # latent diffusion's -> diffusers'; blocks of the decoder are counted from the other end
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", r".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", r".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
    (r"\.norm_out\.", r".conv_norm_out."),
)

OPEN_CLIP_BLOCK_NAMES = (
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
OPEN_CLIP_TEXT_NAMES = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_IMAGE_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
OPEN_CLIP_UNUSED = ("text_projection", "logit_scale", "attn_mask")  # only contrastive training needs them


def vae_from_ldm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors in diffusers' layout from those in latent diffusion's: every one, none more."""
    levels = len(ldm_vae_sizes(tensors)[0])
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in LDM_VAE_NAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"up_blocks\.(\d+)", lambda level: f"up_blocks.{levels - 1 - int(level[1])}", name)
        pointwise = "attentions" in name and tensor.ndim == 4  # a 1x1 convolution there, a linear layer here
        renamed[name] = tensor[:, :, 0, 0] if pointwise else tensor
    return renamed


def ldm_vae_sizes(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], int]:
    """Channels of each level, and residual blocks per level, of a VAE in latent diffusion's layout."""
    levels = count_blocks(tensors, "encoder.down.")
    channels = tuple(tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels))
    return channels, count_blocks(tensors, "encoder.down.0.block.")


def split_open_clip(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], set[str]]:
    """Text and image tensors in transformers' layout from OpenCLIP's, and the names that belong to neither.

    The text half comes without its last block, whose output nobody takes.
    """
    text, image, rest = {}, {}, set()
    last = f"transformer.resblocks.{count_blocks(tensors, 'transformer.resblocks.') - 1}."
    for name, tensor in tensors.items():
        if name in OPEN_CLIP_UNUSED or name.startswith(last):
            continue
        if name.startswith("transformer.resblocks."):
            text.update(_open_clip_block(name.replace("transformer.resblocks", "encoder.layers"), tensor))
        elif name.startswith("visual.transformer.resblocks."):
            own = name.replace("visual.transformer.resblocks", "vision_model.encoder.layers")
            image.update(_open_clip_block(own, tensor))
        elif name == "visual.proj":
            image["visual_projection.weight"] = tensor.T.contiguous()
        elif name in OPEN_CLIP_TEXT_NAMES:
            text[OPEN_CLIP_TEXT_NAMES[name]] = tensor
        elif name in OPEN_CLIP_IMAGE_NAMES:
            image[OPEN_CLIP_IMAGE_NAMES[name]] = tensor
        else:
            rest.add(name)
    return text, image, rest


def _open_clip_block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a block; the joined query, key and value are taken apart."""
    for pattern, replacement in OPEN_CLIP_BLOCK_NAMES:
        name = re.sub(pattern, replacement, name)
    if joined := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name):
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{joined[1]}{letter}_proj.{joined[2]}": part for letter, part in parts}
    return {name: tensor}


def count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered blocks there are under `prefix`."""
    numbers = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
    if not numbers:
        raise KeyError(prefix)
    return len(numbers)
