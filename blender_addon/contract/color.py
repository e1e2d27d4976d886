# SPDX-License-Identifier: GPL-3.0-or-later
"""sRGB coding and linear light (IEC 61966-2-1). Needs numpy alone."""

import numpy as np


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """The light that sRGB-coded numbers stand for; numbers below 0 count as 0."""
    values = np.maximum(values, 0)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    """sRGB-coded numbers for light; numbers below 0 count as 0."""
    values = np.maximum(values, 0)
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * np.maximum(values, 1e-9) ** (1 / 2.4) - 0.055)
