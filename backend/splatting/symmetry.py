# SPDX-License-Identifier: GPL-3.0-or-later
"""Symmetry of shape and motion: what one side of the subject shows of the other.

Most things that move are alike on both sides of an upright plane, and so is how they move: wings beat together, and
what the left legs do the right ones do half a cycle later; so bodies wind in swimming and crawling. A picture in the
mirror is then a picture of the same subject, at the same time or half a cycle later, from another side: each moment is
seen from two sides instead of one, and half a cycle after time 0 from all.

Whether that holds is for the fit to say (`hypotheses`); here is where the plane is and what the mirror shows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

POINTS = 1_500  # that tell where the plane is
DIRECTIONS = 30  # of planes that are tried, over half a turn
ROUNDS = 8  # of the refinement of each
TRUSTED = 0.7  # share of the points, those that fit best, which decides: limbs may be anywhere in their swing
LONGEST_TURN = 0.1  # radians, in one round


@dataclass(frozen=True)
class Plane:
    """An upright plane {x: normal . x = offset}, its normal (cos angle, sin angle, 0). Clip space."""

    angle: float
    offset: float

    @property
    def normal(self) -> np.ndarray:  # [3]
        """Unit length."""
        return np.array([np.cos(self.angle), np.sin(self.angle), 0.0])

    def reflected(self, points: np.ndarray) -> np.ndarray:  # [N, 3] -> [N, 3]
        """Points in the mirror."""
        return points - 2 * np.outer(points @ self.normal - self.offset, self.normal)


@dataclass(frozen=True)
class Mirror:
    """A plane in which the motion is mirrored, `lag` cycles later: 0, or 0.5 where the sides take turns."""

    plane: Plane
    lag: float

    def times(self, times: Tensor) -> Tensor:  # [V] -> [V], 0..1
        """When the other side is where this one is at `times`."""
        later = times + self.lag
        return torch.where(later > 1, later - 1, later)

    def views(self, images: Tensor, viewmats: Tensor, Ks: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: N803
        """Pictures [V, H, W, C] and cameras [V, 4, 4], [V, 3, 3] in the mirror.

        A reflected camera would see with its left and right exchanged: its picture is turned over instead.
        """
        reflection = torch.eye(4, dtype=torch.float64)
        normal = torch.from_numpy(self.plane.normal)
        reflection[:3, :3] -= 2 * torch.outer(normal, normal)
        reflection[:3, 3] = 2 * self.plane.offset * normal
        turn = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], device=viewmats.device))
        turned_over = Ks.clone()
        turned_over[:, 0, 2] = images.shape[2] - Ks[:, 0, 2]
        return images.flip(2), turn @ viewmats @ reflection.to(viewmats), turned_over


def find_plane(points: np.ndarray) -> Plane:  # [N, 3]
    """The upright plane in which points on the subject's surface come nearest to the surface again."""
    points = points[np.random.default_rng(0).permutation(len(points))[:POINTS]].astype(np.float64)
    surface = cKDTree(points)
    angles = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
    return min((_refined(points, surface, float(angle)) for angle in angles), key=lambda found: found[0])[1]


def _refined(points: np.ndarray, surface: cKDTree, angle: float) -> tuple[float, Plane]:
    """Iterated closest points, from a plane through the middle: how far the better points are off, and the plane."""
    plane = Plane(angle, float(points.mean(axis=0) @ Plane(angle, 0.0).normal))
    kept = max(int(TRUSTED * len(points)), 1)
    for _ in range(ROUNDS):
        reflected = plane.reflected(points)
        distances, partners = surface.query(reflected)
        best = np.argpartition(distances, kept - 1)[:kept]
        # Least squares of reflected - partner, linear in small changes of angle and offset.
        normal, along = plane.normal[:2], np.array([-np.sin(plane.angle), np.cos(plane.angle)])
        flat = points[best, :2]
        by_angle = -2 * (np.outer(flat @ along, normal) + np.outer(flat @ normal - plane.offset, along))
        by_offset = np.broadcast_to(2 * normal, by_angle.shape)
        wanted = points[partners[best], :2] - reflected[best, :2]
        columns = np.stack([by_angle.ravel(), by_offset.ravel()], axis=1)
        turn, shift = np.linalg.lstsq(columns, wanted.ravel(), rcond=None)[0]
        plane = Plane(plane.angle + float(np.clip(turn, -LONGEST_TURN, LONGEST_TURN)), plane.offset + float(shift))
    distances = np.sort(surface.query(plane.reflected(points))[0])
    return float(distances[:kept].mean()), plane
