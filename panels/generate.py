# SPDX-License-Identifier: GPL-3.0-or-later
"""What to turn into Gaussians, and how."""

import bpy

from ..blender_addon import cost, origin, readiness, settings, splat_object, subject, video_source
from ..blender_addon.contract.requests import SMALL
from .layout import SidebarPanel, draw_sentence, icon_scale, lay_out_settings

IMAGE_SCALE = 5.0  # of the chosen image


class KINESPLAT_PT_generate(SidebarPanel, bpy.types.Panel):
    bl_label = "Generate"

    def draw(self, context):
        layout = self.layout
        lay_out_settings(layout, context)
        options = context.scene.kinesplat
        status = context.window_manager.kinesplat

        column = layout.column()
        column.active = not status.capture_active
        row = column.row()
        row.use_property_split = False  # four names need the whole width
        row.prop(options, "kind", expand=True)
        needs_object = settings.lacks_object(context)
        if needs_object:
            column.prop(options, "source")
        elif options.kind == "OBJECT":
            draw_object(column, context)
        elif options.kind == "IMAGE":
            draw_image(column, context)
        elif options.kind == "VIDEO":
            draw_video(column, context)
        if settings.invents_motion(context) and not needs_object:
            draw_invention(column, options)
        column.prop(options, "preset")

        if status.capture_active:
            layout.progress(factor=status.capture_fraction, text=status.capture_text, translate=False)
            layout.operator("kinesplat.cancel_capture", text="Cancel", icon="X")
        elif needs_object:
            draw_sentence(layout, context, "Select the object to make Gaussians of", icon="INFO")
        else:
            row = layout.row()
            row.scale_y = 1.6
            row.operator("kinesplat.generate", icon="OUTLINER_OB_POINTCLOUD")
            draw_prospect(layout, context)
        active = context.view_layer.objects.active
        offers_way_back = options.kind == "OBJECT" and splat_object.is_splat_object(active)  # the source may be hidden
        if offers_way_back and not status.capture_active and origin.may_know_source(active, context.scene):
            layout.operator("kinesplat.back_to_object", icon="LOOP_BACK")


