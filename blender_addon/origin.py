# SPDX-License-Identifier: GPL-3.0-or-later
"""The object of which Gaussians were made, as far as the scene still has it."""

from collections.abc import Iterable

import bpy
import numpy as np
from mathutils import Matrix, Vector

from . import capture, placing, splat_object
from .subject import SURFACE_TYPES, family


def source_of(splats: bpy.types.Object, scene: bpy.types.Scene) -> bpy.types.Object | None:
    """The object that was captured; None where nothing tells which, or it is not in the scene."""
    made_of = splats.get(splat_object.MADE_OF)
    found = [obj for obj in scene.objects if made_of and obj.get(capture.SUBJECT_UUID) == made_of]
    if not found:
        namesake = _namesake(splats, scene)
        return namesake if namesake is not None and _lie_together(splats, namesake) else None
    # Duplicates carry the same id: that one counts which lies where the Gaussians were made.
    to_object = Matrix(splat_object.description(splats).get("to_object", Matrix()))
    there = (splats.matrix_world @ to_object.inverted_safe()).translation
    return min(found, key=lambda obj: (obj.matrix_world.translation - there).length)


def may_know_source(splats: bpy.types.Object, scene: bpy.types.Scene) -> bool:
    """Whether the scene may have the object of which the Gaussians were made. For panels, as nothing is searched."""
    return splat_object.MADE_OF in splats or _namesake(splats, scene) is not None


def go_back(context: bpy.types.Context, splats: bpy.types.Object, source: bpy.types.Object) -> None:
    """Show the source in the place of its Gaussians, and make it the active object. One may be a child of the other."""
    placing.show(context, [source])
    placing.hide(context, [splats], spared=set(family(source)) - {splats})
    placing.select_alone(context, [source])


def _namesake(splats: bpy.types.Object, scene: bpy.types.Scene) -> bpy.types.Object | None:
    """The object that has the name of the clip: of one that came as a file nothing else is known."""
    found = scene.objects.get(str(splat_object.description(splats).get("name", "")))
    return None if found == splats or splat_object.is_splat_object(found) else found


def _lie_together(splats: bpy.types.Object, source: bpy.types.Object) -> bool:
    """Whether the source stands where the Gaussians are, now or at their first frame, as far as boxes tell.

    Another object of that name stands elsewhere as a rule.
    """
    first = [vertex.co for vertex in splats.data.vertices]
    own = _box([(splats, [*first, *splats.bound_box])])
    members = [obj for obj in family(source) if obj.type in SURFACE_TYPES and obj != splats]
    other = _box([(obj, obj.bound_box) for obj in members])
    return bool((own[0] <= other[1]).all() and (other[0] <= own[1]).all())


def _box(placed: list[tuple[bpy.types.Object, Iterable]]) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest of places in objects' spaces, in the world; infinity and minus infinity of none."""
    places = np.array([obj.matrix_world @ Vector(place) for obj, places in placed for place in places]).reshape(-1, 3)
    return places.min(axis=0, initial=np.inf), places.max(axis=0, initial=-np.inf)
