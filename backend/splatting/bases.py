# SPDX-License-Identifier: GPL-3.0-or-later
"""The motion as SE(3) bases: rigid poses of control points, fitted as short series in time.

Each control point moves freely. Joints, if there are any, move it beside that: they turn it about the points through
which it hangs on the middle of the subject, and shift it with the whole (`joints`).

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
from backend.splatting.joints import carried, make_joints
from backend.splatting.losses import rigidity, spectral_prior
from backend.splatting.motion import (
    ROTATION_GAIN,
    TimeBasis,
    blend,
    effective_coefficients,
    no_motion,
    offsets_at,
    poses_of,
    refined,
    to_basis_motion,
)
from blender_addon.contract.clip import BasisMotion


class BasesMotion:
    """Poses of control points on Gaussians at `rest_means` [N, 3], and their blend per Gaussian."""

    def __init__(
        self,
        rest_means: Tensor,
        basis: TimeBasis,
        config: ConstructConfig,
        *,
        jointed: bool = False,
        shift: Tensor | None = None,
    ) -> None:
        """Nothing moves yet, except the whole by `shift` [3, J] (clip space), if it has joints and that is given."""
        self.config, self.basis = config, basis
        device = rest_means.device
        self.control = make_control_points(rest_means.cpu().numpy(), config.control_points).to(device)
        count, functions = len(self.control.points), len(basis.frequencies)
        self.coefficients = no_motion(count, basis).to(device).requires_grad_()
        self.joints = make_joints(self.control) if jointed else None
        if jointed:
            self.turns = torch.zeros(count, 3, functions, device=device, requires_grad=True)
            shift = torch.zeros(3, functions, device=device) if shift is None else shift.to(device)
            self.shift = (shift * basis.frequencies_on(device)).requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        """What an optimiser changes, by name. All are kept times frequency: slow functions move first under Adam."""
        jointed = {} if self.joints is None else {"turns": self.turns, "shift": self.shift}
        return {"coefficients": self.coefficients, **jointed}

    def load(self, parameters: dict[str, Tensor]) -> None:
        """Take over the values of `parameters`, as `parameters()` gave them."""
        with torch.no_grad():
            for name, tensor in self.parameters().items():
                tensor.copy_(parameters[name])

    def rates(self) -> dict[str, float]:
        """Adam's step for each of the parameters, while the fit is not far."""
        rate = self.config.motion_rate
        return {"coefficients": rate, "turns": self.config.joint_rate * rate, "shift": rate}

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
        return Moved(*blend(self._poses(times), gaussians.means, gaussians.quats, index, weights), gaussians.scales)

    def prior(self, progress: float, rng: np.random.Generator) -> Tensor:
        """What the motion as a whole costs, when `progress` (0..1) of its fit is done.

        Rigidity is asked for at times drawn from `rng`.
        """
        config, coefficients = self.config, self.coefficients
        times = torch.from_numpy(rng.random(config.rigidity_times, np.float32)).to(
            coefficients.device, non_blocking=True
        )
        smooth = spectral_prior(effective_coefficients(coefficients, self.basis), self.basis, self.joints is None)
        if self.joints is not None:
            turns, shift = self._jointed()
            smooth = (
                smooth
                + config.joint_weight * _price(turns, self.basis)
                + config.shift_weight * _price(shift, self.basis)
            )
        smooth = config.spectral_weight * config.spectral_decay**progress * smooth
        return smooth + rigidity(self._poses(times), self.control, config.rigidity_length, config.rigidity_turn)

    def to_clip(self, frame_times: Tensor, gaussians: GaussianParameters) -> BasisMotion:
        """The motion at `frame_times` [T] as a clip keeps it."""
        control = self.control
        if self.config.refine_weights:
            control = replace(control, weights=refined(control.weights, gaussians.weight_offsets))
        return to_basis_motion(self._poses(frame_times), control)

    def _poses(self, times: Tensor) -> Tensor:  # [T] -> [T, B, 16]
        offsets = offsets_at(effective_coefficients(self.coefficients, self.basis), self.basis, times)
        if self.joints is not None:
            turns, shift = (offsets_at(series, self.basis, times) for series in self._jointed())
            offsets = offsets + carried(self.joints, turns) + torch.nn.functional.pad(shift, (0, 3))[:, None]
        return poses_of(offsets, self.control)

    def _jointed(self) -> tuple[Tensor, Tensor]:
        """Series of the joints' turns [B, 3, J] (rho) and of the whole's shift [3, J] (clip space)."""
        frequencies = self.basis.frequencies_on(self.turns.device)
        return self.turns * ROTATION_GAIN / frequencies, self.shift / frequencies


def _price(series: Tensor, basis: TimeBasis) -> Tensor:  # [..., J] -> []
    """As in `losses.spectral_prior`, summed: a limb has one joint that moves it, however many points it has."""
    return (series.square() * (basis.frequencies_on(series.device) ** 4 - 1).clamp(min=0)).sum()
