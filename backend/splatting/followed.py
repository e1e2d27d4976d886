# SPDX-License-Identifier: GPL-3.0-or-later
"""A motion that is known as a whole, as the motion of a fit: nothing of it is left to be found.

Where the subject's surface was followed through an animation, or moved by a motion that was there before the pictures
were, each Gaussian is told where it goes. That is written with as few rigid poses as any other motion: the pose of a
control point is that which its Gaussians agree on best (Kabsch), and how far each Gaussian follows which of the control
points near it is what leads it closest to where it goes (Le and Deng, Smooth Skinning Decomposition with Rigid Bones,
2012).
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from backend.splatting.config import ConstructConfig
from backend.splatting.control_points import ControlPoints, make_control_points
from backend.splatting.gaussians import GaussianParameters, Moved
from backend.splatting.guide import SurfaceMotion, make_guide
from backend.splatting.known import KnownMotion
from backend.splatting.motion import blend, to_basis_motion
from blender_addon.contract import rotations
from blender_addon.contract.clip import BASES_PER_GAUSSIAN, BasisMotion

CANDIDATES = 6  # control points, of which a Gaussian follows up to `BASES_PER_GAUSSIAN`
ROUNDS = 2  # of poses and weights
STEPS = 60  # of the descent on the weights
UPRIGHT, EVEN = 1e-5, 1e-3  # pull of poses towards no turn, of weights towards each other; relative to what is told
NEAR = 1e4  # times that differ by less than a half of its inverse are the same
CHUNK = 4_000  # Gaussians at a time


class FollowedMotion(KnownMotion):
    """Poses of control points that lead Gaussians where they are told to go."""

    def __init__(self, rest_means: Tensor, told: SurfaceMotion, times: Tensor, config: ConstructConfig) -> None:
        """`rest_means` [N, 3] of the Gaussians; `times`: all that will be asked for."""
        self.device = rest_means.device
        self._times = times.mul(NEAR).round().unique() / NEAR
        points, guide = rest_means.cpu().numpy(), make_guide(told, rest_means.cpu().numpy())
        movement = _at_times(guide.movement.numpy(), guide.times.numpy(), self._times.cpu().numpy())
        near = make_control_points(points, config.control_points, CANDIDATES)
        control = near
        for _ in range(ROUNDS):
            turns, shifts = rigid_poses(control, points, movement)
            control = _skinned(near, turns, shifts, points, movement)
        self.control = control.to(rest_means.device)
        quats = rotations.make_continuous(rotations.from_matrix(turns))
        poses = np.concatenate([turns.reshape(*turns.shape[:2], 9), shifts, quats], -1)
        self._poses = torch.from_numpy(poses).to(rest_means.device)  # [T, B, 16]

    def moved(self, times: Tensor, gaussians: GaussianParameters, chosen: Tensor | None = None) -> Moved:
        """The Gaussians of time 0 at `times` [T], of those that it was made for.

        `chosen`: which of all Gaussians they are; all of them, if it is not given. Differentiable in the Gaussians.
        """
        index, weights = self.control.index, self.control.weights
        if chosen is not None:
            index, weights = index[chosen], weights[chosen]
        return Moved(*blend(self._at(times), gaussians.means, gaussians.quats, index, weights), gaussians.scales)

    def to_clip(self, frame_times: Tensor, gaussians: GaussianParameters) -> BasisMotion:
        """The motion at the frames as a clip keeps it."""
        return to_basis_motion(self._at(frame_times), self.control)

    def _at(self, times: Tensor) -> Tensor:  # [T] -> [T, B, 16]
        return self._poses[torch.searchsorted(self._times, times - 0.5 / NEAR)]


def rigid_poses(
    control: ControlPoints, points: np.ndarray, movement: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # [T, B, 3, 3], [T, B, 3] float32
    """Turns and shifts that lead the followers of control points nearest to where they go.

    points: [N, 3] float32 of the followers; movement: [T, N, 3] from there.
    """
    followers = control.weights.numpy().astype(np.float64)
    rows = np.repeat(np.arange(len(points)), followers.shape[1])
    shape = len(control.points), len(points)
    share = csr_matrix((followers.ravel(), (control.index.numpy().ravel(), rows)), shape=shape)
    share = csr_matrix(share.multiply(1 / np.maximum(share.sum(1), 1e-9)))  # who has no followers need not move
    points = points.astype(np.float64)
    before = share @ points
    size = share @ np.square(points).sum(1) - np.square(before).sum(1)
    turns = np.tile(np.eye(3, dtype=np.float32), (len(movement), len(before), 1, 1))
    shifts = np.zeros(turns.shape[:3], np.float32)
    for moment, way in enumerate(movement):
        if not way.any():
            continue
        there = points + way
        after = share @ there
        both = share @ (points[:, :, None] * there[:, None]).reshape(-1, 9)
        spread = both.reshape(-1, 3, 3) - before[:, :, None] * after[:, None]
        left, _, right = np.linalg.svd(spread + UPRIGHT * size[:, None, None] * np.eye(3))
        right[:, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
        turns[moment] = (left @ right).swapaxes(1, 2)
        shifts[moment] = after - np.einsum("bij,bj->bi", turns[moment], before)
    return turns, shifts


def _at_times(movement: np.ndarray, known: np.ndarray, times: np.ndarray) -> np.ndarray:  # [U, N, 3] -> [T, N, 3]
    after = np.searchsorted(known, times).clip(1, len(known) - 1)
    share = ((times - known[after - 1]) / (known[after] - known[after - 1])).clip(0, 1)[:, None, None]
    return movement[after - 1] * (1 - share) + movement[after] * share


def _skinned(
    near: ControlPoints, turns: np.ndarray, shifts: np.ndarray, points: np.ndarray, movement: np.ndarray
) -> ControlPoints:
    """The same control points, followed by points [N, 3] in the way that leads these nearest to their movement."""
    candidates = near.index.numpy()
    index, weights = [], []
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        some = candidates[part]
        there = np.einsum("tnkij,nj->nkti", turns[:, some], points[part]) + shifts[:, some].transpose(1, 2, 0, 3)
        astray = there - (points[part] + movement[:, part]).swapaxes(0, 1)[:, None]
        astray = astray.reshape(*some.shape, -1)  # [n, K, 3 T]
        best = np.argsort(-_weights(astray), 1, kind="stable")[:, :BASES_PER_GAUSSIAN]
        found = _weights(np.take_along_axis(astray, best[..., None], 1))
        order = np.argsort(-found, 1, kind="stable")
        index.append(np.take_along_axis(some, np.take_along_axis(best, order, 1), 1))
        weights.append(np.take_along_axis(found, order, 1))
    kept = torch.from_numpy(np.concatenate(weights)).float()
    return replace(near, index=torch.from_numpy(np.concatenate(index)), weights=kept / kept.sum(1, keepdim=True))


def _weights(astray: np.ndarray) -> np.ndarray:  # [N, K, D] -> [N, K]
    """Weights of at least 0, sum 1, with which K ways of being off add up to as little as can be."""
    product = np.einsum("nkd,nld->nkl", astray, astray)
    count = product.shape[1]
    product += EVEN * (np.trace(product, axis1=1, axis2=2)[:, None, None] / count + 1e-12) * np.eye(count)
    step = 1 / np.linalg.norm(product, axis=(1, 2))[:, None]
    weights = ahead = np.full(product.shape[:2], 1 / count, np.float32)
    momentum = 1.0
    for _ in range(STEPS):  # Nesterov's
        new = _on_simplex(ahead - step * np.einsum("nkl,nl->nk", product, ahead))
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        weights, ahead, momentum = new, new + (momentum - 1) / faster * (new - weights), faster
    return weights


def _on_simplex(values: np.ndarray) -> np.ndarray:  # [N, K] -> [N, K]
    """The nearest weights of at least 0 and sum 1."""
    falling = -np.sort(-values, 1)
    surplus = (np.cumsum(falling, 1) - 1) / np.arange(1, values.shape[1] + 1)
    last = (falling > surplus).sum(1, keepdims=True) - 1
    return np.maximum(values - np.take_along_axis(surplus, last, 1), 0)
