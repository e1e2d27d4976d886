# SPDX-License-Identifier: GPL-3.0-or-later
"""What `python -m benchmarks.gpu` measures, shrunk so far that a CPU does it in seconds."""

from functools import cache

import torch
from torch import Tensor

from backend.models import fused
from backend.models.fourdm import FourDM, FourDMConfig
from backend.nerf.hash_grid import HashGridConfig
from backend.nerf.rendering import Quality
from backend.splatting.config import ConstructConfig
from benchmarks.gpu import networks
from benchmarks.gpu.setting import Setting, Training
from tests.pipelines import published_tiny

FRAMES, PIXELS = 4, 32
FEATURES = (3, 1280)  # as many numbers as the resampler of 4DM takes
MOTION = {
    "network": {"widths": [8, 8, 8, 8], "blocks": [0, 1, 0, 1], "embedding": 16, "text_width": 8, "heads": 2},
    "resolution": 16,
    "batch": 2,
    "precision": "fp32",
    "log_steps": 1,
}
FOURDM = {**MOTION, "network": {"widths": [8, 8], "blocks": [1, 1], "embedding": 16, "text_width": 8, "heads": 2}}


VIDEO = FourDMConfig(
    model_channels=32, channel_mult=(1, 1), blocks=1, attention_levels=(1,), head_channels=16,
    context_width=published_tiny.WIDTH, motion_heads=2,
)  # fmt: skip


OPERATIONS = {
    "orbit": cache(lambda: networks.orbit_operations(published_tiny.IMAGE, FRAMES, PIXELS)),
    "fourdm": cache(lambda: networks.fourdm_operations(VIDEO, 8, PIXELS, FEATURES[0])),
}


class Looks(published_tiny.Mean):
    """Pictures -> their mean colors, or tokens of them."""

    def tokens(self, pictures: Tensor) -> Tensor:
        return pictures.mean((1, 2, 3))[:, None, None].expand(-1, *FEATURES)


def setting(device: str = "cpu", dtype: torch.dtype = torch.float32, **changes: object) -> Setting:
    """FRAMES and PIXELS are what the pipelines have to be told of, too."""
    made = published_tiny.networks()
    large = {name: made[name].to(dtype) for name in ("text", "image", "moving")}
    make = {name: (lambda network=network: network) for name, network in {**made, **large}.items()}
    make |= {"fourdm": lambda: FourDM(VIDEO).to(dtype), "image_encoder": Looks}
    small = {
        "frames": FRAMES,
        "pixels": PIXELS,
        "steps": 2,
        "kernels": fused.Kernels(fused.norm, fused.gate),
        "video_steps": 2,
        "sds_steps": (0, 1),
        "repeats": 1,
        "sds_gaussians": 50,
        "sds_changes": {
            "iterations": 70,
            "pixels": (8, 8, 12),
            "grid": HashGridConfig(levels=3, log2_table=9, base=4, growth=1.5),
            "quality": Quality(samples=16, chunk=1 << 16),
        },
        "text_width": published_tiny.WIDTH,
        "image_features": FEATURES,
        "matrix": 128,
        "kinds": ("image",),
        "preset": "draft",
        "construction": ConstructConfig(
            gaussians=300, shape_steps=2, coarse_steps=2, fine_steps=2, hypotheses=("free",), mirrors=()
        ),
        "construction_pixels": 48,
        "rasterize": ((200, 32),),
        "rasterize_seconds": 0.1,
        "trainings": (
            Training("kinesplat_small_motion", MOTION, steps=4),
            Training("kinesplat_small_4dm", FOURDM, steps=4),
        ),
    }
    return Setting(torch.device(device), dtype, make, OPERATIONS, **{**small, **changes})
