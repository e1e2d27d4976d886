# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose motions are whose, and the poses into which they bring the meshes of their subjects."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from backend.models.kinesplat_small import KinesplatSmall, load
from backend.pipelines.known_poses import PHASES, known_poses, motions_of


@pytest.fixture(scope="module")
def model() -> KinesplatSmall:
    return load()


def test_each_motion_has_its_subject(model):
    found = motions_of(model)
    assert sorted(clip for clips in found for clip in clips) == list(range(len(model.motions.subjects)))
    for subject, clips in zip(model.memory.subjects, found, strict=True):
        assert {model.motions.subjects[clip] for clip in clips} == {subject}
    tanks = [clips for subject, clips in zip(model.memory.subjects, found, strict=True) if subject == "tank"]
    assert len({tuple(model.motions.actions[clip] for clip in clips) for clips in tanks}) == 1 < len(tanks)


def test_a_wolf_walks(model):
    wolf = model.memory.subjects.index("wolf")
    walk = next(clip for clip in motions_of(model)[wolf] if model.motions.actions[clip] == "walk")
    poses = known_poses(model, wolf, {walk})
    assert poses.clips.tolist() == [-1] + PHASES * [walk]
    mesh = poses.mesh
    np.testing.assert_allclose(np.ptp(poses.positions, axis=1).max(1), 1, atol=1e-5)

    def feet(pose: int) -> np.ndarray:
        low = mesh.positions[:, 2] < np.quantile(mesh.positions[:, 2], 0.08)
        return poses.positions[pose][low]

    steps = np.linalg.norm(feet(1) - feet(1 + PHASES // 2), axis=1).mean()
    trunk = np.linalg.norm(np.median(poses.positions[1] - poses.positions[1 + PHASES // 2], 0))
    assert steps > 0.08 > 2 * trunk  # half a step later
    # It is in one piece: where triangles were small, they are.
    edges = np.linalg.norm(poses.positions[:, mesh.faces[:, 0]] - poses.positions[:, mesh.faces[:, 1]], axis=-1)
    assert (edges[1:] < 2 * edges[0] + 0.02).mean() > 0.99
    # The points that the motion is told by lie on it.
    start = model.motions.points[walk].float().numpy()
    surface = poses.positions[1][mesh.faces].mean(1)
    box = start.max(0) - start.min(0)
    scale = np.ptp(poses.positions[1], axis=0).max() / box.max()
    there = (start - (start.max(0) + start.min(0)) / 2) * scale
    assert np.median(cKDTree(surface).query(there)[0]) < 0.02


def test_without_a_motion_it_stands(model):
    fox = model.memory.subjects.index("red fox")
    for clips in (set(), {len(model.motions.subjects)}):
        poses = known_poses(model, fox, clips)
        assert poses.clips.tolist() == [-1]
        assert poses.positions.shape == (1, *poses.mesh.positions.shape)
