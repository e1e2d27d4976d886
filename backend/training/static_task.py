# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the static network: a text, an image of the first view, or both -> the subject from all sides."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from backend.models.diffusion import add_noise
from backend.models.small import SmallConfig, SmallVideoNet
from backend.models.text import Vocabulary
from backend.training.timesteps import timesteps

if TYPE_CHECKING:
    from backend.training.batches import Batch
    from backend.training.config import TrainConfig

PIXEL_CHANNELS = 16  # RGBA in 2 x 2 blocks


def build(config: "TrainConfig", vocabulary: Vocabulary) -> SmallVideoNet:
    """The network, freshly initialised."""
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in config.network.items()}
    channels = {"latent_channels": PIXEL_CHANNELS, "condition_channels": PIXEL_CHANNELS + 1}
    return SmallVideoNet(SmallConfig(**channels, vocabulary=len(vocabulary.words), magnitude=False, **sizes))


def loss(network: torch.nn.Module, batch: "Batch", config: "TrainConfig", noise: torch.Generator) -> dict[str, Tensor]:
    """Denoising loss on static orbits, in pixels."""
    size, device = len(batch.tokens), batch.tokens.device
    pixels = functional.pixel_unshuffle(batch.static.flatten(0, 1), 2).unflatten(0, batch.static.shape[:2])
    clean = pixels * 2 - 1

    fate = torch.rand(size, generator=noise).to(device)
    shown = (fate >= config.drop_all) & (fate >= config.drop_image)  # the first so many see neither, then text alone
    worded = (fate >= config.drop_all) & (fate < 1 - config.drop_text)  # the last so many see the image alone
    seen = shown[:, None, None, None, None].to(clean)
    flag = seen.expand(-1, clean.shape[1], 1, *clean.shape[-2:])
    condition = torch.cat([clean[:, :1].expand_as(clean) * seen, flag], 2)

    timestep = timesteps(torch.rand(size, generator=noise).to(device))
    eps = torch.randn(clean.shape, generator=noise).to(device)
    times = torch.zeros_like(batch.times)
    noisy = add_noise(clean, eps, timestep)
    predicted = network(
        noisy, condition, timestep, times, batch.camera_to_world, batch.tokens * worded[:, None]
    ).float()

    alpha = functional.avg_pool2d(batch.static[:, :, 3:].flatten(0, 1), 2)
    weight = 0.15 + functional.max_pool2d(alpha, 3, 1, 1).unflatten(0, clean.shape[:2])
    error = (weight * (predicted - clean).square()).mean() / weight.mean()
    return {"loss": error, "all_noise": error.detach() * float(timestep[-1] == 1)}
