# SPDX-License-Identifier: GPL-3.0-or-later
"""diffusers' network of I2VGen-XL in the sizes of ours."""

from torch import nn

from backend.models.videomv import VideoMVConfig


def small_i2vgen(config: VideoMVConfig) -> nn.Module:
    """diffusers' network of our sizes."""
    from diffusers import I2VGenXLUNet  # seconds, and only here

    count = len(config.multipliers)
    down = ["CrossAttnDownBlock3D"] * config.attention_levels + ["DownBlock3D"] * (count - config.attention_levels)
    return I2VGenXLUNet(
        block_out_channels=tuple(config.width * multiplier for multiplier in config.multipliers),
        layers_per_block=config.blocks,
        norm_num_groups=32,
        cross_attention_dim=config.context_width,
        attention_head_dim=config.head_width,
        num_attention_heads=config.head_width,  # diffusers' own name for the same
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
    ).eval()
