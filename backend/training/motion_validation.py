# SPDX-License-Identifier: GPL-3.0-or-later
"""How a motion network does on clips that it has never seen, while it trains: a few figures and a contact sheet.

Frames are the static ones warped by the generated motion: `pipelines/moved_subject.py`, which shows it in use, has to
fit Gaussians to each subject first.
"""

import numpy as np
import torch
from torch import Tensor

from backend.evaluation.metrics import spearman
from backend.models import motion_latents
from backend.models.diffusion import add_noise, denoise
from backend.models.motion_magnitude import frames_magnitude
from backend.pictures import over_white, tiled
from backend.training.batches import Batch
from backend.training.motion_task import condition, importance

SAMPLES = 8  # of each split, always the same
SHOWN = 3  # of these on the sheet
SHEET_STEPS = 24
CONTROL_STEPS = 8  # enough to rank magnitudes
MAGNITUDES = (0.5, 2.0, 8.0)
COLUMNS = 8  # frames on the sheet


@torch.no_grad()
def validate(network: torch.nn.Module, unseen: Batch, seen: Batch, seed: int) -> tuple[dict[str, float], np.ndarray]:
    """Figures and a sheet [H, W, 3] uint8: per unseen subject a row of static, of true and of generated frames.

    Figures: error_t1, error_t05: squared error of the motion latents of unseen clips, estimated in one step from pure
    and from half noise, relative to their square, mean of the clips (1: nothing learned); seen_error_t1,
    seen_error_t05: the same for clips of the training split; magnitude_rank, magnitude_ratio: rank correlation of the
    motion magnitudes asked for and measured, and median of measured / asked (the first is good from the start, as the
    size of latents follows the magnitude asked for).
    """
    figures = one_step_errors(network, unseen, seed)
    figures |= {f"seen_{name}": value for name, value in one_step_errors(network, seen, seed).items()}

    few = unseen.head(SHOWN)
    asked = torch.tensor(MAGNITUDES, device=few.static.device)
    measured = []
    for value in asked:
        wanted = value.expand(SHOWN)
        measured.append(frames_magnitude(sample(network, few, wanted, CONTROL_STEPS, seed), few.static).cpu())
    wanted, found = asked.cpu()[:, None].expand(-1, SHOWN), torch.stack(measured)
    figures["magnitude_rank"] = spearman(wanted.flatten().numpy(), found.flatten().numpy())
    figures["magnitude_ratio"] = float((found / wanted).median())
    generated = sample(network, few, frames_magnitude(few.moving, few.static), SHEET_STEPS, seed)
    return figures, sheet(few.static, few.moving, generated)


def one_step_errors(network: torch.nn.Module, batch: Batch, seed: int) -> dict[str, float]:
    """How far one step gets from pure and from half noise."""
    magnitude = frames_magnitude(batch.moving, batch.static)
    clean = motion_latents.encode(batch.flow, batch.moving, batch.static, magnitude)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    weight = importance(batch.moving, batch.static)

    def mean_of(latents: Tensor) -> Tensor:  # [B]: mean square where it matters
        return (weight * latents.square()).mean((1, 2, 3, 4)) + 1e-6

    errors = {}
    for name, share in (("error_t1", 1.0), ("error_t05", 0.5)):
        timestep = torch.full((len(clean),), share, device=clean.device)
        predicted = predict(network, batch, magnitude, add_noise(clean, noise, timestep), timestep)
        errors[name] = float((mean_of(predicted - clean) / mean_of(clean)).mean())
    return errors


def predict(network: torch.nn.Module, batch: Batch, magnitude: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
    """Clean latents, all conditions given."""
    known = torch.ones(len(noisy), dtype=torch.bool, device=noisy.device)
    given = (timestep, batch.times, batch.camera_to_world, batch.tokens, magnitude, known)
    return network(noisy, condition(batch.static), *given).float()


def sample(network: torch.nn.Module, batch: Batch, magnitude: Tensor, steps: int, seed: int) -> Tensor:
    """Moving frames [B, T, 4, H, W], sampled without guidance."""
    size, frames, _, height, width = batch.static.shape
    shape = (size, frames, motion_latents.CHANNELS, height // 2, width // 2)
    latents = denoise(
        shape,
        lambda noisy, timestep: predict(network, batch, magnitude, noisy, timestep.expand(size)),
        "ddim",
        steps,
        seed,
        None,
        lambda clean: np.empty(0),
        batch.static.device,
    )
    flow = (latents * motion_latents.latent_unit(magnitude))[:, :, : motion_latents.FLOW_CHANNELS]
    return motion_latents.warp(batch.static, flow, batch.viewmats, batch.focal)


def sheet(*rows: Tensor) -> np.ndarray:
    """Orbits [B, T, 4, H, W] under each other, subject by subject, on white: [H', W', 3] uint8."""
    frames = torch.linspace(0, rows[0].shape[1] - 1, COLUMNS).round().long()
    shown = torch.stack([orbit[:, frames] for orbit in rows], 1).flatten(0, 1)  # [B R, C, 4, H, W]
    return tiled(over_white(shown.movedim(2, -1)))
