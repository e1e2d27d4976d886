# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the small 4DM (4Diffusion, section 3.2): first the network of single moments, then motion modules on it.

The first run has no `base_run` and samples of one moment; the second names the first and freezes what it has learned.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from backend.models.diffusion import add_noise
from backend.models.small_fourdm import SmallConditions, SmallFourDM, SmallFourDMConfig, to_latents
from backend.models.text import Vocabulary
from backend.progress import UserError
from backend.training.batches import GuessedViewBatch
from backend.training.checkpoint import digest_of_average, read_average
from backend.training.config import TrainConfig, resized
from backend.training.timesteps import timesteps

BEYOND = 0.4  # weight of what lies far from the subject, beside the subject's


def build(config: TrainConfig, vocabulary: Vocabulary) -> SmallFourDM:
    """The network, freshly initialised; its base as `config.base_run` has left it, and frozen, if there is one.

    Raises:
        UserError: there is no such size, or no such run; or several moments of a sample and no base to train them on.
    """
    if config.times > 1 and not config.base_run:
        hint = "Name the run of the base: --set 'base_run=\"RUN\"' (docs/training.md)."
        raise UserError("no_base", "Motion modules are trained on a base, and none is named.", hint)
    sizes = SmallFourDMConfig(vocabulary=len(vocabulary.words), motion=bool(config.base_run))
    network = SmallFourDM(resized(sizes, config.network))
    if config.base_run:
        try:
            lacking, unknown = network.load_state_dict(read_average(config.base_run), strict=False)
        except RuntimeError as error:
            raise UserError("runs_differ", f"The network of {config.base_run} has other sizes.") from error
        if unknown or any("motion" not in name for name in lacking):
            raise UserError("runs_differ", f"{config.base_run} is not the base of this network.")
        network.freeze_base()
    return network


def check_base(config: TrainConfig, about: dict) -> None:
    """Whether the base of `config` is that on which the motion modules that `about` tells of were trained.

    Raises:
        UserError: it is another one, or there is none.
    """
    known = about.get("base_digest")
    if config.base_run and known and digest_of_average(config.base_run) != known:
        raise UserError(
            "other_base",
            f"The motion modules were not trained on the base in {config.base_run}.",
            "Name the base that they were trained on, in the state that it had then.",
        )


def loss(
    network: torch.nn.Module, batch: GuessedViewBatch, config: TrainConfig, noise: torch.Generator
) -> dict[str, Tensor]:
    """|x0 - x0_theta|^2 of the views, all times and views of a clip at one noise level (Eq. 7, for clean latents).

    In a share `drop_all` of the clips image and cameras are dropped, together; in a share `drop_text` the words.
    """
    size, device = len(batch.tokens), batch.tokens.device
    clean = to_latents(batch.views)
    fate = torch.rand(size, generator=noise, device=device)
    worded = torch.rand(size, generator=noise, device=device) >= config.drop_text
    given = conditions(batch)
    given = replace(given, tokens=given.tokens * worded[:, None])
    timestep = timesteps(torch.rand(size, generator=noise, device=device))
    eps = torch.randn(clean.shape, generator=noise, device=device)
    predicted = network(add_noise(clean, eps, timestep), timestep, given.without(fate >= config.drop_all)).float()
    weight = importance(batch)
    return {"loss": (weight * (predicted - clean).square()).mean() / weight.mean()}


def conditions(batch: GuessedViewBatch) -> SmallConditions:
    """All that is known of the clips."""
    return SmallConditions(to_latents(batch.video), to_latents(batch.guess), batch.camera_to_world, batch.tokens)


def importance(batch: GuessedViewBatch) -> Tensor:  # [B, T, N, 1, H, W]
    """How much each pixel matters: most of a picture is background, and right from the start."""
    near = torch.maximum(batch.views[:, :, :, 3:], batch.guess[:, :, :, 3:])
    return BEYOND + functional.max_pool2d(near.flatten(0, 2), 5, 1, 2).unflatten(0, near.shape[:3])
