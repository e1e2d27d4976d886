# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture of one subject: read, cut out, and set as orbits show theirs."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from backend.progress import UserError
from backend.video.stills import upright_srgb
from blender_addon.contract.arrays import BadFileError

MAX_IMAGE_PIXELS = 50_000_000
IMAGE_PIXELS = 2048  # wide or high: of a picture as it is kept; the networks see far fewer
MAX_UNEVEN = 24  # of 255: how far a plain background may be from one color
MIXED_PIXELS = 3  # of an outline, as JPEG keeps colors
FRAMED_SHARE = 0.7  # a subject of longest side 1, in the middle of the picture of a camera at distance 2


def framed(image: np.ndarray, share: float = FRAMED_SHARE) -> np.ndarray:  # [S, S, 4] uint8
    """A subject [H, W, 4] with straight alpha, cut out and set as orbits show theirs: in the middle, with a margin.

    share: of the picture's side that it takes.

    Raises:
        UserError: there is nothing to see, or no background to tell the subject from.
    """
    if image[..., 3].min() > 250:
        image = without_background(image)
    rows, columns = np.nonzero(image[..., 3] > 25)
    if len(rows) < 16:
        raise UserError("empty_image", "The image shows nothing.", "Choose an image of one subject, cut out.")
    cut = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    side = int(np.ceil(max(cut.shape[:2]) / share))
    square = np.zeros((side, side, 4), np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return square


def without_background(image: np.ndarray) -> np.ndarray:
    """An opaque image [H, W, 4] with its plain background made transparent.

    The background may be lit from a side, and as noisy as photographs are. What looks like it but is not connected with
    the border stays: white eyes and patches are more common than holes. The outline, in which both are mixed, takes
    the colors beside it.

    Raises:
        UserError: its border is not of one color.
    """
    color = image[..., :3].astype(np.float32)
    height, width = color.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    plane = np.stack([np.ones_like(rows), rows, columns], axis=-1)
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    off = np.abs(color[border] - np.median(color[border], axis=0)).max(-1)
    if np.percentile(off, 90) > MAX_UNEVEN:
        raise UserError(
            "no_cutout",
            "The subject of the image cannot be told from its background.",
            "Choose a picture with transparency, or one with a plain background.",
        )
    even = off <= MAX_UNEVEN
    background = plane @ np.linalg.lstsq(plane[border][even], color[border][even], rcond=None)[0]
    distance = np.abs(color - background).max(-1)
    noise = np.percentile(distance[border][even], 99)
    alpha = np.clip((distance - max(8, 1.5 * noise)) / 16, 0, 1)
    alpha[~ndimage.binary_propagation(border & (alpha < 1), mask=alpha < 1)] = 1
    inside = ndimage.distance_transform_edt(alpha == 1) > MIXED_PIXELS
    apart, nearest = ndimage.distance_transform_edt(~inside, return_indices=True)
    beside = np.where((apart <= 2 * MIXED_PIXELS)[..., None], image[tuple(nearest)], image)
    return np.concatenate([beside[..., :3], (alpha * 255).astype(np.uint8)[..., None]], -1)


def read_image(path: Path) -> np.ndarray:  # [H, W, 4] uint8
    """A picture with straight alpha, upright and in sRGB; one with more than IMAGE_PIXELS is made smaller.

    Raises:
        BadFileError: it cannot be read, or is too large.
    """
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise BadFileError(f"The image is too large: {image.width} x {image.height} pixels.")
            return np.asarray(upright_srgb(image, IMAGE_PIXELS))
    except BadFileError:
        raise
    except Image.DecompressionBombError as error:
        raise BadFileError(f"The image is too large: above {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels.") from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, OverflowError) as error:
        raise BadFileError("The image cannot be read: it is not a usable PNG, JPEG or WebP.") from error
