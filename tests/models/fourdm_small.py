# SPDX-License-Identifier: GPL-3.0-or-later
"""The small network of the golden data: the published one with fewer channels."""

from functools import cache

import torch
from torch import Tensor

from backend.models.fourdm import FourDM, FourDMConfig
from backend.models.fourdm_cameras import from_orbit
from backend.models.fourdm_weights import fourdm_from, key_map
from blender_addon.contract.orbit import Orbit
from tests import golden

SMALL = FourDMConfig(model_channels=32, channel_mult=(1, 1, 2, 2), head_channels=16, context_width=16)


def tensors(name: str) -> dict[str, Tensor]:
    """Golden tensors as the network takes them: float32."""
    return {key: value.float() if value.is_floating_point() else value for key, value in _tensors(name).items()}


_tensors = cache(lambda name: golden.tensors(f"fourdm/{name}"))


def ring(views: int, elevation: float = 0.0, azimuth_start: float = 90.0) -> Tensor:  # [views, 16]
    """Our cameras as the network takes them; the azimuth is that of the papers' code, whose front is at 90 degrees."""
    orbit = Orbit(views, azimuth_start - 90, elevation, closed=False)
    return from_orbit(torch.tensor(orbit.camera_to_world()))


def imagedream_checkpoint() -> dict[str, Tensor]:
    """As ImageDream's file has it, with something of its other parts."""
    with torch.device("meta"):
        before = {after: before for before, after in key_map(FourDM(SMALL)).items()}
    base = {name: value for name, value in tensors("weights").items() if ".temporal_transformer." not in name}
    unet = {f"model.diffusion_model.{before.get(name, name)}": value for name, value in base.items()}
    return {"betas": torch.zeros(1000), "clip_model.model.logit_scale": torch.zeros(()), **unet}


def fourdm() -> FourDM:
    return fourdm_from(None, tensors("weights"), SMALL)


def imagedream() -> FourDM:
    return fourdm_from(imagedream_checkpoint(), None, SMALL.base)


def inputs(case: dict[str, Tensor], frames: int, views: int) -> dict:
    """Arguments of `FourDM.forward`."""
    return {
        "latents": case["x"],
        "timesteps": case["timesteps"],
        "text": case["context"],
        "cameras": case.get("camera"),
        "image": case.get("ip"),
        "pixels": case.get("ip_img"),
        "frames": frames,
        "views": views,
    }
