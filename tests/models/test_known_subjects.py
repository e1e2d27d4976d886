# SPDX-License-Identifier: GPL-3.0-or-later
"""Known subjects: kept small and given back, seen as they are, found by what a prompt names."""

import numpy as np
import pytest

from backend.models.known_subjects import KnownSubjects, Mesh, remember
from blender_addon.contract.orbit import Orbit, orbit_cameras

RED, WHITE = (0.8, 0.1, 0.1), (1.0, 1.0, 1.0)


def box(side: float, color: tuple[float, float, float] = RED, texture: np.ndarray | None = None) -> Mesh:
    """A cube about the origin; with a texture, the corner of its faces' first triangles has the first texel."""
    corners = np.float32([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * side / 2
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.int32([triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))])
    return Mesh(
        positions=corners,
        normals=corners / np.linalg.norm(corners, axis=1, keepdims=True),
        uv=np.full((8, 2), 0.1, np.float32),
        faces=faces,
        colors=np.tile(np.float32(color), (12, 1)),
        texture=np.full(12, -1 if texture is None else 0, np.int32),
        textures=np.zeros((1, 1, 1, 3), np.float32) if texture is None else texture[None],
        texture_sizes=np.int32([[1, 1] if texture is None else texture.shape[:2]]),
    )


@pytest.fixture
def memory() -> KnownSubjects:
    subjects = ["fox", "red fox", "clown fish", "koi fish", "sword fish", "knight"]
    return remember(subjects, [box(0.1 + 0.1 * number) for number in range(len(subjects))])


def test_a_memory_gives_back_its_meshes():
    blue, green = (np.tile(np.float32(color), (size, 4, 1)) for color, size in (((0, 0, 1), 2), ((0, 1, 0), 6)))
    meshes = [box(0.5), box(0.3, WHITE, blue), box(0.7, WHITE, green), box(0.9, WHITE, blue)]
    memory = remember(["a", "b", "c", "d"], meshes)
    assert memory.texels.shape[0] == 1 + 2 * 4 + 6 * 4  # an image that two have is kept once
    for number, mesh in enumerate(meshes):
        back = memory.mesh(number)
        np.testing.assert_array_equal(back.faces, mesh.faces)
        np.testing.assert_array_equal(back.texture, mesh.texture)
        np.testing.assert_allclose(back.positions, mesh.positions, atol=1e-3)
        np.testing.assert_allclose(back.normals, mesh.normals, atol=1e-2)
        np.testing.assert_allclose(back.colors, mesh.colors, atol=1 / 255)
        if (mesh.texture >= 0).all():
            np.testing.assert_allclose(back.textures, mesh.textures, atol=1 / 255)


def test_a_mesh_is_seen_from_all_sides_in_its_colors():
    cameras = orbit_cameras(Orbit(frames=4, closed=False), 32, 32, moving=False)
    green = np.tile(np.float32((0, 1, 0)), (8, 8, 1))
    for mesh, channel in ((box(0.5), 0), (box(0.5, WHITE, green), 1)):
        pictures = mesh.pictures(cameras)
        for picture in pictures:  # the near face, at a distance of 2 - 0.25
            side = 0.5 / 1.75 * cameras.Ks[0, 0, 0]
            assert picture[..., 3].sum() == pytest.approx(side**2, rel=0.1)
            middle = picture[16, 16]
            assert middle[3] == 1
            assert middle[channel] > 0.5
            assert np.delete(middle[:3], channel).max() < 0.15


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("a fox runs", 0),
        ("the red fox is running", 1),
        ("Clown fish, swimming", 2),
        ("a koi", 3),
        ("a swordless knight attacks with a sword", 5),
        ("a fox chases a knight", 0),
        ("swimming: a sword fish", 4),
    ],
)
def test_a_prompt_finds_the_subject_that_it_names(memory, prompt, subject):
    assert memory.nearest(prompt, seed=0) == subject


def test_the_seed_chooses_among_equals_and_nothing_is_made_up(memory):
    assert {memory.nearest("a fish", seed) for seed in range(6)} == {2, 3, 4}
    assert memory.nearest("a spaceship", seed=0) is None
