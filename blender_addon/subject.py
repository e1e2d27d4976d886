# SPDX-License-Identifier: GPL-3.0-or-later
"""The subject of a capture: which of the scene's objects belong to it, and why a choice may be refused."""

from dataclasses import dataclass, replace

import bpy

from . import versions
from .splat_object import is_splat_object

SURFACE_TYPES = {"MESH", "CURVE", "SURFACE", "FONT", "META"}
CAPTURED_TYPES = SURFACE_TYPES | {"CURVES"}  # hair
LEFT_OUT_TYPES = {"LIGHT", "LIGHT_PROBE", "CAMERA", "SPEAKER"}  # the capture brings its own light and camera
CACHED_PHYSICS = {"CLOTH": "Cloth", "SOFT_BODY": "Soft body"}


class CaptureError(Exception):
    """Why a capture cannot be made or go on. The message is one or two sentences for the user."""


class SubjectError(CaptureError):
    """The chosen object cannot be captured."""


@dataclass(frozen=True)
class Subject:
    """An object of a scene by name, so that it can be found again after an undo or be missed after File > Open."""

    name: str
    library: str | None  # path of the library that a linked object comes from
    scene: str
    view_layer: str
    members: frozenset[str] = frozenset()  # full names of what belonged to it at first; empty: whatever does now

    def source(self) -> bpy.types.Object:
        """The object itself. Raises SubjectError where it is not in the scene any more."""
        source = bpy.data.objects.get((self.name, self.library))
        scene = bpy.data.scenes.get(self.scene)
        if source is None or scene is None or self.view_layer not in scene.view_layers:
            raise SubjectError(f"{self.name} is not in the scene any more. Choose an object and start again.")
        return source

    def objects(self) -> list[bpy.types.Object]:
        """Of the object's family, what F12 would render; neither lights nor cameras.

        Raises:
            SubjectError: it is not in the scene any more, or not with all its members.
        """
        source = self.source()
        scene = bpy.data.scenes[self.scene]
        rendered = _rendered_objects(scene.view_layers[self.view_layer])
        shown = (obj for obj in family(source) if obj.type not in LEFT_OUT_TYPES and obj.name_full in rendered)
        found = {obj.name_full: obj for obj in shown}
        if missing := sorted(self.members - found.keys()):
            raise SubjectError(
                f"{missing[0]} was removed, renamed or hidden in renders while {self.name} was being captured. "
                "Generate again."
            )
        return [obj for name, obj in found.items() if not self.members or name in self.members]


def find_subject(context: bpy.types.Context, obj: bpy.types.Object | None) -> Subject:
    """The subject that `obj` stands for: itself with its family.

    Raises:
        SubjectError: no object, hidden, nothing that could have a surface, or moved by physics that is not baked.
    """
    if obj is None:
        raise SubjectError("No object is selected. Select the object to capture and try again.")
    context.view_layer.update()  # what a script has just made is in the view layer only then
    if obj not in list(context.view_layer.objects):
        raise SubjectError(f"{obj.name} is not in this scene's view layer. Choose an object that is.")
    subject = Subject(obj.name, obj.library and obj.library.filepath, context.scene.name, context.view_layer.name)
    if not obj.visible_get(view_layer=context.view_layer):
        raise SubjectError(f"{obj.name} is hidden. Show it in the viewport and try again.")

    if problem := surface_problem(obj):
        raise SubjectError(f"{problem}.")
    objects = subject.objects()
    if not any(_may_have_surface(member) for member in objects):
        if setting := _hidden_from_cameras(obj):
            raise SubjectError(
                f"{obj.name} is not seen by cameras. Change that in Object Properties > Visibility > {setting}."
            )
        raise SubjectError(f"{obj.name} is hidden in renders. Enable it for rendering in the Outliner and try again.")
    for member in objects:
        _refuse_unbaked_physics(member)
    _refuse_drivers_on_scene(objects, context.scene)
    return replace(subject, members=frozenset(obj.name_full for obj in objects))


def family(obj: bpy.types.Object) -> list[bpy.types.Object]:
    """An object with what belongs to it: all its children, and meshes that an armature among them deforms.

    Characters are often rigged without making their meshes children of the armature. Gaussians do not belong to what
    they go along with.
    """
    children = (child for child in obj.children_recursive if not is_splat_object(child))
    members = dict.fromkeys((obj, *children))
    rigs = {member for member in members if member.type == "ARMATURE"}
    if rigs:
        users = set().union(*bpy.data.user_map(subset=rigs, value_types={"OBJECT"}).values())  # much faster than a loop
        members |= dict.fromkeys(
            user
            for user in sorted(users - {*members}, key=lambda user: user.name_full)
            if any(modifier.type == "ARMATURE" and modifier.object in rigs for modifier in user.modifiers)
        )
    return list(members)


def whole_of(obj: bpy.types.Object) -> bpy.types.Object | None:
    """The uppermost parent of an object, if it can be seen and brings more surfaces along; else None."""
    top = obj
    while top.parent is not None:
        top = top.parent
    if top == obj or not top.visible_get():
        return None
    more = (member for member in family(top) if member != top and member.visible_get() and _may_have_surface(member))
    return top if set(more) - set(family(obj)) else None


