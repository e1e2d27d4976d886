# SPDX-License-Identifier: GPL-3.0-or-later
"""Known subjects as meshes in the poses that their motions bring them into: legs that step, wings that are up."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree

from backend.models.kinesplat_small import KinesplatSmall
from backend.models.known_motions import HARMONICS
from backend.models.known_subjects import Mesh
from backend.splatting.control_points import make_control_points
from backend.splatting.followed import rigid_poses
from backend.splatting.guide import SurfaceMotion, make_guide
from backend.splatting.motion import TimeBasis
from blender_addon.contract.surface import even_samples

PHASES = 8  # of each motion
CONTROL_POINTS = 96
SAMPLES = 4_000  # of a mesh, to which distances are told
OFF = 0.02  # clip space; points of a motion that are farther from a mesh at all times belong to another one


class Poses(NamedTuple):
    """One subject."""

    mesh: Mesh  # as it stands
    positions: np.ndarray  # [K, V, 3] float32, centred, the longest side 1; the first are those of the mesh
    clips: np.ndarray  # [K] int64: which motion, -1 of the first


def known_poses(model: KinesplatSmall, subject: int, clips: Collection[int]) -> Poses:
    """A subject as it stands, and in each of PHASES phases of those of its motions that are among `clips`.

    All motions of a subject are told by the same points on its surface. Those that lie nearest to the mesh at the start
    of a motion tell where on it they are.
    """
    mesh, own = model.memory.mesh(subject), motions_of(model)[subject]
    still = Poses(mesh, _boxed(mesh.positions[None]), np.array([-1]))
    chosen = [clip for clip in own if clip in clips]
    if not chosen:
        return still
    starts = model.motions.points[own].float().numpy()
    off = [_distance(points, mesh) for points in starts]
    if min(off) > OFF:
        return still
    rest = starts[int(np.argmin(off))]
    there = np.concatenate([_phases(model, clip) for clip in chosen])
    told = SurfaceMotion(torch.from_numpy(rest), torch.from_numpy(there - rest), torch.arange(len(there)).float())
    control = make_control_points(mesh.positions, CONTROL_POINTS)
    turns, shifts = rigid_poses(control, mesh.positions, make_guide(told, mesh.positions).movement.numpy())
    positions = np.zeros((len(there), *mesh.positions.shape), np.float32)
    for index, weight in zip(control.index.numpy().T, control.weights.numpy().T, strict=True):
        turned = np.einsum("tvij,vj->tvi", turns[:, index], mesh.positions) + shifts[:, index]
        positions += weight[:, None] * turned
    numbers = np.concatenate([still.clips, np.repeat(chosen, PHASES)])
    return Poses(mesh, np.concatenate([still.positions, _boxed(positions)]), numbers)


def motions_of(model: KinesplatSmall) -> list[list[int]]:
    """The numbers of the motions of each subject. Both are kept in the same order; several subjects may have a name."""
    found: list[list[int]] = [[] for _ in model.memory.subjects]
    subjects, at, seen = model.memory.subjects, 0, set()
    for number, (name, action) in enumerate(zip(model.motions.subjects, model.motions.actions, strict=True)):
        if name == subjects[at] and action in seen and subjects[at + 1 : at + 2] == (name,):
            at, seen = at + 1, set()
        while at < len(subjects) and subjects[at] != name:
            at, seen = at + 1, set()
        if at == len(subjects):
            break
        found[at].append(number)
        seen.add(action)
    return found


def _phases(model: KinesplatSmall, clip: int) -> np.ndarray:  # [PHASES, P, 3] float32
    loop = bool(model.motions.loops[clip])
    times = torch.linspace(0, 1, PHASES + loop)[:PHASES]
    series = model.motions.series[clip, int(loop) :].float().numpy()
    return model.motions.points[clip].float().numpy() + np.tensordot(TimeBasis(loop, HARMONICS)(times).T, series, 1)


def _boxed(positions: np.ndarray) -> np.ndarray:  # [K, V, 3]
    low, high = positions.min(1, keepdims=True), positions.max(1, keepdims=True)
    return ((positions - (low + high) / 2) / np.maximum((high - low).max(-1, keepdims=True), 1e-6)).astype(np.float32)


def _distance(points: np.ndarray, mesh: Mesh) -> float:
    """Root mean square distance of points from a mesh, roughly."""
    corners = mesh.positions[mesh.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    chosen, weights = even_samples(areas, SAMPLES, np.random.default_rng(0))
    surface = np.einsum("mc,mcd->md", weights, corners[chosen])
    return float(np.sqrt(np.square(cKDTree(surface).query(points)[0]).mean()))
