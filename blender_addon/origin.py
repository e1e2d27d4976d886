# SPDX-License-Identifier: GPL-3.0-or-later
"""The object of which Gaussians were made, as far as the scene still has it."""

import bpy
from mathutils import Matrix

from . import capture, placing, splat_object


def source_of(splats: bpy.types.Object, scene: bpy.types.Scene) -> bpy.types.Object | None:
    """The object that was captured; None where nothing tells which, or it is not in the scene."""
    made_of = splats.get(splat_object.MADE_OF)
    found = [obj for obj in scene.objects if made_of and obj.get(capture.SUBJECT_UUID) == made_of]
    if not found:
        return _namesake(splats, scene)
    # Duplicates carry the same id: that one counts which lies where the Gaussians were made.
    to_object = Matrix(splat_object.description(splats).get("to_object", Matrix()))
    there = (splats.matrix_world @ to_object.inverted_safe()).translation
    return min(found, key=lambda obj: (obj.matrix_world.translation - there).length)


def may_know_source(splats: bpy.types.Object, scene: bpy.types.Scene) -> bool:
    """Whether the scene may have the object of which the Gaussians were made. For panels, as nothing is searched."""
    return splat_object.MADE_OF in splats or _namesake(splats, scene) is not None


def go_back(context: bpy.types.Context, splats: bpy.types.Object, source: bpy.types.Object) -> None:
    """Show the source in the place of its Gaussians, and make it the active object."""
    placing.hide(context, [splats])
    placing.show(context, [source])
    placing.select_alone(context, [source])


def _namesake(splats: bpy.types.Object, scene: bpy.types.Scene) -> bpy.types.Object | None:
    """The object that has the name of the clip: of one that came as a file nothing else is known.

    Where it is another object of that name, it does not lie where the Gaussians lie, and is refused for that.
    """
    found = scene.objects.get(str(splat_object.description(splats).get("name", "")))
    return None if found == splats or splat_object.is_splat_object(found) else found
