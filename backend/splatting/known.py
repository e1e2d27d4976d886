# SPDX-License-Identifier: GPL-3.0-or-later
"""What motions have in common of which nothing is left to be found."""

import numpy as np
import torch
from torch import Tensor


class KnownMotion:
    """A motion that no fit changes; used as `BasesMotion` is."""

    device: torch.device

    def parameters(self) -> dict[str, Tensor]:
        """None: all is known."""
        return {}

    def load(self, parameters: dict[str, Tensor]) -> None:
        """Nothing: there are none."""

    def rates(self) -> dict[str, float]:
        """None, as there are no parameters."""
        return {}

    def prior(self, progress: float, rng: np.random.Generator) -> Tensor:
        """What the motion costs: nothing."""
        return torch.zeros((), device=self.device)
