# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the scene-flow network: pictures of now and of time 0 -> how far the surface has moved."""

import torch
from torch import Tensor

from backend.models.scene_flow import SceneFlowConfig, SceneFlowNet
from backend.models.text import Vocabulary
from backend.training.batches import FlowBatch
from backend.training.config import TrainConfig, resized

SOFTEST = 0.5  # of coverage: pixels that show less of the subject teach nothing
SPREAD_WEIGHT = 0.05
MOVED = 0.005  # of flow, added to a clip's mean motion where errors are told relative to it


def build(config: TrainConfig, vocabulary: Vocabulary) -> SceneFlowNet:
    """The network, freshly initialised.

    Raises:
        UserError: there is no such size.
    """
    return SceneFlowNet(resized(SceneFlowConfig(), config.network))


def loss(network: torch.nn.Module, batch: FlowBatch, config: TrainConfig, noise: torch.Generator) -> dict[str, Tensor]:
    """Error of the flow where there is surface, relative to the clip's motion; and how well the spread tells it.

    The flow does not learn from the likelihood of its spread: still and easy places would rule it.
    """
    flow, spread = network(batch.moving, batch.near, batch.far, batch.camera_to_world, batch.times)
    pictures = torch.stack([batch.near, batch.far], 2)
    coverage = pictures[:, :, :, 3:]
    inside = (coverage > SOFTEST).float()
    true = torch.stack([batch.near_flow, batch.far_flow], 2) / coverage.clamp_min(SOFTEST)
    error = (flow - true).square().sum(3, keepdim=True).add(1e-8).sqrt()
    motion = _mean(true.square().sum(3, keepdim=True).sqrt(), inside) + MOVED
    near, far = ((_mean(error[:, :, side], inside[:, :, side]) / motion).mean() for side in (0, 1))
    # of three independent Laplace distributions of one spread, by the length of the error
    likelihood = error.detach() / spread + 3 * spread.log()
    nll = _mean(likelihood, inside).mean()
    return {"loss": near + far + SPREAD_WEIGHT * nll, "nll": nll.detach(), "near": near.detach(), "far": far.detach()}


def _mean(values: Tensor, weights: Tensor) -> Tensor:  # [B, ...] -> [B]
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp_min(1)
