# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of an orbit as arrays, as tensors, as construction takes them, and to look at."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.pictures import over_white, premultiplied, straight, tiled
from backend.splatting.observations import Observations
from blender_addon.contract.orbit import Cameras

PREVIEW_FRAMES = 8


class Views(NamedTuple):
    """Pictures of a subject, and from where and when they were taken."""

    pictures: np.ndarray  # [V, H, W, 4] uint8, straight alpha
    cameras: Cameras


def as_tensor(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:  # [1, T, 4, H, W]
    """Pictures [T, H, W, 4] uint8 with straight alpha -> premultiplied, 0..1."""
    return premultiplied(pictures).to(device).permute(0, 3, 1, 2)[None]


def as_pictures(frames: Tensor) -> np.ndarray:  # [T, H, W, 4] uint8
    """The reverse of `as_tensor`."""
    return straight(frames[0].permute(0, 2, 3, 1).float().cpu().numpy())


def resized(pictures: np.ndarray, cameras: Cameras, pixels: int) -> Views:
    """Views [V, H, W, 4] uint8 with H = W at another size."""
    if cameras.width == pixels:
        return Views(pictures, cameras)
    values = functional.interpolate(as_tensor(pictures)[0], (pixels, pixels), mode="bilinear", antialias=True)
    return Views(as_pictures(values[None]), scaled(cameras, pixels / cameras.width))


def scaled(cameras: Cameras, factor: float) -> Cameras:
    """The same cameras, with larger or smaller pictures."""
    width, height = round(factor * cameras.width), round(factor * cameras.height)
    return replace(cameras, Ks=np.diag([factor, factor, 1.0]) @ cameras.Ks, width=width, height=height)


def observations(pictures: np.ndarray, cameras: Cameras) -> Observations:
    """Pictures [T, H, W, 4] uint8 as construction takes them."""
    return Observations(as_tensor(pictures)[0].permute(0, 2, 3, 1).contiguous(), cameras)


def preview_of(frames: Tensor) -> np.ndarray:  # [2 H, 4 W, 3] uint8
    """Eight of the frames [1, T, 4, H, W] on white, to look at while more is to come."""
    chosen = torch.linspace(0, frames.shape[1] - 1, PREVIEW_FRAMES).round().long()
    return tiled(over_white(frames[0, chosen].movedim(1, -1)).unflatten(0, (2, -1)))
