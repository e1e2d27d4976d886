# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of any kind that Pillow opens, as the rest of the program wants them: upright, RGBA, sRGB, not too large."""

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps


def upright_srgb(image: Image.Image, longest: int) -> Image.Image:
    """A picture as RGBA with straight alpha, turned as its EXIF note says, at most `longest` pixels wide or high.

    Raises what Pillow raises where the file is damaged: OSError, SyntaxError, ValueError, EOFError, KeyError,
    IndexError, OverflowError.
    """
    upright = ImageOps.exif_transpose(image)
    return _srgb(upright).resize(fitted(*upright.size, longest), Image.Resampling.BOX)


def fitted(width: float, height: float, longest: int) -> tuple[int, int]:
    """Width and height in whole pixels, at most `longest`, in the same proportion."""
    scale = min(1.0, longest / max(width, height))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _srgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # gray with 16 bits; `convert` would cut off instead of scaling
        gray = (np.asarray(image, np.float32) / 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGBA")
    profile = image.info.get("icc_profile")
    rgba = image.convert("RGBA")
    if not profile or image.mode not in ("RGB", "RGBA"):
        return rgba
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        rgb = ImageCms.profileToProfile(rgba.convert("RGB"), source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return rgba  # a profile that cannot be used
    rgb.putalpha(rgba.getchannel("A"))
    return rgb
