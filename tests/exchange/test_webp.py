# SPDX-License-Identifier: GPL-3.0-or-later
"""WebP pictures keep all their bytes, also where they are transparent."""

import io

import numpy as np
import pytest
from PIL import Image

from backend.exchange.webp import decode_webp


def test_pixels_stay_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 4), np.uint8)
    pixels[:4, :, 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decode_webp(file.getvalue()), pixels)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_picture_is_refused(data) -> None:
    with pytest.raises(ValueError, match="No WebP picture"):
        decode_webp(data)
