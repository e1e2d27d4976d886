# SPDX-License-Identifier: GPL-3.0-or-later
"""How a small 4DM does on clips that it has never seen, while it trains: a few figures and a contact sheet."""

import numpy as np
import torch
from torch import Tensor

from backend.evaluation.metrics import foreground_psnr
from backend.models.diffusion import add_noise, denoise
from backend.models.small_fourdm import to_latents, to_pictures
from backend.pictures import over_white, tiled
from backend.training.batches import GuessedViewBatch
from backend.training.small_fourdm_task import conditions, importance

SAMPLES = 12  # of each split, always the same
SHOWN = 4  # of these on the sheet
STEPS = 16


@torch.no_grad()
def validate(
    network: torch.nn.Module, unseen: GuessedViewBatch, seen: GuessedViewBatch, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """Figures and a sheet [H, W, 3] uint8: per unseen subject a row of true views, of inflated and of generated ones.

    Figures: error_t1, error_t05: squared error of one step from pure and from half noise, relative to that of the
    inflated pictures, mean of the clips (1: nothing learned); seen_...: the same for clips of the training split;
    psnr_guess, psnr_views: of the views that are not the input's, inflated and sampled, unseen clips, dB.
    """
    figures = one_step_errors(network, unseen, seed)
    figures |= {f"seen_{name}": value for name, value in one_step_errors(network, seen, seed).items()}
    few = unseen.head(SHOWN)
    made = sample(network, few, STEPS, seed)
    figures["psnr_guess"], figures["psnr_views"] = (_psnr(few.views, views) for views in (few.guess, made))
    return figures, sheet(few.views, few.guess, made)


def one_step_errors(network: torch.nn.Module, batch: GuessedViewBatch, seed: int) -> dict[str, float]:
    """How far one step gets from pure and from half noise."""
    clean, given, weight = to_latents(batch.views), conditions(batch), importance(batch)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    error = lambda views: (weight * (views - clean).square()).flatten(1).mean(1)  # noqa: E731
    known = error(given.guess)
    errors = {}
    for name, share in (("error_t1", 1.0), ("error_t05", 0.5)):
        timestep = torch.full((len(clean),), share, device=clean.device)
        predicted = network(add_noise(clean, noise, timestep), timestep, given).float()
        errors[name] = float((error(predicted) / known).mean())
    return errors


def sample(network: torch.nn.Module, batch: GuessedViewBatch, steps: int, seed: int) -> Tensor:
    """Views [B, T, N, 4, H, W], sampled without guidance."""
    given, device = conditions(batch), batch.views.device
    predict = lambda noisy, timestep: network(noisy, timestep.expand(len(noisy)), given).float()  # noqa: E731
    show = lambda clean: np.empty(0)  # noqa: E731
    return to_pictures(denoise(tuple(batch.views.shape), predict, "ddim", steps, seed, None, show, device))


def sheet(*rows: Tensor) -> np.ndarray:
    """Views [B, T, N, 4, H, W] at the first and the last time, under each other, clip by clip, on white."""
    ends = [0, -1] if rows[0].shape[1] > 1 else [0]
    shown = torch.stack([views[:, ends].flatten(1, 2) for views in rows], 1).flatten(0, 1)  # [B R, C, 4, H, W]
    return tiled(over_white(shown.movedim(2, -1)))


def _psnr(truth: Tensor, views: Tensor) -> float:
    """Mean over pictures, each over the area of its outlines."""
    rows = [one.flatten(0, 2).permute(0, 2, 3, 1).float().cpu() for one in (truth, views)]
    return float(foreground_psnr(*rows).mean())
