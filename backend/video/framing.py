# SPDX-License-Identifier: GPL-3.0-or-later
"""One crop for all frames: the subject as large, and as much in the middle, as a network's cameras show theirs."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_FILL = 0.9  # of the frame, as in 4Diffusion's own example video; its cameras would crop a subject of side 1
SHRINKING = 2.5  # a subject whose path is so many times its own size becomes small


@dataclass(frozen=True)
class Framing:
    """The camera that a network expects: it looks at the middle of a subject whose longest side is 1."""

    distance: float
    fov: float  # degrees
    size: int = 256  # pixels
    largest: float = MAX_FILL  # the most of the frame's side that the subject may take

    @property
    def fill(self) -> float:
        """Share of the frame's side that the subject's longest side takes."""
        return min(1 / (2 * self.distance * np.tan(np.radians(self.fov) / 2)), self.largest)


FOURDIFFUSION = Framing(1.1, 45.0)  # 4Diffusion's demo.py


@dataclass(frozen=True)
class Crop:
    """A square in a frame, in its pixels; it may reach beyond the frame."""

    left: float
    top: float
    side: float


def union_box(masks: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of everywhere that the subject ever is, as shares 0..1. `masks` [T, h, w] has some."""
    ever = masks.any(axis=0)
    rows, columns = np.flatnonzero(ever.any(axis=1)), np.flatnonzero(ever.any(axis=0))
    height, width = ever.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def crop_of(masks: np.ndarray, width: int, height: int, framing: Framing) -> tuple[Crop, list[str]]:
    """The crop in which the union of the subject's outlines takes `framing.fill`, and what is to be said about it."""
    left, top, right, bottom = union_box(masks)
    left, right, top, bottom = left * width, right * width, top * height, bottom * height
    longest = max(right - left, bottom - top)
    side = longest / framing.fill
    crop = Crop((left + right - side) / 2, (top + bottom - side) / 2, side)
    notes = []
    own = [max(_extent(mask, width, height)) for mask in masks if mask.any()]
    if longest > SHRINKING * np.median(own):
        times = longest / np.median(own)
        notes.append(
            f"The subject's path is {times:.1f} times its size, so that it is small: a shorter range shows more."
        )
    if longest < 0.75 * framing.fill * framing.size:
        notes.append(f"The subject is only {longest:.0f} pixels large in the video, and is enlarged for the networks.")
    return crop, notes


def resampled(picture: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """[H, W, 4] float, color multiplied by alpha -> [size, size, 4] float32, of the crop; clear beyond the picture."""
    height, width = picture.shape[:2]
    x0, y0 = int(np.floor(crop.left)) - 2, int(np.floor(crop.top)) - 2
    x1, y1 = int(np.ceil(crop.left + crop.side)) + 2, int(np.ceil(crop.top + crop.side)) + 2
    inside = picture[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    padded = np.zeros((y1 - y0, x1 - x0, 4), np.float32)
    padded[max(-y0, 0) : max(-y0, 0) + inside.shape[0], max(-x0, 0) : max(-x0, 0) + inside.shape[1]] = inside
    box = (crop.left - x0, crop.top - y0, crop.left - x0 + crop.side, crop.top - y0 + crop.side)
    planes = [
        Image.fromarray(np.ascontiguousarray(padded[..., k])).resize((size, size), Image.Resampling.BICUBIC, box=box)
        for k in range(4)
    ]
    out = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    alpha = out[..., 3:].clip(0, 1)  # bicubic weights overshoot; the color itself is to stay
    color = out[..., :3] * alpha / np.maximum(out[..., 3:], 1e-6)
    return np.concatenate([color.clip(0, alpha), alpha], axis=-1)


def _extent(mask: np.ndarray, width: int, height: int) -> tuple[float, float]:
    left, top, right, bottom = union_box(mask[None])
    return (right - left) * width, (bottom - top) * height
