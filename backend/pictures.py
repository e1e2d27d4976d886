# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures as tensors: on white, side by side to look at, and how alike two of them are."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # as in Wang et al. 2004
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def premultiplied(pictures: np.ndarray) -> Tensor:  # [..., 4] uint8, straight alpha -> float32 0..1
    """Pictures as networks and metrics take them."""
    images = torch.from_numpy(np.array(pictures)).float() / 255
    images[..., :3] *= images[..., 3:]
    return images


def straight(images: np.ndarray) -> np.ndarray:  # [..., 4] premultiplied, 0..1 -> uint8, straight alpha
    """The reverse of `premultiplied`: pictures as files and frames hold them."""
    return np.rint(255 * np.concatenate([colors(images), images[..., 3:].clip(0, 1)], -1)).astype(np.uint8)


def colors(images: np.ndarray) -> np.ndarray:  # [..., 4] premultiplied, 0..1 -> [..., 3], straight
    """What colors pictures have where there is something."""
    return (images[..., :3] / np.maximum(images[..., 3:], 1e-3)).clip(0, 1)  # what is thinner is nothing in 8 bits


def on_white(images: Tensor, channels: int = -1) -> Tensor:  # [..., 4] premultiplied -> [..., 3]
    """Pictures on white; differentiable everywhere. `channels`: which dimension holds these."""
    color, alpha = images.split([3, 1], channels)
    return color + 1 - alpha


def over_white(images: Tensor, channels: int = -1) -> Tensor:  # [..., 4] premultiplied -> [..., 3]
    """The same within 0..1, to be looked at and compared."""
    return on_white(images, channels).clamp(0, 1)


def tiled(pictures: Tensor) -> np.ndarray:  # [R, C, H, W, 3] 0..1 -> [R H, C W, 3] uint8
    """Rows and columns of pictures as one, without gaps."""
    shown = pictures.detach().float().cpu().clamp(0, 1).permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    return (shown * 255).round().byte().numpy()


def ssim(a: Tensor, b: Tensor) -> Tensor:  # [V, H, W, C] x 2, 0..1 -> [V]
    """Structural similarity of each picture (Wang et al. 2004); differentiable.

    Gaussian window of 11 pixels, full windows only.
    """
    channels = a.shape[-1]
    offsets = torch.arange(SSIM_WINDOW, dtype=a.dtype, device=a.device) - SSIM_WINDOW // 2
    line = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    line = line / line.sum()

    def mean(pictures: Tensor) -> Tensor:
        rows, columns = (line.view(1, 1, *shape).expand(channels, 1, *shape) for shape in ((-1, 1), (1, -1)))
        return conv2d(conv2d(pictures, rows, groups=channels), columns, groups=channels)

    a, b = a.movedim(-1, 1), b.movedim(-1, 1)
    mean_a, mean_b = mean(a), mean(b)
    spread_a, spread_b = mean(a * a) - mean_a.square(), mean(b * b) - mean_b.square()
    shared = mean(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + SSIM_C1) * (2 * shared + SSIM_C2)
    likeness = likeness / ((mean_a.square() + mean_b.square() + SSIM_C1) * (spread_a + spread_b + SSIM_C2))
    return likeness.flatten(1).mean(dim=1)


def dssim(a: Tensor, b: Tensor) -> Tensor:  # [V, H, W, C] x 2, 0..1 -> [V]
    """Structural dissimilarity (1 - SSIM) / 2: 0 the same, what is told where LPIPS has no weights."""
    return (1 - ssim(a, b)) / 2
