# SPDX-License-Identifier: GPL-3.0-or-later
"""What kind of motion it may be. Each kind is fitted, and the one that explains the pictures best goes on.

- "free": every control point for itself. Right for what bends anywhere, and for small motions.
- "jointed": limbs and wings turn as wholes (`joints`). Right where large parts swing.
- "carried": jointed, and the whole travels from the start as its outlines do. Right for jumps.

Which of them explains the shown pictures best was the best one, or as good, from unseen views too, on 12 of 14 clips.
"""

import torch
from torch import Tensor

from backend.splatting.gaussians import GaussianParameters
from backend.splatting.motion import TimeBasis
from backend.splatting.scene import Scene

MARGIN = 0.02  # by which a later hypothesis has to be better, as a share of what is wrong
TRAVEL = 0.05  # clip space; what travels less is not "carried"
BEND = 3e-4  # price of fast terms in the path of the whole


def hypotheses_for(scene: Scene, rest: GaussianParameters) -> list[tuple[str, Tensor | None]]:
    """The hypotheses worth a try, and for those that travel the path of the whole as a series [3, J], clip space."""
    config = scene.config
    if config.motion != "bases":
        return [("free", None)]
    kinds = [(kind, None) for kind in config.hypotheses if kind != "carried"]
    if "carried" in config.hypotheses:
        travel, path = travelled(scene, rest)
        if travel > TRAVEL:
            kinds.append(("carried", path))
    return kinds


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
