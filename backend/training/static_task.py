# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the static network: a text, a picture of the first view, or both -> the subject as a colored volume."""

import torch
from torch import Tensor
from torch.nn import functional

from backend.models.diffusion import add_noise
from backend.models.text import Vocabulary
from backend.models.volume import VolumeConfig, VolumeNet
from backend.training.batches import StillBatch
from backend.training.config import TrainConfig, resized

PURE_NOISE = 0.7  # of the samples


def noise_levels(uniform: Tensor) -> Tensor:
    """Shares of the diffusion time [B] from uniform numbers [B]: mostly 1.

    Through less noise the outline of a volume of 48 ** 3 numbers shows at once, and a network that is trained there
    learns to smooth what it sees and not to listen to the words.
    """
    return torch.where(uniform < PURE_NOISE, torch.ones_like(uniform), uniform.sqrt())


def build(config: TrainConfig, vocabulary: Vocabulary) -> VolumeNet:
    """The network, freshly initialised.

    Raises:
        UserError: there is no such size.
    """
    return VolumeNet(resized(VolumeConfig(vocabulary=len(vocabulary.words)), config.network))


def loss(network: torch.nn.Module, batch: StillBatch, config: TrainConfig, noise: torch.Generator) -> dict[str, Tensor]:
    """Denoising loss on volumes."""
    size, device = len(batch.tokens), batch.tokens.device
    clean = batch.volume * 2 - 1
    fate = torch.rand(size, generator=noise, device=device)
    shown = (fate >= config.drop_all) & (fate >= config.drop_image)  # the first so many see neither, then text alone
    worded = (fate >= config.drop_all) & (fate < 1 - config.drop_text)  # the last so many see the image alone
    timestep = noise_levels(torch.rand(size, generator=noise, device=device))
    eps = torch.randn(clean.shape, generator=noise, device=device)
    noisy = add_noise(clean, eps, timestep)
    predicted = network(noisy, batch.first, shown.to(clean), timestep, batch.tokens * worded[:, None]).float()

    # Most of a volume is empty, and far from the subject that is easy to see.
    near = functional.max_pool3d(batch.volume[..., 3][:, None], 5, 1, 2)[:, 0, ..., None]
    weight = 0.1 + near
    error = (weight * (predicted - clean).square()).mean((1, 2, 3, 4)) / weight.mean((1, 2, 3, 4))
    inside, found = batch.volume[..., 3] > 0.5, predicted[..., 3] > 0
    overlap = (inside & found).sum((1, 2, 3)) / (inside | found).sum((1, 2, 3)).clamp_min(1)
    return {"loss": error.mean(), "overlap": overlap.mean()}
