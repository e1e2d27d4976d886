# SPDX-License-Identifier: GPL-3.0-or-later
"""What a click on Generate will cost, told before it: pictures to render, and time of one processor core.

The times are those of docs/construction.md, of videos those of docs/fourdiffusion.md. What nothing tells beforehand is
how fast this computer is, and whether the surface really changes where something could change it.
"""

import bpy

from . import settings, subject
from .contract.orbit import FURTHER_VIEWS
from .contract.requests import SMALL, STILL_FRAMES

# Seconds of one core to build a clip whose motion is known: at the least, and for 1,000 Gaussians.
BUILDING = {"draft": (3.9, 0.36), "preview": (3.4, 0.67), "final": (13.6, 1.24)}
CHANGING = 2.2  # times as long at most where the surface changes: measured 1.1 to 2.2 of 15 subjects at preview
REBUILDING = {"BOOLEAN", "BUILD", "EXPLODE", "FLUID", "MESH_SEQUENCE_CACHE", "REMESH"}  # modifiers that may change it
INVENTION = 16.0  # and to invent one motion
# Seconds of two cores for 8 frames, by what is optimized after the small video model. More frames are reckoned in
# proportion, as is the last of these, which nobody has waited for.
VIDEO = {
    "gaussians": {"draft": 17.0, "preview": 81.0, "final": 360.0},
    "nerf": {"draft": 17.0, "preview": 600.0, "final": 6000.0},
}


def pictures(options: settings.KINESPLAT_PG_scene, *, invents: bool) -> int:
    """How many pictures of the object are rendered. `invents`: its motion is invented, not captured."""
    if options.kind != "OBJECT":
        return 0
    if invents:
        return STILL_FRAMES
    return options.frames + (options.frames + FURTHER_VIEWS if options.capture_static else 0)


def seconds(options: settings.KINESPLAT_PG_scene, *, invents: bool) -> float:
    """Time of one core until there is something to see: a clip, or candidates."""
    least, by_thousand = BUILDING[options.preset]
    build = least + by_thousand * options.gaussians / 1000
    if not invents:
        return build
    return options.candidates * INVENTION if options.preview_frames else INVENTION + build


def sentence(context: bpy.types.Context) -> str:
    """For people."""
    options = context.scene.kinesplat
    if options.kind == "VIDEO":
        return video_sentence(options)
    invents = settings.invents_motion(context)
    count, needed = pictures(options, invents=invents), seconds(options, invents=invents)
    first = f"Renders {count} pictures, then works" if count else "Works"
    if options.kind == "OBJECT" and not invents and may_change(settings.source_object(context)):
        return f"{first} for up to {time_text(CHANGING * needed)} without a GPU, as its surface may change"
    return f"{first} for about {time_text(needed)} without a GPU"


def may_change(source: bpy.types.Object | None) -> bool:
    """Whether something is known to change the surface of an object over time, as far as a glance can tell.

    What grows, and what Geometry Nodes make of it, only the frames themselves tell.
    """
    return source is not None and any(
        obj.type == "META"
        or subject.comes_and_goes(obj)
        or any(modifier.type in REBUILDING and modifier.show_render for modifier in obj.modifiers)
        for obj in subject.family(source)
    )


def video_sentence(options: settings.KINESPLAT_PG_scene) -> str:
    """The same for a video."""
    if options.model != SMALL:
        return "How long it takes depends on the GPU"
    needed = VIDEO[options.representation][options.preset]
    return f"Works for about {time_text(needed * max(options.video_frames / 8, 1))} without a GPU"


def time_text(seconds: float) -> str:
    """`75` -> `75 s`, `300` -> `5 min`: no more than is known."""
    return f"{5 * max(round(seconds / 5), 1)} s" if seconds < 90 else f"{seconds / 60:.0f} min"
