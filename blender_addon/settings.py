# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panel shows and edits: `scene.kinesplat`, saved with the file, and `window_manager.kinesplat`, a mirror.

The limits of all numbers are those of the contract, which the backend enforces as well.
"""

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from .contract.requests import BOUNDS, GAUSSIANS_BY_PRESET, PRESETS

PRESET_TEXTS = {
    "draft": ("Draft", "A first look, in a fraction of the time"),
    "preview": ("Preview", "Good enough to judge and to retime"),
    "final": ("Final", "As good as it gets, and the slowest"),
}


def _bounded(key: str, /, **options):
    """An integer property with the contract's default and limits."""
    bound = BOUNDS[key]
    return IntProperty(default=int(bound.default), min=int(bound.minimum), max=int(bound.maximum), **options)


def _preset_changed(self, context) -> None:
    self.gaussians = GAUSSIANS_BY_PRESET[self.preset]


class KINESPLAT_PG_scene(bpy.types.PropertyGroup):
    """Settings of the next generation; they belong to the scene and are saved with it."""

    source: PointerProperty(
        type=bpy.types.Object,
        name="Source",
        description="Object to turn into Gaussians, together with its children. Left empty, it is the active object",
    )
    preset: EnumProperty(
        name="Quality",
        description="How much work goes into the result",
        items=tuple((preset, *PRESET_TEXTS[preset]) for preset in PRESETS),
        default="preview",
        update=_preset_changed,
    )
    gaussians: _bounded(
        "gaussians",
        name="Gaussians",
        description="How many Gaussians the result has. Changing the quality sets this as well",
        step=1000,
    )
    frames: _bounded(
        "frames",
        name="Stored Frames",
        description="How many moments of the motion are captured and stored. Blender interpolates between them",
    )
    use_scene_range: BoolProperty(
        name="Scene Frame Range",
        description="Capture the motion over the scene's start and end frame",
        default=True,
    )
    frame_start: IntProperty(name="Start", description="First frame of the motion", default=1)
    frame_end: IntProperty(name="End", description="Last frame of the motion", default=250)
    seed: _bounded("seed", name="Seed", description="Another seed gives another, equally valid result")
    resolution: _bounded(
        "resolution",
        name="Resolution",
        description="Width and height of the captured pictures in pixels",
        subtype="PIXEL",
        step=32,
    )
    engine: EnumProperty(
        name="Render Engine",
        description="What renders the captured pictures",
        items=(
            ("AUTO", "Automatic", "EEVEE in the window, Cycles in background mode"),
            ("EEVEE", "EEVEE", "Fast; needs a graphics card or a display"),
            ("CYCLES", "Cycles", "Slower; works everywhere"),
        ),
    )
    samples: IntProperty(
        name="Samples",
        description="Samples per pixel of the captured pictures",
        default=16,
        min=1,
        max=1024,
    )
    capture_static: BoolProperty(
        name="All Sides",
        description="Also capture the object from all sides at the first frame. Costs as many pictures again and "
        "makes sides that move out of view much better",
        default=True,
    )
    elevation: FloatProperty(
        name="Camera Elevation",
        description="How high the cameras stand, in degrees above the horizon",
        default=0.0,
        min=-60.0,
        max=60.0,
        precision=0,
        step=500,
    )


class KINESPLAT_PG_job(bpy.types.PropertyGroup):
    """One job as the panel shows it; written by the job tracker alone. `name` is the job's name."""

    uid: StringProperty()
    job_id: StringProperty()
    state: StringProperty()
    stage: StringProperty()
    fraction: FloatProperty(min=0.0, max=1.0, subtype="FACTOR")
    seconds_left: FloatProperty(default=-1.0)  # below 0: not known
    ahead: IntProperty()  # queued jobs that come first
    message: StringProperty()
    hint: StringProperty()
    is_live: BoolProperty()
    has_result: BoolProperty()
    is_fetching: BoolProperty()
    preview_icon: IntProperty()  # 0: none


class KINESPLAT_PG_window_manager(bpy.types.PropertyGroup):
    """State of the backend, the capture, and the jobs, for drawing; written by the job tracker alone."""

    backend_state: StringProperty(default="stopped")
    backend_code: StringProperty()
    backend_message: StringProperty()
    backend_hint: StringProperty()
    backend_url: StringProperty()
    backend_version: StringProperty()
    capture_active: BoolProperty()
    capture_fraction: FloatProperty(min=0.0, max=1.0, subtype="FACTOR")
    capture_text: StringProperty()
    capture_name: StringProperty()
    notice: StringProperty()
    notice_hint: StringProperty()
    notice_code: StringProperty()
    jobs: CollectionProperty(type=KINESPLAT_PG_job)
    active_job: IntProperty(name="Job")


CLASSES = (KINESPLAT_PG_scene, KINESPLAT_PG_job, KINESPLAT_PG_window_manager)


def source_object(context: bpy.types.Context) -> bpy.types.Object | None:
    """The object to capture: the chosen one, else the active one."""
    chosen = context.scene.kinesplat.source
    return chosen if chosen is not None else context.view_layer.objects.active


def frame_range(scene: bpy.types.Scene) -> tuple[int, int]:
    """First and last frame of the motion to capture."""
    settings = scene.kinesplat
    if settings.use_scene_range:
        return scene.frame_start, scene.frame_end
    return settings.frame_start, settings.frame_end


def active_job(context: bpy.types.Context) -> KINESPLAT_PG_job | None:
    """The job that is selected in the list."""
    status = context.window_manager.kinesplat
    return status.jobs[status.active_job] if 0 <= status.active_job < len(status.jobs) else None


def register() -> None:
    """Add the properties to scenes and to the window manager."""
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.Scene.kinesplat = PointerProperty(type=KINESPLAT_PG_scene, name="Kinesplat")
    bpy.types.WindowManager.kinesplat = PointerProperty(type=KINESPLAT_PG_window_manager, name="Kinesplat")


def unregister() -> None:
    """Take them away again."""
    del bpy.types.WindowManager.kinesplat
    del bpy.types.Scene.kinesplat
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
