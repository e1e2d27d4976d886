# SPDX-License-Identifier: GPL-3.0-or-later
"""The image that somebody has picked, as a PNG for the backend: any of Blender's images, small, in sRGB."""

from pathlib import Path

import bpy
import numpy as np

from .contract.color import linear_to_srgb
from .png import shrunk, write_png
from .subject import CaptureError

LARGEST = 512  # pixels a side; the networks see far fewer
READABLE_SOURCES = {"FILE", "GENERATED", "SEQUENCE"}


def image_problem(image: bpy.types.Image | None) -> str:
    """Why an image cannot be used, as far as that is known without reading it; empty where it can."""
    if image is None:
        return "Choose an image of what is to move"
    if image.source not in READABLE_SOURCES:
        return f"{image.name} is not a still image: choose another one"
    return ""


def write_image(name: str, path: Path, largest: int = LARGEST) -> None:
    """Write what the image of this full name shows now to `path`, at most `largest` pixels a side.

    Raises:
        CaptureError: it is not there any more, or holds no pixels.
        OSError: the file cannot be written.
    """
    image = next((image for image in bpy.data.images if image.name_full == name), None)
    if image is None:
        raise CaptureError(f"The image {name} is not in the file any more. Choose another one.")
    width, height = image.size
    count = width * height * image.channels
    if not count or len(image.pixels) != count:
        raise CaptureError(f"The image {image.name} cannot be read. Choose another one, or find its file again.")
    pixels = np.empty(count, np.float32)
    image.pixels.foreach_get(pixels)
    pixels = np.nan_to_num(pixels.reshape(height, width, image.channels)[::-1])  # Blender's first row is the lowest
    if image.channels < 3:
        pixels = np.concatenate([pixels[..., :1]] * 3 + ([pixels[..., 1:]] if image.channels == 2 else []), axis=2)
    color, alpha = pixels[..., :3], pixels[..., 3:]
    if not alpha.shape[2]:
        alpha = np.ones_like(color[..., :1])
    if not image.is_float and image.alpha_mode == "STRAIGHT":
        color = color * alpha
    small = shrunk(np.concatenate([color, alpha], axis=2), largest)
    alpha = small[..., 3:].clip(0, 1)
    color = np.divide(small[..., :3], alpha, out=np.zeros_like(small[..., :3]), where=alpha > 1e-4)
    if image.is_float:  # linear light
        color = linear_to_srgb(color)
    straight = np.concatenate([color.clip(0, 1), alpha], axis=2)
    write_png(path, np.rint(255 * straight).astype(np.uint8))
