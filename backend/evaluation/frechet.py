# SPDX-License-Identifier: GPL-3.0-or-later
"""Frechet distance between two sets of videos, as in FVD (Unterthiner et al. 2018), on stated features.

FVD proper takes the features of an I3D network. Where its weights are not at hand, `handcrafted_features` stand in:
histograms of oriented gradients in space and of changes over time. Such a distance has its own scale and its own
name, `fvd_handcrafted`; it compares runs with each other and with "no motion", never with published FVD values.
"""

import numpy as np
import torch
from torch import Tensor

WINDOW, STRIDE = 8, 4  # frames of one feature vector, and from one to the next
CELLS = 2  # the picture is divided into 2 x 2
ORIENTATIONS = 4
LUMINANCE = (0.2126, 0.7152, 0.0722)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:  # [N, D], [M, D]
    """Squared Frechet distance between Gaussians fitted to two sets of features; 0 for the same set.

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) with covariances A, B (Dowson and Landau 1982).
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError("a Frechet distance needs two videos or more on each side")
    difference = a.mean(axis=0) - b.mean(axis=0)
    covariance_a, covariance_b = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # (A B)^(1/2) has the same trace as (A^(1/2) B A^(1/2))^(1/2), which is symmetric
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(min=0)).sum()
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return float(max(distance, 0.0))


def fvd_handcrafted(videos: Tensor, truth: Tensor) -> float:  # [N, T, H, W, 3], [M, T, H, W, 3], 0..1
    """Frechet distance of handcrafted features, each divided by its standard deviation over the truth."""
    return handcrafted_distance(handcrafted_features(videos), handcrafted_features(truth))


def handcrafted_distance(features: np.ndarray, truth: np.ndarray) -> float:  # [N, 76], [M, 76]
    """`fvd_handcrafted` of features that have been computed already."""
    scale = truth.std(axis=0) + 1e-4
    return frechet_distance(features / scale, truth / scale)


def handcrafted_features(videos: Tensor) -> np.ndarray:  # [N, T, H, W, 3] 0..1 -> [N * windows, 76]
    """Colour, edges by orientation and changes over time by orientation, per quarter of the picture, in two scales.

    One vector for each window of 8 frames (every 4th start). Per cell: mean colour (3), and in full and half size
    mean |spatial gradient| and mean |change to the next frame|, each sorted by the gradient's orientation into 4 bins.
    """
    count, frames = videos.shape[:2]
    starts = range(0, max(frames - WINDOW, 0) + 1, STRIDE)
    colour = _cells(videos)  # [N, T, cells, 3]
    parts = [_over_windows(colour, starts)]
    luminance = videos @ videos.new_tensor(LUMINANCE)
    for _ in range(2):
        parts += [_over_windows(_cells(values), starts) for values in _by_orientation(luminance)]
        luminance = torch.nn.functional.avg_pool2d(luminance, 2)
    return torch.cat([part.reshape(count * len(starts), -1) for part in parts], dim=1).double().numpy()


def _by_orientation(luminance: Tensor) -> tuple[Tensor, Tensor]:  # [N, T, H, W] -> 2 x [N, T - 1, H, W, 4]
    change = (luminance[:, 1:] - luminance[:, :-1]).abs()
    down, across = torch.gradient(luminance[:, :-1], dim=(2, 3))
    angle = torch.atan2(down, across) % torch.pi  # a dark-to-light edge counts as a light-to-dark one
    bins = (angle / torch.pi * ORIENTATIONS).long().clamp(max=ORIENTATIONS - 1)
    one_hot = torch.nn.functional.one_hot(bins, ORIENTATIONS).to(luminance.dtype)
    return torch.hypot(down, across)[..., None] * one_hot, change[..., None] * one_hot


def _cells(values: Tensor) -> Tensor:  # [N, T, H, W, C] -> [N, T, cells, C]
    count, frames, _, _, channels = values.shape
    pooled = torch.nn.functional.adaptive_avg_pool2d(values.flatten(0, 1).permute(0, 3, 1, 2), CELLS)
    return pooled.flatten(2).transpose(1, 2).reshape(count, frames, -1, channels)


def _over_windows(values: Tensor, starts: range) -> Tensor:  # [N, T, ...] -> [N, windows, ...]
    return torch.stack([values[:, start : start + WINDOW].mean(dim=1) for start in starts], dim=1)
