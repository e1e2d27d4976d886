# SPDX-License-Identifier: GPL-3.0-or-later
"""An object that holds time-varying Gaussians: how it is known, what plays it, what it says about itself."""

import json

import bpy

from . import node_groups, versions

UUID = "kinesplat_uuid"  # custom properties of the object
CLIP = "kinesplat_clip"
LINKED = "{} is linked from another file. Make a library override of it first."
MADE_OF = "kinesplat_made_of"  # the id of the object that was captured (`capture.SUBJECT_UUID` there)


def is_splat_object(obj: bpy.types.Object | None) -> bool:
    """Whether an object holds time-varying Gaussians of this add-on (also a copy, a linked or an overridden one)."""
    if obj is None or obj.type != "MESH":
        return False
    attributes = obj.data.attributes
    return all(name in attributes for name in ("pos.0", "rot.0", "f_dc_0", "opacity"))


def plays(obj: bpy.types.Object | None) -> bool:
    """Whether an object plays stored frames: Gaussians, or a mesh that took over their motion."""
    return obj is not None and obj.type == "MESH" and playback_modifier(obj) is not None


def instances_quads(obj: bpy.types.Object | None) -> bool:
    """Whether an object shows those of a collection, often a linked one, in its own place, and renders draw quads."""
    if obj is None or obj.instance_type != "COLLECTION" or obj.instance_collection is None:
        return False
    members = (member for member in obj.instance_collection.all_objects if is_splat_object(member))
    return any(draw_mode(member, render=True) == "QUADS" for member in members)


def playback_modifier(splats: bpy.types.Object) -> bpy.types.NodesModifier | None:
    """The modifier that plays the Gaussians, by what it does rather than by its name."""
    for modifier in splats.modifiers:
        if modifier.type == "NODES" and modifier.node_group is not None:
            names = {item.name for item in modifier.node_group.interface.items_tree}
            if {node_groups.FRAME, node_groups.LAST_FRAME} <= names:
                return modifier
    return None


def is_still(splats: bpy.types.Object) -> bool:
    """Whether an object that plays has one stored frame alone, so that there is nothing to retime."""
    modifier = playback_modifier(splats)
    return modifier is not None and versions.modifier_input(modifier, node_groups.LAST_FRAME) == 0


def set_draw_mode(splats: bpy.types.Object, *, viewport: str | None = None, render: str | None = None) -> None:
    """Choose how the viewport and renders draw the Gaussians: `POINTS`, `QUADS` or `NATIVE`; None leaves it.

    Raises:
        ValueError: the object is linked, has no playback modifier, or its nodes cannot draw in that way.
    """
    if splats.library is not None:  # Blender would not save it, nor see it in an override that is made later
        raise ValueError(LINKED.format(splats.name))
    modifier = playback_modifier(splats)
    if modifier is None:
        raise ValueError(f"{splats.name} has lost the modifier that plays its Gaussians.")
    for menu, mode in ((node_groups.VIEWPORT, viewport), (node_groups.RENDER, render)):
        if mode is not None:
            try:
                versions.set_modifier_input(modifier, menu, node_groups.DRAW_MODES[mode])
            except KeyError as error:
                raise ValueError(f"{splats.name} cannot be drawn as {mode.lower()} in this Blender.") from error


def draw_mode(splats: bpy.types.Object, *, render: bool = False) -> str | None:
    """How the viewport (or renders) draw the Gaussians, or None where nothing plays them."""
    modifier = playback_modifier(splats)
    if modifier is None:
        return None
    shown = versions.modifier_input(modifier, node_groups.RENDER if render else node_groups.VIEWPORT)
    return next((mode for mode, text in node_groups.DRAW_MODES.items() if text == shown), None)


def shown_frame(splats: bpy.types.Object) -> float:
    """The stored frame that an object shows at the scene's current frame; fractional between two.

    Raises:
        ValueError: the object has no playback modifier, or Blender does not animate it.
    """
    evaluated = splats.evaluated_get(bpy.context.evaluated_depsgraph_get())
    if not evaluated.is_evaluated:  # its F-curves have not been read at the current frame
        raise ValueError(
            f"{splats.name} is disabled in viewports or excluded from the view layer. Enable it and try again."
        )
    modifier = playback_modifier(evaluated)
    if modifier is None:
        raise ValueError(f"{splats.name} has lost the modifier that plays its Gaussians.")
    return float(versions.modifier_input(modifier, node_groups.FRAME))


def frame_count(mesh: bpy.types.Mesh) -> int:
    """Number of frames that a mesh of Gaussians stores."""
    attributes = mesh.attributes
    count = 0
    while f"pos.{count}" in attributes and f"rot.{count}" in attributes:
        count += 1
    return count


def description(splats: bpy.types.Object) -> dict:
    """What the clip said about itself: name, fps, color_space, to_object, provenance. Empty where it is gone."""
    try:
        found = json.loads(splats.get(CLIP, "{}"))
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def clip_fps(splats: bpy.types.Object) -> float:
    """Stored frames per second, as the clip was made."""
    fps = description(splats).get("fps")
    return float(fps) if isinstance(fps, int | float) and fps > 0 else 24.0
