# SPDX-License-Identifier: GPL-3.0-or-later
from dataclasses import replace

import numpy as np
import pytest

from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.surface import (
    SurfacePieces,
    SurfaceSamples,
    read_surface_samples,
    write_surface_samples,
)


def test_surface_samples_round_trip_and_checks(tmp_path) -> None:
    path = tmp_path / "surface.npz"
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3)).astype(np.float32)
    normals = np.tile(np.float32([0, 0, 1]), (50, 1))
    write_surface_samples(path, SurfaceSamples(points, normals))
    np.testing.assert_array_equal(read_surface_samples(path).points, points)
    for samples in (
        SurfaceSamples(points[1:], normals),
        SurfaceSamples(points[:0], normals[:0]),
        SurfaceSamples(points * np.float32(np.nan), normals),
        SurfaceSamples(points, normals * 2),
        SurfaceSamples(points.astype(np.float64), normals),
    ):
        with pytest.raises(BadFileError, match="is not usable"):
            write_surface_samples(tmp_path / "other.npz", samples)
    np.savez(path, points=points)
    with pytest.raises(BadFileError, match="does not hold surface samples"):
        read_surface_samples(path)


def test_surface_samples_may_tell_how_they_move(tmp_path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "surface.npz"
    points, movement = (rng.uniform(-0.5, 0.5, shape).astype(np.float32) for shape in ((50, 3), (4, 50, 3)))
    samples = SurfaceSamples(points, np.tile(np.float32([0, 0, 1]), (50, 1)), movement)
    write_surface_samples(path, samples)
    np.testing.assert_array_equal(read_surface_samples(path).movement, movement)
    write_surface_samples(path, samples.standing())
    assert read_surface_samples(path).movement is None
    for wrong in (
        movement[:, 1:],
        movement[:1],
        movement[0],
        movement.astype(np.float64),
        movement * np.float32(np.nan),
    ):
        with pytest.raises(BadFileError, match="is not usable"):
            write_surface_samples(tmp_path / "other.npz", replace(samples, movement=wrong))


def pieces() -> SurfacePieces:
    """Four points all the time, of which two grow from nothing, and three of another part at the last two times."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (18, 3)).astype(np.float32)
    sizes = np.ones(18, np.float32)
    sizes[:2] = 0
    spans = np.array([[0, 0, 3, 4], [1, 1, 2, 3]], np.int32)
    return SurfacePieces(spans, points, np.tile(np.float32([0, 0, 1]), (18, 1)), sizes, np.array(3, np.int32))


def test_surface_samples_may_come_in_pieces(tmp_path) -> None:
    written, path = pieces(), tmp_path / "surface.npz"
    write_surface_samples(path, SurfaceSamples(*written.at(2), pieces=written))
    read = read_surface_samples(path)
    for name, array in vars(written).items():
        np.testing.assert_array_equal(getattr(read.pieces, name), array)
    assert read.movement is None
    assert len(read.points) == 4 + 3
    assert read.standing().pieces is None


def test_pieces_know_what_is_there() -> None:
    surface = pieces()
    assert [len(surface.at(time)[0]) for time in range(3)] == [2, 7, 7]
    points, normals, sizes = surface.piece(1)
    assert (points.shape, normals.shape, sizes.shape) == ((2, 3, 3), (2, 3, 3), (2, 3))
    np.testing.assert_array_equal(points.reshape(-1, 3), surface.points[12:])
    np.testing.assert_array_equal(surface.at(2)[0], np.concatenate([surface.points[8:12], surface.points[15:]]))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"spans": np.array([[0, 0, 3, 4], [1, 2, 2, 3]], np.int32)}, "outside the times"),
        ({"spans": np.array([[0, 0, 3, 4], [1, 1, 2, 0]], np.int32)}, "has no points"),
        ({"spans": np.array([[0, 0, 3, 4]], np.int32)}, "as many as their spans say"),
        ({"spans": np.array([0, 0, 3, 4], np.int32)}, "piece_spans must be"),
        ({"spans": np.array([[0, 0, 3, 2**31 - 1], [1, 1, 2, 2**31 - 1]], np.int32)}, "as many as their spans say"),
        ({"times": np.array(1, np.int32)}, "two times or more"),
        ({"sizes": np.full(18, 1.5, np.float32)}, "between 0 and 1"),
        ({"sizes": np.ones(17, np.float32)}, "as many as their spans say"),
        ({"normals": np.zeros((18, 3), np.float32)}, "length 1"),
        ({"points": np.full((18, 3), np.nan, np.float32)}, "not finite"),
        ({"points": np.zeros((18, 3))}, "float32"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(wrong, why, tmp_path) -> None:
    samples = SurfaceSamples(*pieces().at(2), pieces=replace(pieces(), **wrong))
    with pytest.raises(BadFileError, match=why):
        write_surface_samples(tmp_path / "surface.npz", samples)


def test_pieces_beside_a_movement_or_not_whole_are_refused(tmp_path) -> None:
    path = tmp_path / "surface.npz"
    points, normals = pieces().at(2)
    arrays = {f"piece_{name}": array for name, array in vars(pieces()).items()}
    for others in ({"movement": np.zeros((3, 7, 3), np.float32), **arrays}, {"piece_spans": pieces().spans}):
        np.savez(path, points=points, normals=normals, **others)
        with pytest.raises(BadFileError, match="does not hold surface samples"):
            read_surface_samples(path)
