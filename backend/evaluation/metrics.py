# SPDX-License-Identifier: GPL-3.0-or-later
"""How alike pictures are beside `backend.pictures`: PSNR, overlap of outlines; how well movements follow true ones."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from backend.pictures import over_white

VISIBLE_ALPHA = 0.5


def psnr(a: Tensor, b: Tensor) -> Tensor:  # [V, H, W, C] x 2, 0..1 -> [V]
    """Peak signal-to-noise ratio of each picture in dB, at most 100."""
    error = (a - b).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp(min=1e-10))


def foreground_psnr(a: Tensor, b: Tensor) -> Tensor:  # [V, H, W, 4] premultiplied x 2 -> [V]
    """PSNR over white where the error is spread over the area of both outlines rather than over the whole picture.

    It does not depend on how much of the picture the subject fills.
    """
    error = (over_white(a) - over_white(b)).square().mean(dim=-1).flatten(1).sum(dim=1)
    area = torch.maximum(a[..., 3], b[..., 3]).flatten(1).sum(dim=1).clamp(min=1)
    return -10 * torch.log10((error / area).clamp(min=1e-10))


def alpha_iou(a: Tensor, b: Tensor) -> Tensor:  # [V, H, W] x 2, 0..1 -> [V]
    """Intersection over union of the outlines; 1 where both pictures are empty."""
    inside_a, inside_b = (a > VISIBLE_ALPHA).flatten(1), (b > VISIBLE_ALPHA).flatten(1)
    union = (inside_a | inside_b).sum(dim=1)
    return torch.where(union > 0, (inside_a & inside_b).sum(dim=1) / union.clamp(min=1), torch.ones(len(a)))


def track_error(means: np.ndarray, tracks: np.ndarray) -> float:  # [T, N, 3], [T, M, 3]
    """How far true points are from where the Gaussians beside them at time 0 take them, as a share of the true motion.

    0 is right everywhere, 1 as good as no motion.
    """
    _, nearest = cKDTree(means[0]).query(tracks[0], min(3, means.shape[1]))
    nearest = nearest.reshape(tracks.shape[1], -1)  # [M, 3]
    predicted = means[:, nearest].mean(axis=2) - means[0, nearest].mean(axis=1)
    true = tracks - tracks[0]
    return float(np.linalg.norm(predicted - true, axis=2).mean() / max(np.linalg.norm(true, axis=2).mean(), 1e-9))


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Rank correlation of two lists, ties by mean ranks; 0 where one of them does not vary."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("rank correlation needs two lists of the same length, of two values or more")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    from scipy.stats import spearmanr  # a second of every start

    return float(spearmanr(a, b).statistic)
