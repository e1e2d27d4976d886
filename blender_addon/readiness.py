# SPDX-License-Identifier: GPL-3.0-or-later
"""Why nothing can be generated now, in a sentence for the panel and for the tooltip of the grey button."""

import bpy

from . import preferences, reference_image, settings, splat_object, subject, video_source


def problem(context: bpy.types.Context) -> str:
    """What is in the way of *Generate*, and what to do about it; empty where nothing is. Reads no file."""
    return source_problem(context) or backend_problem(context)


def source_problem(context: bpy.types.Context) -> str:
    """Why nothing can be made of what the panel names as the source; empty where it can."""
    options = context.scene.kinesplat
    if options.kind == "TEXT":
        return "" if options.prompt.strip() else "Describe in the prompt what to make, such as: a fox runs"
    if options.kind == "IMAGE":
        return reference_image.image_problem(options.image)
    if options.kind == "VIDEO":
        # What is read of the file says the preview, between two draws; here nothing is read.
        unusable = context.window_manager.kinesplat.video_problem.rstrip(".")
        return video_source.nothing_chosen(context.scene) or unusable or settings.video_problem(options)
    return _object_problem(context)


def remark(context: bpy.types.Context) -> str:
    """What the capture of an object's own motion may lack, though nothing is in its way; mostly empty."""
    simulated = subject.simulation(subject.family(settings.source_object(context)))
    if not simulated:
        return ""
    return (
        f"The nodes of {simulated} simulate: bake them in Physics > Simulation Nodes, or play all frames once, else "
        "they stand still here"
    )


def _object_problem(context: bpy.types.Context) -> str:
    source = settings.source_object(context)
    if source is None:
        return "Select the object to turn into Gaussians, or choose it as the source"
    if splat_object.is_splat_object(source):
        return "The source holds Gaussians already: select the object to make them of"
    if source.name in context.view_layer.objects and not source.visible_get():
        return f"{source.name} is hidden: show it in the viewport"
    if no_surface := subject.surface_problem(source):
        return no_surface
    first, last = settings.frame_range(context.scene)
    if last <= first and not settings.invents_motion(context):
        return "The frame range holds no motion: choose an end after the start"
    return ""


def backend_problem(context: bpy.types.Context) -> str:
    """Why the backend cannot be asked; empty where it can, and where *Generate* starts it. Background mode waits."""
    state = context.window_manager.kinesplat.backend_state
    if bpy.app.background or state in ("running", "starting") or starts_backend(context):
        return ""
    if state == "stopping":
        return "The backend is stopping: wait a moment, then try again"
    if preferences.get().backend != "LOCAL":
        return "There is no connection to the backend: see the top of this tab"
    return "The backend does not run: see the top of this tab"


def starts_backend(context: bpy.types.Context) -> bool:
    """Whether *Generate* has to start the backend, and may."""
    is_off = context.window_manager.kinesplat.backend_state == "stopped"
    return is_off and preferences.get().backend == "LOCAL" and not bpy.app.background
