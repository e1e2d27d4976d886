# SPDX-License-Identifier: GPL-3.0-or-later
"""What kind of motion it may be. Each hypothesis is fitted, and the one that explains the pictures best goes on.

How parts move:

- "free": every control point for itself. Right for what bends anywhere, and for small motions.
- "jointed": limbs and wings turn as wholes (`joints`). Right where large parts swing.
- "carried": jointed, and the whole travels from the start as its outlines do. Right for jumps.

And how both sides move (`symmetry`): each for itself, or as in a mirror at the same time, or half a cycle later. These
come first, as what they tell is worth more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.splatting.gaussians import GaussianParameters
from backend.splatting.motion import TimeBasis
from backend.splatting.scene import Scene

MARGIN = 0.02  # by which a later hypothesis has to be better, as a share of what is wrong
# A mirror holds where outlines in it are hardly further off than those that were given, and these than without it. In
# 25 clips the first share was 1.06 to 1.31 where the mirror brought something and 1.45 to 4 where it did not, and the
# second below 1.12; of two mirrors the one with the smaller share was right.
MIRROR_EXCESS = 1.35
MIRROR_COST = 1.2
BEND = 3e-4  # price of fast terms in the path of the whole


@dataclass(frozen=True)
class Hypothesis:
    """How parts move, and after how many cycles the other side does the same: 0, 0.5, or None where it need not."""

    kind: str = "free"
    lag: float | None = None


@dataclass(frozen=True)
class Trial:
    """How well a hypothesis explained the pictures: mean losses over those that count."""

    hypothesis: Hypothesis
    error: float  # of all of them
    outlines: float  # of the outlines that were given
    mirrored: float = 0.0  # of those in the mirror, where there is one

    @property
    def excess(self) -> float:
        """How much worse outlines in the mirror are than the given ones."""
        return self.mirrored / max(self.outlines, 1e-9)


def leader(trials: list[Trial]) -> Trial:
    """The best of the trials so far; the newest may take the lead, and none that has lost it gets it back."""
    best = without = trials[0]
    for trial in trials[1:]:
        if trial.hypothesis.lag == best.hypothesis.lag:
            better = trial.error < (1 - MARGIN) * best.error
        else:
            holds = trial.excess < MIRROR_EXCESS and trial.outlines < MIRROR_COST * without.outlines
            better = holds and (best is without or trial.excess < best.excess)
        best = trial if better else best
    return best


def next_hypothesis(trials: list[Trial], kinds: list[str], lags: list[float]) -> Hypothesis | None:
    """What to try next: the mirrors with the first of the `kinds`, then the other kinds with what holds of those."""
    mirrors = [Hypothesis(kinds[0], lag) for lag in (None, *lags)]
    if len(trials) < len(mirrors):
        return mirrors[len(trials)]
    others = [Hypothesis(kind, leader(trials).hypothesis.lag) for kind in kinds[1:]]
    return next(iter(others[len(trials) - len(mirrors) :]), None)


def kinds_for(scene: Scene, rest: GaussianParameters) -> dict[str, Tensor | None]:
    """How parts may move, and for those that travel the path of the whole as a series [3, J], clip space."""
    kinds: dict[str, Tensor | None] = dict.fromkeys(kind for kind in scene.config.hypotheses if kind != "carried")
    if "carried" in scene.config.hypotheses:
        travel, path = travelled(scene, rest)
        if travel > scene.config.least_travel and _leap(scene, path) > scene.config.least_leap:
            kinds["carried"] = path
    return kinds or {"free": None}


def lags_for(scene: Scene) -> list[float]:
    """After how many cycles the other side may do the same; half of one, only where there is a cycle."""
    return [lag for lag in scene.config.mirrors if lag == 0 or scene.basis.loop]


@torch.no_grad()
def travelled(scene: Scene, rest: GaussianParameters) -> tuple[float, Tensor]:
    """How far outlines are from those of the subject at rest (clip space, mean), and the path [3, J] that follows.

    The path is the smooth series whose projections are nearest to the ways of the outlines' middles.
    """
    pictures, basis = scene.moving[0], scene.basis
    still = torch.cat([pictures.render([view], rest.at_rest(1), rest) for view in range(len(pictures.images))])
    ways = _middles(pictures.images[..., 3]) - _middles(still[..., 3])  # [V, 2] pixels
    centre = rest.means.mean(dim=0)
    depths = pictures.viewmats[:, 2, :3] @ centre + pictures.viewmats[:, 2, 3]
    ways = ways * (depths[:, None] / pictures.Ks[:, [0, 1], [0, 1]])  # clip space
    return float(ways.abs().mean()), _fitted_path(ways, pictures.viewmats[:, :2, :3], basis, scene.times)


def _leap(scene: Scene, path: Tensor) -> float:
    """How far the path [3, J] leads from one time to the next, at most."""
    places = path @ scene.basis(torch.unique(scene.times))
    return float(places.diff(dim=1).norm(dim=0).max())


def _fitted_path(ways: Tensor, axes: Tensor, basis: TimeBasis, times: Tensor) -> Tensor:
    """Ridge regression: ways [V, 2] along axes [V, 2, 3] at times [V] -> [3, J]."""
    functions = basis(times).double()  # [J, V]
    rows = torch.einsum("vac,jv->vacj", axes.double(), functions).flatten(2).flatten(0, 1)  # [2 V, 3 J]
    price = BEND * (basis.frequencies_on(times.device).double() ** 4).clamp(min=0.05).repeat(3) * len(rows) / 48
    solution = torch.linalg.solve(rows.T @ rows + torch.diag(price), rows.T @ ways.double().flatten())
    return solution.view(3, -1).float()


def _middles(outlines: Tensor) -> Tensor:  # [V, H, W] -> [V, 2] pixels, x and y
    total = outlines.sum(dim=(1, 2)).clamp(min=1e-6)
    height, width = outlines.shape[1:]
    x, y = (torch.arange(length, device=outlines.device) + 0.5 for length in (width, height))
    return (
        torch.stack([(outlines.sum(dim=1) * x).sum(dim=1), (outlines.sum(dim=2) * y).sum(dim=1)], dim=1)
        / total[:, None]
    )