def draw_prospect(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Why Generate is grey, or what a click on it will cost."""
    problem = readiness.problem(context)
    if not problem:
        column = layout.column()
        column.active = False
        draw_sentence(column, context, cost.sentence(context), icon="NONE")
    elif context.scene.kinesplat.kind != "VIDEO" or not context.window_manager.kinesplat.video_problem:
        draw_sentence(layout, context, problem, icon="INFO")  # else it stands beside the video


def draw_object(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Which object, and where its motion comes from."""
    options = context.scene.kinesplat
    source = settings.source_object(context)
    layout.prop(options, "source", placeholder=source.name)
    whole = subject.whole_of(source)
    if whole is not None:
        layout.operator("kinesplat.take_whole", text=f"Take All of {whole.name}", icon="CON_CHILDOF", translate=False)
    elif settings.left_out(context):
        sentence = (
            f"Only {source.name} is taken, the active object. For more, make one the parent of the others: Ctrl P"
        )
        draw_sentence(layout, context, sentence, icon="INFO")
    layout.prop(options, "motion_source")
    if settings.invents_motion(context):
        return
    if remark := readiness.remark(context):
        draw_sentence(layout, context, remark, icon="INFO")
    layout.prop(options, "frames")
    layout.prop(options, "use_scene_range")
    if options.use_scene_range:
        first, last = settings.frame_range(context.scene)
        row = layout.row()
        row.active = False
        row.label(text=f"Frames {first} to {last}", icon="BLANK1", translate=False)
    else:
        pair = layout.column(align=True)
        pair.prop(options, "frame_start")
        pair.prop(options, "frame_end")


def draw_image(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Which image, and what it shows."""
    options = context.scene.kinesplat
    layout.template_ID(options, "image", open="image.open")
    if options.image is not None:
        layout.template_icon(layout.icon(options.image), scale=IMAGE_SCALE)


def draw_video(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Which video, which part of it with a few of its frames, and what is to be made of it."""
    options, status = context.scene.kinesplat, context.window_manager.kinesplat
    layout.row().prop(options, "video_source", expand=True)
    if options.video_source == "FILE":
        row = layout.row()  # as wide as the panel: paths are long
        row.use_property_split = False
        row.prop(options, "video_path", text="", placeholder="Video, GIF or pictures")
    elif options.video_source == "CLIP":
        layout.template_ID(options, "video_clip", open="clip.open")
    else:
        strip = video_source.active_strip(context.scene)
        text = strip.name if strip else "No active strip"
        layout.label(text=text, icon="SEQUENCE" if strip else "INFO", translate=False)
    layout.prop(options, "use_whole_video")
    if not options.use_whole_video:
        pair = layout.column(align=True)
        pair.prop(options, "video_start")
        pair.prop(options, "video_end")
    layout.prop(options, "video_frames")
    draw_video_preview(layout, context)
    if status.video_problem:
        draw_sentence(layout, context, status.video_problem, icon="ERROR", alert=True)
        layout.operator("kinesplat.read_video", icon="FILE_REFRESH")
    row = layout.row()
    row.use_property_split = False
    row.prop(options, "prompt", text="", icon="TEXT", placeholder="What it shows, such as: a fox runs")
    draw_suggestions(row, options)
    layout.prop(options, "cutout")


def draw_video_preview(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """First, middle and last frame of the range, and the range in words; nothing while there is no video."""
    status = context.window_manager.kinesplat
    if any(status.video_icons):
        scale = icon_scale(context, len(status.video_icons))
        row = layout.row(align=True)
        for icon, number in zip(status.video_icons, status.video_numbers, strict=True):
            cell = row.column(align=True)
            cell.template_icon(icon, scale=scale)
            caption = cell.row()
            caption.alignment = "CENTER"
            caption.label(text=str(number) if number else "", translate=False)
    if status.video_text:
        draw_sentence(layout, context, status.video_text, icon="NONE")


def draw_invention(layout: bpy.types.UILayout, options: settings.KINESPLAT_PG_scene) -> None:
    """What the invented motion is to be like."""
    row = layout.row()  # as wide as the panel: prompts are long
    row.use_property_split = False
    row.prop(options, "prompt", text="", icon="TEXT", placeholder="Prompt, such as: a fox runs")
    draw_suggestions(row, options)
    layout.prop(options, "motion", slider=True)
    layout.prop(options, "loop")
    layout.prop(options, "seed")
    layout.prop(options, "preview_frames")
    if options.preview_frames:
        layout.prop(options, "candidates")


def draw_suggestions(row: bpy.types.UILayout, options: settings.KINESPLAT_PG_scene) -> None:
    """What the small model knows; the published one reads any words."""
    if options.model == SMALL:
        row.operator("kinesplat.suggest_prompt", text="", icon="VIEWZOOM")


class KINESPLAT_PT_invention(SidebarPanel, bpy.types.Panel):
    bl_label = "Advanced"
    bl_parent_id = "KINESPLAT_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context):
        if settings.lacks_object(context):
            return False
        return context.scene.kinesplat.kind == "VIDEO" or settings.invents_motion(context)

    def draw(self, context):
        layout = self.layout
        lay_out_settings(layout, context)
        options = context.scene.kinesplat
        if options.kind == "VIDEO":
            row = layout.row()
            row.active = options.preset != "draft"
            row.prop(options, "representation")
            layout.prop(options, "model")
            return
        layout.prop(options, "known_motions")
        layout.prop(options, "guidance_motion")
        layout.prop(options, "guidance_static")
        layout.prop(options, "steps")


class KINESPLAT_PT_construction(SidebarPanel, bpy.types.Panel):
    bl_label = "Result"
    bl_parent_id = "KINESPLAT_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        layout = self.layout
        lay_out_settings(layout, context)
        options = context.scene.kinesplat
        layout.prop(options, "gaussians")
        layout.prop(options, "sh_degree")
        layout.prop(options, "color_space")
        layout.prop(options, "motion_model")
        if not settings.invents_motion(context):
            layout.prop(options, "seed")


class KINESPLAT_PT_capture(SidebarPanel, bpy.types.Panel):
    bl_label = "Capture"
    bl_parent_id = "KINESPLAT_PT_generate"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context):
        return context.scene.kinesplat.kind == "OBJECT" and not settings.lacks_object(context)

    def draw(self, context):
        layout = self.layout
        lay_out_settings(layout, context)
        options = context.scene.kinesplat
        layout.prop(options, "resolution")
        layout.prop(options, "elevation_angle")
        if not settings.invents_motion(context):
            layout.prop(options, "capture_static")
        column = layout.column()
        column.prop(options, "engine")
        column.prop(options, "samples")


CLASSES = (KINESPLAT_PT_generate, KINESPLAT_PT_invention, KINESPLAT_PT_construction, KINESPLAT_PT_capture)
register, unregister = bpy.utils.register_classes_factory(CLASSES)
