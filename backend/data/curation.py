# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clips are worth learning from: the paper's curation (Diffusion4D, section 3.2) and bounds on the motion.

The paper compares the front video at times 0, T/4 and T/2: if both structural similarities exceed 0.95 nothing moves,
and below 0.4 the asset is broken or jumps. Its orbit must not leave the picture. The motion magnitude (Eq. 1) has
bounds of ours: what hardly changes the pictures teaches nothing, what changes nearly all of them is no motion.
"""

from dataclasses import dataclass

import numpy as np

from backend.models.motion_magnitude import magnitude_of
from backend.pictures import over_white, premultiplied, ssim

BORDER_ALPHA = 0.5


@dataclass(frozen=True)
class Limits:
    """What is kept."""

    static_ssim: float = 0.95  # the paper's
    broken_ssim: float = 0.4  # the paper's
    least_magnitude: float = 0.05
    most_magnitude: float = 40.0


def front_ssims(front: np.ndarray) -> tuple[float, float]:  # [T, H, W, 4] uint8
    """Structural similarity, on white, of the front video's first frame to those at T/4 and T/2."""
    count = len(front)
    first, quarter, half = (over_white(premultiplied(front[k][None])) for k in (0, count // 4, count // 2))
    return float(ssim(first, quarter)), float(ssim(first, half))


def why_front_is_unfit(front: np.ndarray, limits: Limits) -> str:
    """Why a clip's front video [T, H, W, 4] uint8 rules it out; empty where it does not."""
    if front[..., 3].max() == 0:
        return "nothing is to be seen"
    likeness = front_ssims(front)
    if min(likeness) > limits.static_ssim:
        return "static"
    if min(likeness) < limits.broken_ssim:
        return "broken or jumps"
    return ""


def why_orbit_is_unfit(moving: np.ndarray, static: np.ndarray, limits: Limits) -> str:
    """Why a clip's orbits [T, H, W, 4] uint8 rule it out; empty where they do not."""
    if touches_border(moving) or touches_border(static):
        return "leaves the picture"
    magnitude = magnitude_of(moving, static)
    if magnitude < limits.least_magnitude:
        return "hardly moves"
    if magnitude > limits.most_magnitude:
        return "moves too much"
    return ""


def touches_border(frames: np.ndarray) -> bool:  # [T, H, W, 4] uint8
    """Whether the subject reaches the border of any picture."""
    alpha = frames[..., 3]
    edges = np.concatenate([alpha[:, [0, -1]].ravel(), alpha[:, :, [0, -1]].ravel()])
    return bool(edges.max() > 255 * BORDER_ALPHA)
