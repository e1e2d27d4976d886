# SPDX-License-Identifier: GPL-3.0-or-later
"""A known motion in the place of an invented one: that whose words, shape and course fit best.

The network that invents motion is small, and has seen little: it knows roughly what moves where. The clips that it has
seen know how: legs that step, wings that beat. Subjects that resemble theirs can move as they do. Which of them is
decided by the words of the prompt, by the shape of the subject at rest (also in which phase of a walk it stands), and
by what was invented.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from backend.models.known_motions import HARMONICS, KnownMotions
from backend.splatting.control_points import ControlPoints
from backend.splatting.motion import TimeBasis
from backend.splatting.surface_motion import Surface, unstretched

SHAPE_POINTS = 256  # of the subject, compared with the known ones
CLIPS_BY_WORDS, CLIPS = 80, 12  # that are compared, first by shape, then in all phases and with the invention
YAWS, PHASES = 8, 8
SHAPE = 15.0  # worth of a distance of 1 between shapes, beside that of the same action
ROUGHLY = 0.2  # of it, where clips are chosen: another phase may fit better
COURSE = 0.3  # worth of the cosine with what was invented
BEGINNING = 0.1  # worth of beginning where the clip begins, as most subjects stand so
MIRRORED = 0.02  # worth of not being mirrored, where nothing else tells
STRETCH = 0.4  # worth of stretching nothing
AMOUNT = 0.1  # worth of moving as far as what was invented, rather than half or twice as far
STILL = 1e-3  # sum of squares of shifts, its root; less is no movement
NEIGHBOURS, SOFT = 4, 0.02  # known points that a point follows, and the distance that hardly tells them apart
THINNEST = 0.05  # side of a bounding box, in which points are compared
ALIKE = 0.9  # cosine from which on two movements are one to choose from
MARGIN, FAR = 0.15, 0.45  # of the score, within which a seed may choose; where there are fewer than FEW, so far
FEW = 3


@dataclass(frozen=True)
class Recalled:
    """A movement as large as it is in the clip, and whose it is."""

    shifts: Tensor  # [T, B, 3] of control points
    subject: str
    action: str


@dataclass(frozen=True)
class _Pose:
    """A way in which a known subject may stand in the place of another."""

    clip: int
    yaw: float  # degrees
    phase: float = 0.0  # at which it begins
    mirror: bool = False

    @property
    def matrix(self) -> np.ndarray:  # [3, 3] float32
        """From the known subject's axes to those of the other."""
        turn = np.radians(self.yaw)
        matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]], np.float32)
        matrix[:, 0] *= -1 if self.mirror else 1
        return matrix


