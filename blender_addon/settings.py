# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panel shows and edits: `scene.kinesplat`, saved with the file, and `window_manager.kinesplat`, a mirror.

The limits of all numbers are those of the contract, which the backend enforces as well.
"""

import math

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    IntVectorProperty,
    PointerProperty,
    StringProperty,
)

from . import splat_object, subject
from .contract.requests import (
    BOUNDS,
    COLOR_SPACES,
    CUTOUTS,
    GAUSSIANS_BY_PRESET,
    LOOPS,
    MAX_PROMPT_LENGTH,
    MODELS,
    MOTION_MODELS,
    PRESETS,
    REPRESENTATIONS,
    RESOLUTION_BY_PRESET,
)

MOVING_MODIFIERS = {"BUILD", "CLOTH", "FLUID", "MESH_CACHE", "MESH_SEQUENCE_CACHE", "SOFT_BODY", "WAVE"}  # without keys
SCENE_TIME = "GeometryNodeInputSceneTime"

PRESET_TEXTS = {
    "draft": ("Draft", "A first look: 2,000 Gaussians"),
    "preview": ("Preview", "Good enough to judge and to retime: 5,000 Gaussians"),
    "final": (
        "Final",
        "As good as it gets: 20,000 Gaussians, of pictures twice as wide and high. Takes two to four times as long",
    ),
}
VIDEO_PRESET_TEXTS = {
    "draft": ("Draft", "A first look: the sides that the video does not show are made up once, and built as they are"),
    "preview": (
        "Preview",
        "What comes out of a draft is then corrected, step by step, until it looks right from all sides",
    ),
    "final": ("Final", "The same with many more steps and Gaussians. Takes long without a graphics card"),
}
CUTOUT_TEXTS = {
    "auto": ("Automatic", "Take the video's own transparency; where it has none, find the subject"),
    "alpha": ("Transparency", "What is opaque in the video is the subject"),
    "model": ("Find Subject", "A network that has learned to tell things from what is behind them"),
    "background": ("Plain Background", "What differs from the color along the edges of the picture is the subject"),
}
REPRESENTATION_TEXTS = {
    "gaussians": ("Gaussians", "Correct the Gaussians themselves. Much faster"),
    "nerf": ("Radiance Field", "Correct a radiance field, then make Gaussians of it, as in the 4Diffusion paper"),
}
MODEL_TEXTS = {
    "kinesplat-small": ("Kinesplat Small", "The small model that comes along. Works on any computer"),
    "published": ("Published", "The large model of the paper. Needs weights of its own and a graphics card"),
}
LOOP_TEXTS = {
    "auto": ("Automatic", "As the prompt says: a walk ends as it began, a death does not"),
    "yes": ("Yes", "It ends as it began, and repeats without a jump"),
    "no": ("No", "It may end anywhere"),
}
COLOR_SPACE_TEXTS = {
    "srgb": ("sRGB", "Blend as image editors do; Scene Linear converts the colors for Blender's view transforms"),
    "linear": ("Linear", "Blend light as renderers do: soft edges come out as Blender itself would render them"),
}
MOTION_MODEL_TEXTS = {
    "bases": ("Rigid Parts", "Small rigid movements, blended. Small files, and limbs keep their length"),
    "hexplane": ("Deformation Field", "HexPlane field, as in the Diffusion4D paper. Slower; files hold each frame"),
}
MAX_CANDIDATES = 4
STEEPEST = 60.0  # degrees that the cameras may stand above or below the horizon
# Blender keeps no reference to the texts that a function gives it.
PRESET_ITEMS, VIDEO_PRESET_ITEMS = (
    tuple((preset, *texts[preset], "NONE", index) for index, preset in enumerate(PRESETS))
    for texts in (PRESET_TEXTS, VIDEO_PRESET_TEXTS)
)


def _bounded(key: str, /, **options):
    """An integer property with the contract's default and limits."""
    bound = BOUNDS[key]
    return IntProperty(default=int(bound.default), min=int(bound.minimum), max=int(bound.maximum), **options)


def _bounded_float(key: str, /, **options):
    """The same with a fraction."""
    bound = BOUNDS[key]
    return FloatProperty(default=bound.default, min=bound.minimum, max=bound.maximum, **options)


def _preset_items(self, context) -> tuple:
    return VIDEO_PRESET_ITEMS if self.kind == "VIDEO" else PRESET_ITEMS


def _preset_changed(self, context) -> None:
    self.gaussians = GAUSSIANS_BY_PRESET[self.preset]
    self.resolution = RESOLUTION_BY_PRESET[self.preset]


def _elevation_angle(self) -> float:
    return math.radians(self.elevation)


def _set_elevation_angle(self, angle: float) -> None:
    self.elevation = math.degrees(angle)


