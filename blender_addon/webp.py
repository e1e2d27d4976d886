# SPDX-License-Identifier: GPL-3.0-or-later
"""WebP pictures as bytes, decoded by Blender."""

import bpy
import numpy as np


def decode_webp(data: bytes) -> np.ndarray:  # [height, width, 4] uint8, row by row from above
    """The pixels of a WebP picture as they lie in it: channels are not multiplied by alpha, nor converted.

    Raises:
        ValueError: it is none, or damaged.
    """
    image = bpy.data.images.new("kinesplat", 1, 1)
    try:
        image.colorspace_settings.name = "Non-Color"
        image.alpha_mode = "CHANNEL_PACKED"
        image.pack(data=data, data_len=len(data))
        image.source = "FILE"  # that is, from what is packed
        width, height = image.size
        if image.channels != 4 or not width * height:
            raise ValueError("No WebP picture.")
        pixels = np.empty(width * height * 4, np.float32)
        image.pixels.foreach_get(pixels)
    finally:
        bpy.data.images.remove(image)
    return np.round(pixels * 255).astype(np.uint8).reshape(height, width, 4)[::-1]
