# SPDX-License-Identifier: GPL-3.0-or-later
"""Densification within a budget, as Markov chain Monte Carlo (Kheradmand et al., "3D Gaussian Splatting as Markov
Chain Monte Carlo", 2024): Gaussians that have faded away move to where others do all the work.

All of it belongs between two steps of the shape's optimizer, and draws from the generator that it is given.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from backend.splatting.gaussians import GaussianParameters
from backend.splatting.motion_torch import rotate

DEAD_OPACITY = 0.05  # below, a Gaussian shows nothing
MOST_COPIES = 20  # of one Gaussian at a time
MAX_OPACITY = 1 - 1e-4
NOISE_SHARPNESS, NOISE_OPACITY = 100.0, 0.005  # Eq. 9 of the paper: noise is for what is nearly invisible


@torch.no_grad()
def densify(
    gaussians: GaussianParameters,
    optimizer: torch.optim.Optimizer,
    number: int,
    rng: np.random.Generator,
) -> Tensor:  # [N'] int64
    """Move dead Gaussians onto live ones, and add others until there are `number`, if they are fewer; in place.

    The live ones are drawn by opacity. A Gaussian and its copies together look as it did alone (Eqs. 7 and 8 of the
    paper); each copy is put aside along the disc, so that gradients can tell them apart. The optimizer forgets about
    all that changed.

    Returns:
        Which of the former Gaussians each of the new ones stems from: who keeps something per Gaussian follows it.
    """
    opacities = gaussians.opacities.cpu().numpy().astype(np.float64)
    count = len(opacities)
    dead = np.flatnonzero(opacities < DEAD_OPACITY)
    chance = np.where(opacities < DEAD_OPACITY, 0.0, opacities)
    added = max(number - count, 0)
    if not chance.any() or len(dead) + added == 0:
        return torch.arange(count, device=gaussians.means.device)
    stems = np.concatenate([np.arange(count), np.zeros(added, np.int64)])
    places = np.concatenate([dead, np.arange(count, count + added)])
    sources = rng.choice(count, len(places), p=chance / chance.sum())
    stems[places] = sources
    copies = np.bincount(sources, minlength=count) + 1
    changed = np.unique(np.concatenate([places, sources]))
    offsets = rng.normal(size=(len(places), 3))

    device = gaussians.means.device
    rows = torch.from_numpy(stems).to(device)
    new = {name: tensor.detach()[rows].clone() for name, tensor in gaussians.tensors().items()}
    touched = torch.from_numpy(changed).to(device)
    shares = torch.from_numpy(np.minimum(copies, MOST_COPIES)[stems[changed]]).to(device)
    scales = gaussians.scales.detach()[rows[touched]]
    alone = gaussians.opacities.detach()[rows[touched]].clamp(max=MAX_OPACITY)
    opacity, factor = shared(alone, shares)
    new["opacity_logits"][touched] = opacity.logit()
    squares = (scales * factor[:, None]).square() - gaussians.blur**2
    # Below the blur there is no scale to shrink; a hundredth of it keeps the logarithm finite.
    new["log_scales"][touched] = squares.clamp(min=max(0.01 * gaussians.blur, 1e-4) ** 2).log() / 2
    moved = torch.from_numpy(places).to(device)
    aside = 0.5 * torch.from_numpy(offsets).to(device, torch.float32) * gaussians.scales.detach()[rows[moved]]
    new["means"][moved] += rotate(normalize(new["quats"][moved], dim=-1), aside)

    for group in optimizer.param_groups:
        name, before = group["name"], group["params"][0]
        after = new[name].requires_grad_()
        state = optimizer.state.pop(before, {})
        for key, moment in state.items():
            if moment.shape == before.shape:
                kept = moment[torch.from_numpy(np.where(np.arange(len(stems)) < count, np.arange(len(stems)), 0))]
                kept[touched] = 0
                state[key] = kept
        optimizer.state[after] = state
        group["params"] = [after]
        setattr(gaussians, name, after)
    return rows


def shared(opacity: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:  # [M], [M] int -> [M], [M]
    """Opacity of each of so many copies that together stand for one Gaussian, and the factor on its scales.

    Eqs. 7 and 8 of the paper: alphas multiply to that of the one in the middle, and the integral stays.
    """
    most = int(copies.max())
    each = 1 - (1 - opacity.double()) ** (1 / copies)
    total = torch.zeros_like(each)
    for i in range(1, most + 1):
        inner = sum(math.comb(i - 1, k) * (-1) ** k * each ** (k + 1) / math.sqrt(k + 1) for k in range(i))
        total += torch.where(copies >= i, inner, 0.0)
    return each.float(), (opacity.double() / total).float()


@torch.no_grad()
def shake(gaussians: GaussianParameters, size: float, rng: np.random.Generator) -> None:
    """Langevin noise on the means of Gaussians that are nearly invisible, along their own axes (Eq. 9); in place."""
    noise = torch.from_numpy(rng.normal(size=gaussians.means.shape)).to(gaussians.means)
    loose = torch.sigmoid(-NOISE_SHARPNESS * (gaussians.opacities - NOISE_OPACITY))[:, None]
    quats = normalize(gaussians.quats, dim=-1)
    inward = rotate(quats * quats.new_tensor([1.0, -1.0, -1.0, -1.0]), noise)
    gaussians.means += size * loose * rotate(quats, gaussians.scales.square() * inward)
