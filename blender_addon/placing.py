# SPDX-License-Identifier: GPL-3.0-or-later
"""Where new objects go in the scene, and what of it is selected, hidden and shown."""

from collections.abc import Collection

import bpy

from . import versions
from .subject import family

HIDDEN = "kinesplat_hidden"  # custom property of what `hide` has hidden: in the viewport 1, in renders 2, or both 3
PLACING = ("location", "rotation_", "scale", "delta_")  # beginnings of the RNA paths that place an object


def collection_beside(context: bpy.types.Context, source: bpy.types.Object | None) -> bpy.types.Collection:
    """Beside the source object where that is shown in this scene, else where new objects go, if these take any."""
    wanted = [context.collection]
    if source is not None and source.name in context.scene.objects:
        shown = _shown_collections(context.view_layer.layer_collection)
        wanted = [*(collection for collection in source.users_collection if collection in shown), *wanted]
    takes_objects = (one for one in wanted if one.library is None and one.override_library is None)
    return next(takes_objects, context.scene.collection)


def _shown_collections(layer_collection: bpy.types.LayerCollection) -> set[bpy.types.Collection]:
    """A collection of a view layer and all below it, without those that the viewport or renders do not show."""
    if not layer_collection.is_visible or layer_collection.collection.hide_render:
        return set()
    return {layer_collection.collection}.union(*map(_shown_collections, layer_collection.children))


def is_keyed(obj: bpy.types.Object) -> bool:
    """Whether keys or drivers may move an object, beside what moves its vertices."""
    curves = [curve for fcurves in versions.fcurve_collections(obj) for curve in fcurves]
    curves += obj.animation_data.drivers if obj.animation_data is not None else []
    return any(curve.data_path.startswith(PLACING) for curve in curves)


def moves_as_a_whole(obj: bpy.types.Object) -> bool:
    """Whether keys, drivers, a parent or constraints may move an object, beside what moves its vertices."""
    return is_keyed(obj) or obj.parent is not None or len(obj.constraints) > 0


def travels(obj: bpy.types.Object) -> bool:
    """Whether an object as a whole may move over time: by keys or constraints of its own or of what carries it."""
    carriers = [obj]
    while carriers[-1].parent is not None:
        carriers.append(carriers[-1].parent)
    return any(is_keyed(one) or len(one.constraints) > 0 or one.parent_type == "BONE" for one in carriers)


def select_alone(context: bpy.types.Context, objects: list[bpy.types.Object]) -> None:
    """Select new objects and nothing else; the last becomes the active one."""
    context.view_layer.update()  # before this the view layer does not know them
    for obj in context.view_layer.objects.selected:
        obj.select_set(False)
    for obj in objects:
        if obj.name in context.view_layer.objects:  # its collection may be excluded
            context.view_layer.objects.active = obj
            obj.select_set(True)
        for space in _viewports(context):
            if space.local_view:  # else it would be there, selected, and not to be seen
                obj.local_view_set(space, True)


def hide(
    context: bpy.types.Context, objects: list[bpy.types.Object], *, spared: Collection[bpy.types.Object] = ()
) -> bool:
    """Hide objects with their families in the viewport and in renders; whether any of them is in this view layer.

    spared: children that stay to be seen.
    """
    members = dict.fromkeys(member for obj in objects for member in family(obj))
    shown = [obj for obj in members if obj not in spared and obj.name in context.view_layer.objects]
    for obj in shown:
        if obj.is_editable:
            if hidden := (1 - obj.hide_get()) | 2 * (1 - obj.hide_render):
                obj[HIDDEN] = obj.get(HIDDEN, 0) | hidden
            obj.hide_render = True
        obj.hide_set(True)
    return bool(shown)


def show(context: bpy.types.Context, objects: list[bpy.types.Object]) -> None:
    """Show objects again, and of their children those that `hide` has hidden: others were not to be seen before.

    Children that are linked cannot tell, and are shown.
    """
    for obj in dict.fromkeys(member for one in objects for member in family(one)):
        hidden = obj.get(HIDDEN, 3 if obj in objects or not obj.is_editable else 0)
        if hidden & 1 and obj.name in context.view_layer.objects:
            obj.hide_set(False)
        if hidden and obj.is_editable:
            obj.hide_render = obj.hide_render and not hidden & 2
            obj.pop(HIDDEN, None)


def show_colors(context: bpy.types.Context) -> bool:
    """Switch the solid viewports of this screen to material preview; whether there was one."""
    solid = [space.shading for space in _viewports(context) if space.shading.type == "SOLID"]
    for shading in solid:
        shading.type = "MATERIAL"
    return bool(solid)


def _viewports(context: bpy.types.Context) -> list[bpy.types.SpaceView3D]:
    """Those of this screen."""
    areas = context.screen.areas if context.screen else []
    return [area.spaces.active for area in areas if area.type == "VIEW_3D"]