class KINESPLAT_PG_scene(bpy.types.PropertyGroup):
    """Settings of the next generation; they belong to the scene and are saved with it."""

    kind: EnumProperty(
        name="Source",
        description="What the Gaussians are made from",
        items=(
            ("OBJECT", "Object", "An object of the scene, with its own motion or with one that is invented"),
            ("TEXT", "Text", "A description of something that moves"),
            ("IMAGE", "Image", "A picture of something that is to move"),
            ("VIDEO", "Video", "A film of something that moves, seen from the front"),
        ),
    )
    source: PointerProperty(
        type=bpy.types.Object,
        name="Object",
        description="Object to turn into Gaussians, together with its children. Left empty, it is the active object",
    )
    motion_source: EnumProperty(
        name="Motion",
        description="Where the motion of the object comes from",
        items=(
            ("AUTO", "Automatic", "Capture the object's own motion; where it has none, invent one"),
            ("CAPTURE", "Its Animation", "Capture the object's own motion over the frame range"),
            ("INVENT", "Invented", "Take the object as it stands at the current frame, and invent a motion for it"),
        ),
    )
    prompt: StringProperty(
        name="Prompt",
        description="What it is and what it does, in a few English words such as: a fox runs",
        maxlen=MAX_PROMPT_LENGTH,
        options={"TEXTEDIT_UPDATE"},
    )
    image: PointerProperty(
        type=bpy.types.Image,
        name="Image",
        description="Picture of what is to move, best from its side and on a plain or transparent background. "
        "Say in Prompt what it shows",
    )
    video_source: EnumProperty(
        name="Video From",
        description="Where the video comes from",
        items=(
            ("FILE", "File", "A video file, an animated GIF, or a sequence of pictures on disk"),
            ("CLIP", "Clip", "A movie clip of this .blend file"),
            ("STRIP", "Strip", "The active strip of the sequencer, as it is trimmed there"),
        ),
    )
    video_path: StringProperty(
        name="File",
        description="MP4, MOV, WebM, MKV or GIF file; or a folder of pictures, or the first picture of a sequence",
        subtype="FILE_PATH",
        options={"PATH_SUPPORTS_BLEND_RELATIVE"},
    )
    video_clip: PointerProperty(type=bpy.types.MovieClip, name="Movie Clip", description="Movie clip of this file")
    use_whole_video: BoolProperty(
        name="Whole Video",
        description="Take frames from the whole video, rather than from a part of it",
        default=True,
    )
    video_start: IntProperty(
        name="Start",
        description="First frame of the video to take. Frames are counted from 1 on",
        default=1,
        min=1,
    )
    video_end: IntProperty(name="End", description="Last frame of the video to take", default=120, min=2)
    video_frames: _bounded(
        "video_frames",
        name="Frames Taken",
        description="How many frames are taken evenly from the range. The result stores as many moments, and Blender "
        "interpolates between them. More take longer and follow quick movements better",
    )
    cutout: EnumProperty(
        name="Cut Out",
        description="How the subject is told from what is behind it",
        items=tuple((cutout, *CUTOUT_TEXTS[cutout]) for cutout in CUTOUTS),
    )
    representation: EnumProperty(
        name="Optimize",
        description="What is corrected until it looks right from all sides. Drafts are not corrected",
        items=tuple((kind, *REPRESENTATION_TEXTS[kind]) for kind in REPRESENTATIONS),
    )
    model: EnumProperty(
        name="Model",
        description="Which network makes up the sides that the video does not show",
        items=tuple((model, *MODEL_TEXTS[model]) for model in MODELS),
    )
    motion: _bounded_float(
        "motion",
        name="Motion Amount",
        description="How much it moves: 0 is not at all, 1 a little, 3 a walk, 8 and more with its whole body",
        precision=1,
        step=50,
    )
    loop: EnumProperty(
        name="Loop",
        description="Whether the motion ends as it began, so that it can be repeated without a jump",
        items=tuple((loop, *LOOP_TEXTS[loop]) for loop in LOOPS),
    )
    known_motions: BoolProperty(
        name="Known Motions",
        description="Move as a known animal or person does where prompt and shape fit, or as a thing does that the "
        "prompt lets sway, spin or bounce; without, all motion is invented",
        default=True,
    )
    guidance_motion: _bounded_float(
        "guidance_motion",
        name="Prompt Guidance",
        description="How closely the motion follows prompt and amount. More is stronger and less natural",
        precision=2,
        step=10,
    )
    guidance_static: _bounded_float(
        "guidance_static",
        name="Shape Guidance",
        description="How closely the object keeps its looks while it moves. More is steadier and moves less",
        precision=2,
        step=5,
    )
    steps: _bounded(
        "steps",
        name="Steps",
        description="In how many steps the motion comes out of noise. More are slower and somewhat cleaner",
    )
    preview_frames: BoolProperty(
        name="Preview Frames First",
        description="Show the pictures that are made before any Gaussians are, so that you can choose which to build",
        default=False,
    )
    candidates: IntProperty(
        name="Candidates",
        description="How many different motions to choose from. Each begins at a seed of its own",
        default=2,
        min=1,
        max=MAX_CANDIDATES,
    )
    preset: EnumProperty(
        name="Quality",
        description="How much work goes into the result. Changing it also sets Gaussians and Resolution",
        items=_preset_items,
        default=PRESETS.index("preview"),
        update=_preset_changed,
    )
    gaussians: _bounded(
        "gaussians",
        name="Gaussians",
        description="How many Gaussians the result has. More are finer, and cost time and file size in proportion. "
        "Changing the quality sets this as well",
        step=1000,
    )
    sh_degree: _bounded(
        "sh_degree",
        name="View Dependence",
        description="How much colors may change with the view: 0 not at all, 1 and 2 for surfaces that shine. "
        "Needs pictures from all sides, and stores 4 or 9 colors per Gaussian",
    )
    color_space: EnumProperty(
        name="Blend In",
        description="Color space in which the Gaussians are fitted and blended",
        items=tuple((space, *COLOR_SPACE_TEXTS[space]) for space in COLOR_SPACES),
    )
    motion_model: EnumProperty(
        name="Motion Model",
        description="What the motion of the Gaussians is made of",
        items=tuple((model, *MOTION_MODEL_TEXTS[model]) for model in MOTION_MODELS),
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
    frame_start: IntProperty(name="Start", description="First frame of the motion to capture", default=1)
    frame_end: IntProperty(name="End", description="Last frame of the motion to capture", default=250)
    seed: _bounded(
        "seed",
        name="Seed",
        description="Another seed gives another, equally valid result; the same seed gives the same one",
    )
    resolution: _bounded(
        "resolution",
        name="Resolution",
        description="Width and height of the captured pictures in pixels. Details finer than a pixel are lost; twice "
        "as many take four times as long to render. Changing the quality sets this as well: more than 96 for Draft, "
        "128 for Preview or 256 for Final is made smaller before Gaussians are fitted to it",
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
        description="Samples per pixel of the captured pictures. More are less noisy and slower to render",
        default=16,
        min=1,
        max=1024,
    )
    capture_static: BoolProperty(
        name="All Sides",
        description="Also capture the object at the first frame from all sides, above and below: as many pictures "
        "again and eight more. Sides that move out of view come out much better. Without it the shape is a guess",
        default=True,
    )
    elevation: FloatProperty(
        name="Camera Elevation",
        description="How high the cameras stand, in degrees above the horizon",
        default=0.0,
        min=-STEEPEST,
        max=STEEPEST,
        precision=0,
        step=500,
    )
    elevation_angle: FloatProperty(  # the same as the panel shows it; files and scripts have degrees
        name="Camera Elevation",
        description="How high above the horizon the cameras stand that go round the object. Raise it for what is "
        "mostly seen from above",
        subtype="ANGLE",
        min=-math.radians(STEEPEST),
        max=math.radians(STEEPEST),
        precision=0,
        step=500,
        get=_elevation_angle,
        set=_set_elevation_angle,
    )


class KINESPLAT_PG_job(bpy.types.PropertyGroup):
    """One job as the panel shows it; written by the job tracker alone. `name` is the job's name."""

    uid: StringProperty()
    job_id: StringProperty()
    state: StringProperty()
    stage: StringProperty()
    detail: StringProperty()  # what the backend adds to the stage, such as its losses
    fraction: FloatProperty(min=0.0, max=1.0, subtype="FACTOR")
    seconds_left: FloatProperty(default=-1.0)  # below 0: not known
    ahead: IntProperty()  # queued jobs that come first
    message: StringProperty()
    hint: StringProperty()
    is_live: BoolProperty()
    has_result: BoolProperty()
    is_fetching: BoolProperty()
    preview_icon: IntProperty()  # 0: none; of frames, the one that is to be seen now
    shows_frames: BoolProperty()  # its result is frames to choose from rather than a clip
    group: StringProperty()  # the same for all that were generated by one click
    caption: StringProperty()  # of its frames, on several lines
    warnings: StringProperty()  # sentences, one on each line


class KINESPLAT_PG_window_manager(bpy.types.PropertyGroup):
    """State of the backend, the capture, and the jobs, for drawing; written by the job tracker alone."""

    backend_state: StringProperty(default="stopped")
    backend_code: StringProperty()
    backend_message: StringProperty()
    backend_hint: StringProperty()
    capture_active: BoolProperty()
    capture_fraction: FloatProperty(min=0.0, max=1.0, subtype="FACTOR")
    capture_text: StringProperty()
    notice: StringProperty()
    notice_hint: StringProperty()
    notice_code: StringProperty()
    video_text: StringProperty()  # the range of the chosen video in words; empty while it is being read
    video_problem: StringProperty()  # why it cannot be used
    video_icons: IntVectorProperty(size=3)  # its first, middle and last frame; 0: not there yet
    video_numbers: IntVectorProperty(size=3)  # which frames these are, counted from 1 on
    candidates_alike: BoolProperty()  # those of the selected job all show the same motion
    is_playing: BoolProperty(
        name="Play",
        description="Play the frames of the candidates",
        default=True,
    )
    jobs: CollectionProperty(type=KINESPLAT_PG_job)
    active_job: IntProperty(name="Job")


CLASSES = (KINESPLAT_PG_scene, KINESPLAT_PG_job, KINESPLAT_PG_window_manager)


def source_object(context: bpy.types.Context) -> bpy.types.Object | None:
    """The object to capture: the chosen one, else the active one."""
    chosen = context.scene.kinesplat.source
    return chosen if chosen is not None else context.view_layer.objects.active


def lacks_object(context: bpy.types.Context) -> bool:
    """Whether Gaussians are to be made of an object, and none is chosen: Gaussians that are active are none."""
    source = source_object(context)
    return context.scene.kinesplat.kind == "OBJECT" and (source is None or splat_object.is_splat_object(source))


def invents_motion(context: bpy.types.Context) -> bool:
    """Whether the panel asks for a motion rather than captures one; where that is automatic, as far as it can tell.

    What really decides then is the measured motion, which only a capture knows.
    """
    options = context.scene.kinesplat
    if options.kind != "OBJECT":
        return options.kind != "VIDEO"
    if options.motion_source != "AUTO":
        return options.motion_source == "INVENT"
    return lacks_object(context) or not looks_animated(source_object(context))


def video_problem(options: KINESPLAT_PG_scene) -> str:
    """Which settings of a video do not go together; empty where all do."""
    corrects_gaussians = options.representation == "gaussians" and options.preset != "draft"
    if corrects_gaussians and (options.color_space, options.motion_model) != ("srgb", "bases"):
        return "Gaussians are optimized in sRGB and as rigid parts only: choose these, or optimize a radiance field"
    return ""


def left_out(context: bpy.types.Context) -> list[bpy.types.Object]:
    """Selected objects with a surface that would not be captured, as they do not belong to the active one.

    None where an object is fixed as the source: what is selected then is another matter.
    """
    if context.scene.kinesplat.source is not None:
        return []
    others = {obj for obj in context.selected_objects if obj.type in subject.SURFACE_TYPES}
    others = {obj for obj in others if not splat_object.is_splat_object(obj)} - {source_object(context)}
    return list(others - set(subject.family(source_object(context)))) if others else []


def looks_animated(source: bpy.types.Object) -> bool:
    """Whether the object or a child of it has keyframes or drivers, of its own, of its data, or of what poses or cuts
    it, or a modifier that moves it without any."""
    return any(map(_is_moved, subject.family(source)))


def _is_moved(obj: bpy.types.Object) -> bool:
    modifiers = [modifier for modifier in obj.modifiers if modifier.show_render]
    leaders = [leader for modifier in modifiers if (leader := getattr(modifier, "object", None))]
    blocks = [block for one in (obj, *leaders) for block in (one, one.parent, one.data) if block]
    blocks += [block.shape_keys for block in blocks if getattr(block, "shape_keys", None)]
    blocks += [modifier.node_group for modifier in modifiers if modifier.type == "NODES" and modifier.node_group]
    return any(map(_has_motion, blocks)) or any(map(_moves_by_itself, modifiers)) or bool(subject.simulation([obj]))


def _moves_by_itself(modifier: bpy.types.Modifier) -> bool:
    """Whether a modifier changes over time without keyframes. A Scene Time counts that lies in the group itself."""
    if modifier.type == "NODES" and modifier.node_group:
        return any(node.bl_idname == SCENE_TIME for node in modifier.node_group.nodes)
    if modifier.type == "PARTICLE_SYSTEM":
        return modifier.particle_system.settings.type == "EMITTER"
    return modifier.type in MOVING_MODIFIERS


def _has_motion(block: bpy.types.ID) -> bool:
    animation = getattr(block, "animation_data", None)
    return bool(animation and (animation.action or animation.drivers or animation.nla_tracks))


def frame_range(scene: bpy.types.Scene) -> tuple[int, int]:
    """First and last frame of the motion to capture."""
    settings = scene.kinesplat
    if settings.use_scene_range:
        return scene.frame_start, scene.frame_end
    return settings.frame_start, settings.frame_end


def active_job(context: bpy.types.Context) -> KINESPLAT_PG_job | None:
    """The job that is selected in the list."""
    status = bpy.data.window_managers[0].kinesplat  # a timer's context may lack one
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
