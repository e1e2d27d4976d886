# SPDX-License-Identifier: GPL-3.0-or-later
"""Subjects cut out of pictures on a plain background: construction wants alpha, and VideoMV's networks have none.

They paint every subject on the background that they were trained on, grey or white, in nearly one color. What looks
like it and is connected with the border of the picture is background; what looks like it inside the subject stays, as
white or grey parts of subjects are far more common than holes. A hole that one sees through is therefore filled.
"""

import numpy as np
from scipy import ndimage

BORDER = 0.06  # of the picture's side: where only background is expected
OPAQUE = 24 / 255  # distance from the background's color, above which a pixel is subject
CLEAR = 8 / 255  # less alpha than this is none
EDGE = 2  # pixels, next to the background, that may be partly transparent
PLAIN = 24 / 255  # how far the border may stray from one color
SPECK = 0.0005  # of a picture: less is noise, not subject


def cut_out(pictures: np.ndarray) -> tuple[np.ndarray, float]:
    """Pictures with alpha, and the share of them whose background is not plain.

    pictures: [T, H, W, 3] float 0..1. Returns [T, H, W, 4] uint8, straight alpha, transparent pixels black. The
    background's color is measured in each picture, so it may drift from the one that the network was trained on.
    """
    cut = [_cut_out(picture) for picture in np.asarray(pictures, np.float32)]
    return np.stack([picture for picture, _ in cut]), float(np.mean([not plain for _, plain in cut]))


def _cut_out(picture: np.ndarray) -> tuple[np.ndarray, bool]:
    border = max(round(BORDER * min(picture.shape[:2])), 1)
    frame = np.ones(picture.shape[:2], bool)
    frame[border:-border, border:-border] = False
    background = np.median(picture[frame], axis=0)
    distance = np.abs(picture - background).max(-1)
    plain = bool(np.percentile(distance[frame], 75) <= PLAIN)

    alike = distance < OPAQUE
    outer = np.zeros_like(alike)
    outer[[0, -1], :] = outer[:, [0, -1]] = True
    outside = ndimage.binary_propagation(outer & alike, mask=alike)
    subject = ndimage.binary_opening(~outside) & ~outside
    labels, count = ndimage.label(subject)
    sizes = ndimage.sum_labels(subject, labels, range(1, count + 1)) if count else []
    kept = np.isin(labels, 1 + np.flatnonzero(np.asarray(sizes) >= SPECK * subject.size))

    # At the rim a picture mixes subject and background. How much of it is subject is told by its nearest inner color.
    core = ndimage.binary_erosion(kept, iterations=EDGE)
    rim = ndimage.binary_dilation(kept) & ~core
    color, alpha = picture.copy(), kept.astype(np.float32)
    if core.any():
        away, nearest = ndimage.distance_transform_edt(~core, return_indices=True)
        inner = picture[tuple(nearest)]
        span = inner - background
        length = (span**2).sum(-1)
        share = ((picture - background) * span).sum(-1) / np.maximum(length, 1e-6)
        mixed = np.abs(picture - background - share[..., None] * span).max(-1) < 2 * OPAQUE
        told = rim & mixed & (away <= 2 * EDGE) & (length > OPAQUE**2)  # what has no inner color near stays as it is
        alpha = np.where(told, share.clip(0, 1), alpha)
        color = np.where((told & (alpha < 1))[..., None], inner, color)
    alpha = np.where(alpha < CLEAR, 0, alpha)[..., None]
    values = np.concatenate([np.where(alpha > 0, color, 0), alpha], -1).clip(0, 1)
    return (values * 255).round().astype(np.uint8), plain