def recall(
    motions: KnownMotions,
    prompt: str,
    surface: Surface,
    times: np.ndarray,
    invented: Tensor,
    *,
    loop: bool,
    seed: int = 0,
) -> Recalled | None:
    """The known motion that fits best, carried over to a subject; None: there is none whose words fit, or that moves.

    Args:
        motions: that are known.
        prompt: what the subject is and does.
        surface: of the subject.
        times: [T] 0..1.
        invented: [T, B, 3] shifts of its control points.
        loop: it is to end as it began.
        seed: chooses among those that fit nearly equally.
    """
    fit = motions.fit(prompt) * (motions.loops.numpy() | (not loop))
    points = surface.points.numpy()
    shape = _Shape(points[:: max(len(points) // SHAPE_POINTS, 1)])
    found = [
        _best(motions, pose, float(fit[pose.clip]), shape, surface.control, times, invented)
        for pose in _standing(motions, fit, shape)
    ]
    moving = [way for way in found if float(way.shifts.norm()) > STILL]
    if not moving:
        return None
    chosen = _choice(moving, seed)
    return Recalled(chosen.shifts, motions.subjects[chosen.clip], motions.actions[chosen.clip])


class _Way(NamedTuple):
    """A motion carried over to a subject."""

    score: float
    clip: int
    shifts: Tensor  # [T, B, 3]


def _standing(motions: KnownMotions, fit: np.ndarray, shape: "_Shape") -> list[_Pose]:
    """The clips whose words fit, turned as the subject stands, best first."""
    clips = [int(clip) for clip in np.argsort(-fit, kind="stable")[:CLIPS_BY_WORDS] if fit[clip] > 0]
    yaws = np.arange(YAWS) * 360 / YAWS

    def rough(pose: _Pose) -> float:
        return fit[pose.clip] - ROUGHLY * SHAPE * shape.distance(_positions(motions, pose, np.zeros(1))[0])

    best = (max((_Pose(clip, yaw) for yaw in yaws), key=rough) for clip in clips)
    return sorted(best, key=rough, reverse=True)[:CLIPS]


def _best(
    motions: KnownMotions,
    still: _Pose,
    fit: float,
    shape: "_Shape",
    control: ControlPoints,
    times: np.ndarray,
    invented: Tensor,
) -> _Way:
    """The phase and side of a clip that fit best."""
    phases = np.arange(PHASES) / PHASES if motions.loops[still.clip] else (0.0,)
    ways = []
    for pose in (replace(still, phase=phase, mirror=mirror) for phase in phases for mirror in (False, True)):
        positions = _positions(motions, pose, times)
        shifts = torch.from_numpy(_carried(positions, control.points.numpy(), pose.matrix))
        score = fit - SHAPE * shape.distance(positions[0]) + COURSE * _cosine(shifts, invented)
        ways.append(_Way(score + BEGINNING * (pose.phase == 0) - MIRRORED * pose.mirror, pose.clip, shifts))
    best = max(ways, key=lambda way: way.score)
    rigid = unstretched(control, best.shifts)
    size, wanted = (max(float(shifts.norm()), STILL) for shifts in (rigid, invented))
    stretch = float((rigid - best.shifts).norm()) / size
    return _Way(best.score - STRETCH * stretch - AMOUNT * abs(math.log2(wanted / size)), best.clip, rigid)


def _choice(ways: list[_Way], seed: int) -> _Way:
    """One of the best, no two of which are alike."""
    ways = sorted(ways, key=lambda way: -way.score)
    different = []
    for way in ways:
        alike = any(_cosine(way.shifts, other.shifts) >= ALIKE for other in different)
        margin = MARGIN if len(different) >= FEW else FAR
        if way.score >= ways[0].score - margin and not alike:
            different.append(way)
    return different[seed % len(different)]


class _Shape:
    """Points on a surface, to be compared with others."""

    def __init__(self, points: np.ndarray) -> None:
        self._points, self._tree = points, cKDTree(points)

    def distance(self, others: np.ndarray) -> float:
        """Root mean square distances of either to the nearest of the other, summed."""
        there, back = self._tree.query(others)[0], cKDTree(others).query(self._points)[0]
        return float(np.sqrt(np.square(there).mean()) + np.sqrt(np.square(back).mean()))


def _positions(motions: KnownMotions, pose: _Pose, times: np.ndarray) -> np.ndarray:  # [T, P, 3] float32
    """Where the points of a clip are when it begins at a phase, turned, in the clip space of that beginning."""
    loop = bool(motions.loops[pose.clip])
    series = motions.series[pose.clip, int(loop) :].float().numpy()
    shifts = np.tensordot(_functions(loop, tuple(times + pose.phase)), series, 1)
    positions = (motions.points[pose.clip].float().numpy() + shifts) @ pose.matrix.T
    low, high = positions[0].min(0), positions[0].max(0)
    return (positions - (low + high) / 2) / max(float((high - low).max()), 1e-6)


@lru_cache(64)
def _functions(loop: bool, times: tuple[float, ...]) -> np.ndarray:  # [T, J] float32
    return TimeBasis(loop, HARMONICS)(torch.tensor(times, dtype=torch.float32)).T.numpy()


def _carried(positions: np.ndarray, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:  # [T, B, 3]
    """The shifts of points [B, 3] that lie in their box, along known axes, where known ones [T, P, 3] do in theirs."""
    known, own = _in_box(positions[0] @ matrix), _in_box(points @ matrix)
    distance, nearest = cKDTree(known).query(own, NEIGHBOURS)
    weights = 1 / np.square(distance + SOFT)
    weights /= weights.sum(1, keepdims=True)
    shifts = np.einsum("tbkc,bk->tbc", (positions - positions[:1])[:, nearest], weights)
    return shifts.astype(np.float32)


def _in_box(points: np.ndarray) -> np.ndarray:  # [N, 3] -> the same, from -1/2 to 1/2
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) / np.maximum(high - low, THINNEST)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum() / (first.norm() * second.norm()).clamp_min(1e-9))
