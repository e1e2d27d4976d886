# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a scene that Gaussians need. They belong to the scene, so linking or appending does not bring them."""

import math

import bpy

from . import node_groups, retime, splat_object, versions
from .contract.clip import Clip

# Gaussians behind each other that a ray can pass; what lies beyond is black. Cycles begins with 8. Along a flank seen
# end-on, 5,000 Gaussians need more than 128; rays that meet fewer cost no more than before.
TRANSPARENT_BOUNCES = 512
SLOWEST = 12.0  # frames per second that a scene is made to play at


def ensure_scene_settings(scene: bpy.types.Scene) -> list[str]:
    """Raise Cycles' transparent bounces to what Gaussians need; says in one sentence each what was changed.

    Both the limit and the minimum count: below the minimum, Cycles ends rays at random, which makes noise.
    """
    changes = []
    cycles = getattr(scene, "cycles", None)
    if cycles is None:  # switched off in the preferences, or not built in
        return changes
    for name, label in (
        ("transparent_max_bounces", "Transparent bounces"),
        ("min_transparent_bounces", "Minimum transparent bounces"),
    ):
        before = getattr(cycles, name)
        if before < TRANSPARENT_BOUNCES:
            setattr(cycles, name, TRANSPARENT_BOUNCES)
            changes.append(f"{label} of Cycles raised from {before} to {TRANSPARENT_BOUNCES}")
    return changes


def scene_warnings(scene: bpy.types.Scene) -> list[str]:
    """What will spoil renders of Gaussians in this scene, one sentence each; quick enough for a panel."""
    warnings = []
    splats = [obj for obj in scene.objects if splat_object.UUID in obj and splat_object.is_splat_object(obj)]
    if not splats:
        return warnings
    cycles = getattr(scene, "cycles", None)
    if scene.render.engine == "CYCLES" and cycles is not None:
        lowest = min(cycles.transparent_max_bounces, cycles.min_transparent_bounces)
        if lowest < TRANSPARENT_BOUNCES:
            warnings.append(f"Cycles needs {TRANSPARENT_BOUNCES} transparent bounces to draw Gaussians, not {lowest}")
    blurs_in_eevee = scene.render.engine == versions.eevee_id() and scene.render.use_motion_blur
    if blurs_in_eevee and scene.eevee.motion_blur_steps == 1:  # it leaves out what is transparent then
        warnings.append("EEVEE blurs Gaussians only in steps: set Motion Blur > Steps to 8 or more")
    if scene.camera is None:
        warnings.append("Splats face the scene's camera, and there is none: add one")
    for obj in splats:
        modifier = splat_object.playback_modifier(obj)
        if modifier is None:
            warnings.append(f"{obj.name} has lost the modifier that plays it: undo that, or import it again")
        elif splat_object.description(obj).get("color_space") == "srgb":
            is_raw = scene.view_settings.view_transform == "Raw"
            converts = versions.modifier_input(modifier, node_groups.SCENE_LINEAR)
            if is_raw and converts:
                warnings.append(f"{obj.name} is too dark under the view transform Raw: switch off Scene Linear")
            elif not is_raw and not converts:
                warnings.append(f"{obj.name} is too bright: switch on Scene Linear, or use the view transform Raw")
    return warnings


def frame_range(scene: bpy.types.Scene, clip: Clip, start: int | None = None) -> tuple[int, int]:
    """First and last scene frame that show the whole clip once, from `start` (the current frame) on."""
    first = scene.frame_current if start is None else start
    return first, first + max(math.ceil((clip.frame_count - 1) * retime.scene_fps(scene) / clip.fps - 1e-6), 0)


def apply_frame_range(scene: bpy.types.Scene, clip: Clip, start: int | None = None) -> None:
    """Give the scene the clip's frame rate and a frame range that shows the clip once.

    Few frames of a long video follow each other slower than anybody wants a scene to play: of such a clip, it is the
    multiple of its rate that is nearest to the scene's own. To be called before `import_clip`, so that the clip's
    frames fall on whole scene frames.
    """
    multiple = max(round(retime.scene_fps(scene) / clip.fps), 1) if clip.fps < SLOWEST else 1
    whole = max(round(multiple * clip.fps), 1)
    scene.render.fps = whole
    scene.render.fps_base = whole / (multiple * clip.fps)
    first, last = frame_range(scene, clip, start)
    scene.frame_start, scene.frame_end = first, max(last, first)
