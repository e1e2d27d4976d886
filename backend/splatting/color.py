# SPDX-License-Identifier: GPL-3.0-or-later
"""Color spaces of a fit: sRGB-coded or linear light (IEC 61966-2-1), in pictures whose color is multiplied by alpha.

Pictures come sRGB-coded. A clip that is fitted in sRGB is blended as image editors blend; one that is fitted in linear
light is blended as renderers do, and needs no view transform's help.
"""

import torch
from torch import Tensor

TINY_ALPHA = 1e-6


def srgb_to_linear(values: Tensor) -> Tensor:
    """The light that sRGB-coded numbers stand for; numbers below 0 count as 0."""
    values = values.clamp(min=0)
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: Tensor) -> Tensor:
    """sRGB-coded numbers for light; numbers below 0 count as 0."""
    values = values.clamp(min=0)
    return torch.where(values <= 0.0031308, 12.92 * values, 1.055 * values.clamp(min=1e-9) ** (1 / 2.4) - 0.055)


def decoded(images: Tensor, color_space: str) -> Tensor:  # [..., 4] premultiplied, sRGB-coded
    """Pictures in `color_space` ("srgb" or "linear"); it is the color itself that is converted, not color x alpha."""
    return images if color_space == "srgb" else _converted(images, srgb_to_linear)


def encoded(images: Tensor, color_space: str) -> Tensor:  # [..., 4] premultiplied, in `color_space`
    """Pictures of a fit, sRGB-coded: the reverse of `decoded`."""
    return images if color_space == "srgb" else _converted(images, linear_to_srgb)


def _converted(images: Tensor, convert) -> Tensor:
    alpha = images[..., 3:]
    straight = images[..., :3] / alpha.clamp(min=TINY_ALPHA)
    return torch.cat([convert(straight) * alpha, alpha], dim=-1)
