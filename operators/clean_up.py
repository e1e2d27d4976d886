# SPDX-License-Identifier: GPL-3.0-or-later
"""Cleaning up of the selected Gaussians, for all frames at once. In Edit Mode the same choices select points."""

import bpy
import numpy as np
from bpy.props import BoolProperty, EnumProperty, FloatProperty

from ..blender_addon import clean_up, enclosure, point_cloud, splat_object
from ..blender_addon.contract.clip import Clip

SHAPES = (
    ("SURFACE", "Surface", "What lies within its surface. Of one with holes, its bounding box"),
    ("BOX", "Bounding Box", "What lies within its bounding box, turned and scaled as it is"),
)
FRAMES = (
    ("ANY", "At Any Frame", "Inside is what lies there at some time"),
    ("ALL", "At All Frames", "Inside is only what lies there all the time"),
    ("CURRENT", "At Current Frame", "Inside is what lies there now"),
)


class CleanUpOperator:
    """What they have in common: `choose` says what goes; it is removed in Object Mode and selected in Edit Mode."""

    bl_options = {"REGISTER", "UNDO"}
    milder = "Choose milder settings"  # what to do where all would go

    @classmethod
    def poll(cls, context):
        if context.mode not in ("OBJECT", "EDIT_MESH"):
            cls.poll_message_set("Switch to Object Mode or Edit Mode")
            return False
        if not chosen_splats(context):
            cls.poll_message_set("Select Gaussians that were imported with Kinesplat")
            return False
        return True

    def choose(self, context, sharing: list[bpy.types.Object], clip: Clip) -> np.ndarray:
        """The Gaussians that go, [N] bool. Raises ValueError with a sentence."""
        raise NotImplementedError

    def remove(self, sharing: list[bpy.types.Object], clip: Clip, gone: np.ndarray) -> None:
        """Carry it out in Object Mode."""
        clean_up.remove(sharing[0].data, gone)

    def execute(self, context):
        editing = context.mode == "EDIT_MESH"
        if editing:
            context.tool_settings.mesh_select_mode = (True, False, False)  # points have no edges or faces to select
        chosen = total = 0
        for sharing in _by_mesh(chosen_splats(context)):
            name = sharing[0].name
            try:
                if not editing:
                    clean_up.demand_editable(sharing)
                clip = point_cloud.clip_of_object(sharing[0])
                gone = self.choose(context, sharing, clip)
                if editing:
                    chosen += clean_up.select(sharing[0], gone)
                elif gone.all():
                    raise clean_up.CleanUpError(
                        f"This would remove all of {name}, so nothing is removed. {self.milder}."
                    )
                else:
                    self.remove(sharing, clip, gone)
                    chosen += int(gone.sum())
                total += clip.count
            except (ValueError, RuntimeError) as error:
                self.report({"ERROR"}, str(error))
        if not total:
            return {"CANCELLED"}
        self.report({"INFO"}, f"{'Selected' if editing else 'Removed'} {chosen:,} of {total:,} Gaussians")
        return {"FINISHED"}


def chosen_splats(context: bpy.types.Context) -> list[bpy.types.Object]:
    """The objects with Gaussians that are in Edit Mode, or else the active one and all other selected ones."""
    if context.mode == "EDIT_MESH":
        objects = [context.active_object, *context.objects_in_mode]
    else:
        objects = [context.active_object, *context.selected_objects]
    return [obj for obj in dict.fromkeys(objects) if splat_object.is_splat_object(obj)]


def _by_mesh(objects: list[bpy.types.Object]) -> list[list[bpy.types.Object]]:
    """Objects that share their mesh, together."""
    meshes = {}
    for obj in objects:
        meshes.setdefault(obj.data, []).append(obj)
    return list(meshes.values())


class KINESPLAT_OT_remove_floaters(CleanUpOperator, bpy.types.Operator):
    bl_idname = "kinesplat.remove_floaters"
    bl_label = "Remove Floaters"
    bl_description = (
        "Remove Gaussians that hang apart from all others, alone or in small clumps. In Edit Mode, select them"
    )
    milder = "Raise Distance, or lower Largest Clump"

    distance: FloatProperty(
        name="Distance",
        description="How far from the others they are at least, in multiples of the usual distance between neighbors",
        default=3.0,
        min=1.0,
        soft_max=20.0,
        max=1000.0,
    )
    clump: FloatProperty(
        name="Largest Clump",
        description="Clumps go that hold less than this part of all Gaussians, weighted by opacity",
        subtype="PERCENTAGE",
        default=1.0,
        min=0.0,
        soft_max=20.0,
        max=100.0,
    )
    time: FloatProperty(
        name="Time Apart",
        description="For how much of the time that they are visible they have to be apart. 0 % is at any frame",
        subtype="PERCENTAGE",
        default=50.0,
        min=0.0,
        max=100.0,
    )

    def choose(self, context, sharing, clip):
        return clean_up.floaters(clip, self.distance, self.clump / 100, self.time / 100)


