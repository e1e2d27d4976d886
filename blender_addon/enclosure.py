# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies inside an object: within its closed surface, within its bounding box, or within an empty."""

from collections.abc import Callable

import bpy
import numpy as np

from . import rays, subject

BOUNDED_TYPES = subject.SURFACE_TYPES | {"CURVES", "LATTICE", "VOLUME", "POINTCLOUD", "EMPTY"}

Test = Callable[[np.ndarray], np.ndarray]  # [P, 3] in the object's own space -> [P] bool, whether it is inside


class EnclosureError(ValueError):
    """The object encloses nothing; the message says why and what to do."""


def inside_test(volume: bpy.types.Object, graph: bpy.types.Depsgraph, *, box: bool) -> tuple[Test, bool]:
    """A test for what lies inside an object as it looks now, and whether its surface turned out to be open.

    A mesh, curve or text with a closed surface encloses what is within it. Of one with holes the bounding box counts,
    as of all that has no surface; of an empty what its size spans, as a sphere if it is shown as one.

    Args:
        volume: the object.
        graph: with the object, up to date.
        box: take the bounding box in any case.

    Raises:
        EnclosureError: nothing can lie inside objects of this type.
    """
    if volume.type not in BOUNDED_TYPES:
        raise EnclosureError(f"{volume.name} has no volume to crop to. Select a mesh, such as a cube, or an empty.")
    if volume.type == "EMPTY":
        size = volume.empty_display_size
        if volume.empty_display_type == "SPHERE":
            return lambda places: np.linalg.norm(places, axis=1) <= size, False
        return _box_test(np.full(3, -size), np.full(3, size)), False
    corners = np.array([corner[:] for corner in volume.bound_box])
    in_box = _box_test(corners.min(axis=0), corners.max(axis=0))
    if box or volume.type not in subject.SURFACE_TYPES:
        return in_box, False
    triangles = _triangles(volume.evaluated_get(graph))
    if not rays.is_closed(triangles):
        return in_box, True
    return rays.inside_test(triangles), False


def _box_test(low: np.ndarray, high: np.ndarray) -> Test:
    return lambda places: ((places >= low) & (places <= high)).all(axis=1)


def _triangles(evaluated: bpy.types.Object) -> np.ndarray:  # [F, 3, 3]
    """The corners of an object's triangles, in its own space."""
    mesh = evaluated.to_mesh()
    if mesh is None:  # a metaball that is part of another
        return np.empty((0, 3, 3))
    try:
        mesh.calc_loop_triangles()
        places = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", places)
        corners = np.empty(len(mesh.loop_triangles) * 3, np.int32)
        mesh.loop_triangles.foreach_get("vertices", corners)
    finally:
        evaluated.to_mesh_clear()
    return places.reshape(-1, 3)[corners].reshape(-1, 3, 3).astype(np.float64)
