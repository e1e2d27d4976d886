# SPDX-License-Identifier: GPL-3.0-or-later
"""A known walk is carried over to a subject of another size that faces another way and stands in another phase."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backend.models.known_motions import HARMONICS, KnownMotions
from backend.pipelines.recall import PHASES, _functions, recall
from backend.splatting.control_points import make_control_points

TIMES = np.linspace(0, 1, 24)
LEGS = np.array([[-0.3, -0.1], [-0.3, 0.1], [0.3, -0.1], [0.3, 0.1]])  # of a walker that looks along +X


def walker() -> tuple[np.ndarray, np.ndarray]:
    """A body with a neck and four legs [P, 3], and how each point swings to and fro [P, 3]."""
    rng = np.random.default_rng(0)
    body = rng.uniform(-1, 1, (300, 3)) * (0.4, 0.12, 0.08)
    neck = rng.uniform(-1, 1, (60, 3)) * (0.05, 0.05, 0.15) + (0.42, 0, 0.2)
    legs = [rng.uniform(-1, 1, (60, 3)) * (0.03, 0.03, 0.15) + (x, y, -0.22) for x, y in LEGS]
    swings = [np.zeros((360, 3))]
    for number, leg in enumerate(legs):
        sign = 1 if number in (0, 3) else -1
        swings.append(sign * np.array([0.5, 0, 0]) * (-0.08 - leg[:, 2:]).clip(0))
    return np.concatenate([body, neck, *legs]), np.concatenate(swings)


def known(points: np.ndarray, swings: np.ndarray, **more: tuple[np.ndarray, np.ndarray]) -> KnownMotions:
    """The walk, and other motions of the same points: what each does as cosine and sine of one cycle."""
    clips = {"walk": (0 * swings, swings), **more}
    series = np.zeros((len(clips), 1 + 2 * HARMONICS, *points.shape), np.float32)
    for clip, (cosine, sine) in enumerate(clips.values()):
        series[clip, 1], series[clip, 2] = cosine, sine
    return KnownMotions(
        subjects=("dog",) * len(clips),
        actions=tuple(clips),
        loops=torch.ones(len(clips), dtype=torch.bool),
        points=torch.from_numpy(np.tile(points, (len(clips), 1, 1))).half(),
        series=torch.from_numpy(series).half(),
    )


def surface_of(points: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(points=torch.from_numpy(points).float(), control=make_control_points(np.float32(points), 64))


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    turn = np.radians(degrees)
    return points @ np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize("yaw", [0.0, 90.0, 225.0])
@pytest.mark.parametrize("phase", [0.0, 3 / PHASES])
def test_a_walk_is_carried_over(yaw: float, phase: float) -> None:
    points, swings = walker()
    motions = known(points, swings)
    positions = points + np.sin(2 * np.pi * (TIMES + phase))[:, None, None] * swings
    subject = turned(positions * (1, 1.2, 0.9), yaw)  # stouter, with shorter legs
    subject = (subject - (subject[0].max(0) + subject[0].min(0)) / 2) / np.ptp(subject[0], 0).max()
    surface = surface_of(subject[0])
    control = surface.control.points.numpy()
    at = np.linalg.norm(subject[0][:, None] - control, axis=-1).argmin(0)
    truth = (subject - subject[0])[:, at]
    invented = torch.from_numpy(truth).float() + 0.05 * torch.randn(
        24, len(control), 3, generator=torch.Generator().manual_seed(0)
    )
    found = recall(motions, "a dog is walking", surface, TIMES, invented, loop=True)
    assert (found.subject, found.action) == ("dog", "walk")
    assert cosine(found.shifts.numpy(), truth) > 0.85
    assert 0.8 < float(found.shifts.norm()) / np.linalg.norm(truth) < 1.6  # legs that are longer step farther
    assert float(found.shifts[0].abs().max()) < 1e-6
    assert float(found.shifts[-1].abs().max()) < 1e-3  # a loop


def test_what_was_invented_decides_where_words_and_shape_do_not() -> None:
    points, swings = walker()
    bob = np.tile(np.array([0, 0, 0.05]), (len(points), 1))
    motions = known(points, swings, walking=(0 * bob, bob))
    surface = surface_of(points)
    for action in ("walk", "walking"):
        clip = motions.actions.index(action)
        course = _functions(True, tuple(TIMES)) @ motions.series[clip, 1:].float().numpy().reshape(2 * HARMONICS, -1)
        control = surface.control.points.numpy()
        at = np.linalg.norm(points[:, None] - control, axis=-1).argmin(0)
        invented = torch.from_numpy(course.reshape(24, -1, 3)[:, at]).float()
        assert recall(motions, "walk", surface, TIMES, invented, loop=True).action == action


def test_nothing_is_recalled_that_words_do_not_name_or_that_does_not_loop() -> None:
    points, swings = walker()
    motions = known(points, swings)
    surface, invented = surface_of(points), torch.ones(24, 64, 3)
    assert recall(motions, "a dog plays the piano", surface, TIMES, invented, loop=True) is None
    ends = KnownMotions(motions.subjects, motions.actions, ~motions.loops, motions.points, motions.series)
    assert recall(ends, "walk", surface, TIMES, invented, loop=True) is None
    assert recall(ends, "walk", surface, TIMES, invented, loop=False).action == "walk"


def test_a_seed_chooses_among_what_fits_alike() -> None:
    points, swings = walker()
    aside = swings[:, [1, 0, 2]]
    motions = known(points, swings, walking=(0 * aside, aside))
    surface, invented = surface_of(points), torch.randn(24, 64, 3, generator=torch.Generator().manual_seed(0))
    chosen = [recall(motions, "walk", surface, TIMES, invented, loop=True, seed=seed).action for seed in range(4)]
    assert set(chosen) == {"walk", "walking"}
    assert chosen[:2] == chosen[2:]


@pytest.mark.parametrize(("worse", "seen"), [(0.3, True), (0.6, False)])
def test_other_seeds_find_another_motion_where_one_fits_best(worse: float, seen: bool, monkeypatch) -> None:
    """Candidates that are all alike are no choice; one that does not fit is none either."""
    points, swings = walker()
    aside = swings[:, [1, 0, 2]]
    motions = known(points, swings, slow=(0 * aside, aside))
    fit = {"walk": np.array([1.0, 1.0 - worse])}
    monkeypatch.setattr(KnownMotions, "fit", lambda self, prompt: fit[prompt])
    surface, invented = surface_of(points), torch.randn(24, 64, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    first, second = (
        recall(motions, "walk", surface, TIMES, invented, loop=True, seed=seed).action for seed in range(2)
    )
    assert first == "walk"
    assert second == ("slow" if seen else "walk")