class KINESPLAT_OT_remove_faint(CleanUpOperator, bpy.types.Operator):
    bl_idname = "kinesplat.remove_faint"
    bl_label = "Remove Faint"
    bl_description = "Remove Gaussians that are hardly visible at any frame. In Edit Mode, select them"
    milder = "Lower Opacity"

    opacity: FloatProperty(
        name="Opacity",
        description="Gaussians go that are never as opaque as this",
        subtype="PERCENTAGE",
        default=5.0,
        min=0.0,
        max=100.0,
    )

    def choose(self, context, sharing, clip):
        return clean_up.faint(clip, self.opacity / 100)


class KINESPLAT_OT_remove_oversized(CleanUpOperator, bpy.types.Operator):
    bl_idname = "kinesplat.remove_oversized"
    bl_label = "Remove Oversized"
    bl_description = "Remove Gaussians that are very large for their object at some frame. In Edit Mode, select them"
    milder = "Raise Size"

    size: FloatProperty(
        name="Size",
        description="Gaussians go that are longer than this part of the object's longest side",
        subtype="PERCENTAGE",
        default=30.0,
        min=0.1,
        max=100.0,
    )

    def choose(self, context, sharing, clip):
        return clean_up.oversized(clip, self.size / 100)


class KINESPLAT_OT_crop_to_object(CleanUpOperator, bpy.types.Operator):
    bl_idname = "kinesplat.crop_to_object"
    bl_label = "Crop to Object"
    bl_description = (
        "Keep the Gaussians inside the other selected object, which may be any closed mesh or an empty, "
        "and remove the rest. In Edit Mode, select the rest"
    )
    milder = "Place the other object around what is to stay, or choose other frames"

    shape: EnumProperty(name="Shape", description="What of the object counts", items=SHAPES, default="SURFACE")
    frames: EnumProperty(
        name="Inside",
        description="When Gaussians have to lie in the object to count as inside",
        items=FRAMES,
        default="ANY",
    )
    invert: BoolProperty(name="Invert", description="Remove what lies inside, keep the rest", default=False)

    @classmethod
    def poll(cls, context):
        if not super().poll(context):
            return False
        if _volume(context) is None:
            cls.poll_message_set(
                "Select one object to crop to, a closed mesh or an empty, then the Gaussians with Shift"
            )
            return False
        return True

    def choose(self, context, sharing, clip):
        context.view_layer.update()  # what a script has just moved is in its place only then
        volume = _volume(context)
        graph = context.evaluated_depsgraph_get()
        is_inside, is_open = enclosure.inside_test(volume, graph, box=self.shape == "BOX")
        if is_open:
            self.report(
                {"WARNING"}, f"{volume.name} has holes, so its bounding box counts. Fill them to crop to its shape"
            )
        outside = [clean_up.outside(obj, clip, volume, is_inside, self.frames, invert=self.invert) for obj in sharing]
        return np.all(outside, axis=0)  # what stays in one of them stays in all


def _volume(context: bpy.types.Context) -> bpy.types.Object | None:
    """The one selected object that holds no Gaussians."""
    others = [obj for obj in context.selected_objects if not splat_object.is_splat_object(obj)]
    return others[0] if len(others) == 1 else None


class KINESPLAT_OT_reduce_density(CleanUpOperator, bpy.types.Operator):
    bl_idname = "kinesplat.reduce_density"
    bl_label = "Reduce Density"
    bl_description = (
        "Keep a part of the Gaussians, evenly over the surface, and make them wider so that it stays closed"
    )
    milder = "Raise Keep"

    keep: FloatProperty(
        name="Keep",
        description="Part of the Gaussians that stays",
        subtype="PERCENTAGE",
        default=50.0,
        min=0.1,
        soft_min=10.0,
        max=100.0,
    )
    fill: FloatProperty(
        name="Fill",
        description="How much of the area that is lost the others make up for: less is sharper, more is more closed",
        subtype="FACTOR",
        default=0.7,
        min=0.0,
        max=1.0,
    )

    @classmethod
    def poll(cls, context):
        if context.mode == "EDIT_MESH":
            cls.poll_message_set("Leave Edit Mode: this also changes the Gaussians that stay")
            return False
        return super().poll(context)

    def choose(self, context, sharing, clip):
        return clean_up.too_many(clip, self.keep / 100)

    def remove(self, sharing, clip, gone):
        clean_up.widen(sharing[0].data, clean_up.growth(clip, gone, self.fill))
        super().remove(sharing, clip, gone)


CLASSES = (
    KINESPLAT_OT_remove_floaters,
    KINESPLAT_OT_remove_faint,
    KINESPLAT_OT_remove_oversized,
    KINESPLAT_OT_crop_to_object,
    KINESPLAT_OT_reduce_density,
)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
