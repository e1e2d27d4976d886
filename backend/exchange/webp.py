# SPDX-License-Identifier: GPL-3.0-or-later
"""WebP pictures as bytes, decoded by Pillow: what `blender_addon.webp` is in Blender."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError


def decode_webp(data: bytes) -> np.ndarray:  # [height, width, 4] uint8, row by row from above
    """The pixels of a WebP picture.

    Raises:
        ValueError: it is none, or damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            return np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError("No WebP picture.") from error