def surface_problem(obj: bpy.types.Object) -> str:
    """A sentence without its full stop, where neither an object nor its family can have a surface."""
    if _may_have_surface(obj) or any(_may_have_surface(member) for member in family(obj)):
        return ""
    return f"{obj.name} has no surface, nor has any of its children: select a mesh, or the armature or empty above it"


def _may_have_surface(obj: bpy.types.Object) -> bool:
    # Any object may get one from a Geometry Nodes modifier or bring instances along.
    return (
        obj.type in CAPTURED_TYPES
        or obj.instance_type != "NONE"
        or any(modifier.type == "NODES" for modifier in obj.modifiers)
    )


def _rendered_objects(view_layer: bpy.types.ViewLayer) -> set[str]:
    """Full names of the objects that F12 would render in this view layer."""
    names = set()
    open_collections = [view_layer.layer_collection]
    while open_collections:
        layer_collection = open_collections.pop()
        if layer_collection.exclude or layer_collection.collection.hide_render:
            continue
        objects = layer_collection.collection.objects
        shown = (obj for obj in objects if not obj.hide_render or comes_and_goes(obj))
        names.update(obj.name_full for obj in shown if not _hidden_from_cameras(obj))
        open_collections.extend(layer_collection.children)
    return names


def _hidden_from_cameras(obj: bpy.types.Object) -> str:
    """Which setting lets an object that is rendered leave nothing in the picture; empty where none does."""
    if not obj.visible_camera:  # such as what casts the shadow of its Gaussians
        return "Ray Visibility > Camera"
    return "Mask > Holdout" if obj.is_holdout else "Mask > Shadow Catcher" if obj.is_shadow_catcher else ""


def comes_and_goes(obj: bpy.types.Object) -> bool:
    """Whether keys or a driver hide an object in renders at times: each picture then shows what its frame does."""
    drivers = obj.animation_data.drivers if obj.animation_data else ()
    is_driven = any(driver.data_path == "hide_render" for driver in drivers)
    return is_driven or versions.find_fcurve(obj, "hide_render") is not None


def _refuse_unbaked_physics(obj: bpy.types.Object) -> None:
    # The frames are rendered one by one and out of the scene: simulations that step through it need their cache.
    body = obj.rigid_body
    if body is not None and body.type == "ACTIVE" and not body.kinematic:
        raise SubjectError(
            f"{obj.name} moves by rigid body physics. Bake it first: Object > Rigid Body > Bake to Keyframes."
        )
    for modifier in obj.modifiers:
        if modifier.type in CACHED_PHYSICS and modifier.show_render and not modifier.point_cache.is_baked:
            kind = CACHED_PHYSICS[modifier.type]
            raise SubjectError(f"{kind} physics of {obj.name} is not baked. Bake it in Physics > Cache and try again.")


def simulation(objects: list[bpy.types.Object]) -> str:
    """Name of one of `objects` whose Geometry Nodes simulate, or nothing. Whether it is baked Blender tells nobody."""
    for obj in objects:
        for modifier in obj.modifiers:
            nodes = [bake.node for bake in modifier.bakes] if modifier.type == "NODES" and modifier.show_render else []
            if any(node and node.bl_idname == "GeometryNodeSimulationOutput" for node in nodes):
                return obj.name
    return ""


def _refuse_drivers_on_scene(objects: list[bpy.types.Object], scene: bpy.types.Scene) -> None:
    # A capture does not move the user's scene in time, which would throw away poses that are not keyframed yet. So a
    # driver that reads something there that changes over time would see it stand still.
    changing = _animated_paths(scene)
    for block in dependencies(objects):
        if isinstance(block, bpy.types.Scene):
            continue
        animation = getattr(block, "animation_data", None)
        for curve in animation.drivers if animation else ():
            for variable in curve.driver.variables:
                on_scene = variable.type == "CONTEXT_PROP" or variable.targets[0].id_type == "SCENE"
                path = variable.targets[0].data_path
                if on_scene and (path.startswith("frame_") or path in changing):
                    raise SubjectError(
                        f"A driver of {block.name} follows the scene's {path}, which a capture cannot see change. "
                        "Bake the animation, or for the frame number write frame in the driver's expression."
                    )


def _animated_paths(scene: bpy.types.Scene) -> set[str]:
    animation = scene.animation_data
    if animation is None:
        return set()
    curves = list(animation.drivers)
    if animation.action is not None:
        bags = [bag for layer in animation.action.layers for strip in layer.strips for bag in strip.channelbags]
        curves.extend(curve for bag in bags for curve in bag.fcurves)
    return {curve.data_path for curve in curves}


def dependencies(objects: list[bpy.types.Object]) -> set[bpy.types.ID]:
    """The objects and all data-blocks that they use, directly or through others; of scenes, not what these use."""
    used_by: dict[bpy.types.ID, list[bpy.types.ID]] = {}
    for used, users in bpy.data.user_map().items():
        for user in users:
            used_by.setdefault(user, []).append(used)
    reached: set[bpy.types.ID] = set()
    unseen: list[bpy.types.ID] = list(objects)
    while unseen:
        block = unseen.pop()
        if block not in reached:
            reached.add(block)
            unseen.extend(() if isinstance(block, bpy.types.Scene) else used_by.get(block, ()))
    return reached
