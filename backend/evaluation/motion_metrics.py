# SPDX-License-Identifier: GPL-3.0-or-later
"""How alike movements are, where the right answer is not the only one.

A prompt and a still subject do not say with which leg a walk begins. So the error of the pictures is told together
with what no motion at all would score (a *static orbit* repeated), with measures that do not mind the sign or the
exact moment of a movement, and with sharpness, which finds the blurred ghosts that win in squared error.

All pictures: [T, H, W, 4] float premultiplied RGBA in 0..1 of one orbit; frame 0 is time 0 and so is left out.
"""

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

from backend.pictures import over_white

MOVING = 16 / 255  # a pixel moves where any colour channel on white differs by more from the static orbit
STRAY_ALPHA = 0.1  # fainter coverage belongs to no piece
ENERGY_BLUR = 1 / 32  # of the picture's width: standard deviation of the blur of motion energy
ENERGY_BLUR_FRAMES = 1.5  # the same over time


def clip_psnr(a: Tensor, b: Tensor) -> float:
    """PSNR on white in dB of a whole clip: from the mean square over all frames but the first; at most 100.

    Unlike a mean of the frames' values it does not profit from a few frames near time 0 that are almost given.
    """
    error = float((over_white(a) - over_white(b))[1:].square().mean())
    return -10 * np.log10(max(error, 1e-10))


def motion_error(generated: Tensor, truth: Tensor, static: Tensor) -> float:
    """Root mean square of generated - truth on white, per pixel in which the truth moves; 0 is perfect.

    The error is summed over the whole picture and divided by the number of pixels in which the truth differs from
    `static`: motion where there should be none counts in full. With `static` itself as `generated` it is the error of
    "no motion", beside which it must be read. Motion of the right kind in the wrong phase can score worse than none.
    """
    generated, truth, static = (over_white(images)[1:] for images in (generated, truth, static))
    moving = ((truth - static).abs() > MOVING).any(dim=-1).sum().clamp(min=1)
    return float(((generated - truth).square().mean(dim=-1).sum() / moving).sqrt())


def motion_cosine(generated: Tensor, generated_static: Tensor, truth: Tensor, truth_static: Tensor) -> float:
    """Cosine between generated and true residual to the static orbit: 1 the same motion at any strength, 0 unrelated.

    0 where either does not move.
    """
    a = (over_white(generated) - over_white(generated_static))[1:].flatten()
    b = (over_white(truth) - over_white(truth_static))[1:].flatten()
    return float((a @ b) / (a.norm() * b.norm()).clamp(min=1e-9))


def energy_error(generated: Tensor, generated_static: Tensor, truth: Tensor, truth_static: Tensor) -> float:
    """How far it moves elsewhere than the truth does: distance of motion energy / norm of the true energy.

    Motion energy = |frame - static| on white, blurred in space and time, so that neither the sign of a movement nor a
    shift in phase of a frame or two matters. 0 is perfect, "no motion" scores 1, moving in the wrong places more.
    """
    energy = _motion_energy(truth, truth_static)
    return float((_motion_energy(generated, generated_static) - energy).norm() / energy.norm().clamp(min=1e-9))


def sharpness(generated: Tensor, generated_static: Tensor, truth: Tensor, truth_static: Tensor) -> float:
    """Root mean square gradient of the generated frames / of the true ones, where either moves.

    1 as sharp, below it blurred (a subject seen twice at half strength: about 0.7), above it noisy; 1 where nothing
    moves.
    """
    moves = _moves(generated, generated_static) | _moves(truth, truth_static)
    edges = [_squared_gradient(images)[moves].sum() + 1e-6 for images in (generated, truth)]
    return float((edges[0] / edges[1]).sqrt())


def stray(images: Tensor) -> float:
    """Share of the subject that hangs in the air: coverage outside the largest connected piece; mean over frames.

    To be read beside that of the truth, which may consist of several pieces. 0 where nothing is to be seen.
    """
    shares = []
    for alpha in images[1:, ..., 3].numpy():
        pieces, count = label(alpha > STRAY_ALPHA, structure=np.ones((3, 3)))
        sizes = np.bincount(pieces.ravel(), weights=alpha.ravel(), minlength=count + 1)[1:]
        shares.append(1 - sizes.max() / sizes.sum() if count else 0.0)
    return float(np.mean(shares))


def _moves(moving: Tensor, static: Tensor) -> Tensor:  # [T - 1, H, W] bool
    return ((over_white(moving) - over_white(static))[1:].abs() > MOVING).any(dim=-1)


def _motion_energy(moving: Tensor, static: Tensor) -> Tensor:  # [T - 1, H, W]
    energy = (over_white(moving) - over_white(static))[1:].abs().mean(dim=-1)
    for axis, sigma in (
        (0, ENERGY_BLUR_FRAMES),
        (1, ENERGY_BLUR * energy.shape[1]),
        (2, ENERGY_BLUR * energy.shape[2]),
    ):
        energy = _blur(energy, axis, sigma)
    return energy


def _blur(values: Tensor, axis: int, sigma: float) -> Tensor:
    """Gaussian blur along one axis; nothing lies outside."""
    reach = int(np.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=values.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    line = values.movedim(axis, -1)
    blurred = torch.nn.functional.conv1d(
        line.reshape(-1, 1, line.shape[-1]), (kernel / kernel.sum()).view(1, 1, -1), padding=reach
    )
    return blurred.reshape(line.shape).movedim(-1, axis)


def _squared_gradient(images: Tensor) -> Tensor:  # [T - 1, H, W]
    gradients = torch.gradient(over_white(images)[1:], dim=(1, 2))
    return torch.stack(gradients).square().sum(dim=0).mean(dim=-1)
