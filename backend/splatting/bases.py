# SPDX-License-Identifier: GPL-3.0-or-later
"""The motion as SE(3) bases: rigid poses of control points, fitted as short series in time.

This is the default of `ConstructConfig.motion`. Every model of the motion offers what `BasesMotion` does; the stages
of the fit know no more about it.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from backend.splatting.config import ConstructConfig
from backend.splatting.control_points import make_control_points
from backend.splatting.gaussians import GaussianParameters, Moved
from backend.splatting.losses import rigidity, spectral_prior
from backend.splatting.motion import (
    TimeBasis,
    blend,
    effective_coefficients,
    no_motion,
    poses_at,
    refined,
    to_basis_motion,
)
from blender_addon.contract.clip import BasisMotion


class BasesMotion:
    """Poses of control points on Gaussians at `rest_means` [N, 3], and their blend per Gaussian."""

    def __init__(self, rest_means: Tensor, basis: TimeBasis, config: ConstructConfig) -> None:
        self.config, self.basis = config, basis
        device = rest_means.device
        self.control = make_control_points(rest_means.cpu().numpy(), config.control_points).to(device)
        self.coefficients = no_motion(len(self.control.points), basis).to(device).requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        """What an optimiser changes, by name."""
        return {"coefficients": self.coefficients}

    def load(self, parameters: dict[str, Tensor]) -> None:
        """Take over the values of `parameters`, as `parameters()` gave them."""
        with torch.no_grad():
            for name, tensor in self.parameters().items():
                tensor.copy_(parameters[name])

    def rates(self) -> dict[str, float]:
        """Adam's step for each of the parameters, while the fit is not far."""
        return {"coefficients": self.config.motion_rate}

    def moved(self, times: Tensor, gaussians: GaussianParameters, chosen: Tensor | None = None) -> Moved:
        """The Gaussians of time 0 at `times` [T], 0..1.

        `chosen`: which of all Gaussians they are; all of them, if it is not given. Differentiable in the parameters
        and the Gaussians. Exactly the Gaussians themselves at time 0.
        """
        index, weights = self.control.index, self.control.weights
        if chosen is not None:
            index, weights = index[chosen], weights[chosen]
        if self.config.refine_weights:
            weights = refined(weights, gaussians.weight_offsets)
        poses = poses_at(self._effective(), self.basis, times, self.control)
        return Moved(*blend(poses, gaussians.means, gaussians.quats, index, weights), gaussians.scales)

    def prior(self, progress: float, rng: np.random.Generator) -> Tensor:
        """What the motion as a whole costs, when `progress` (0..1) of its fit is done.

        Rigidity is asked for at times drawn from `rng`.
        """
        config, effective = self.config, self._effective()
        times = torch.from_numpy(rng.random(config.rigidity_times, np.float32)).to(effective.device, non_blocking=True)
        poses = poses_at(effective, self.basis, times, self.control)
        spectral_weight = config.spectral_weight * config.spectral_decay**progress
        smooth = spectral_weight * spectral_prior(effective, self.basis)
        return smooth + rigidity(poses, self.control, config.rigidity_length, config.rigidity_turn)

    def to_clip(self, frame_times: Tensor, gaussians: GaussianParameters) -> BasisMotion:
        """The motion at `frame_times` [T] as a clip keeps it."""
        control = self.control
        if self.config.refine_weights:
            control = replace(control, weights=refined(control.weights, gaussians.weight_offsets))
        return to_basis_motion(self._effective(), self.basis, frame_times, control)

    def _effective(self) -> Tensor:
        return effective_coefficients(self.coefficients, self.basis)
