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
# Alpha from which on a surface counts in the passes of Cycles that have one value a pixel. Blender begins with 0.5, and
# few single Gaussians reach that, however opaque they are together.
PASS_ALPHA = 0.1
PASSES = ("z", "position", "normal", "vector", "uv", "object_index", "material_index")
EEVEE_PASSES = (*PASSES[:4], "mist", "cryptomatte_object", "cryptomatte_material", "cryptomatte_asset")


def ensure_scene_settings(scene: bpy.types.Scene) -> list[str]:
    """Set what Gaussians need to be rendered in this scene; says in one sentence each what was changed."""
    return [*_raise_bounces(scene), *_lower_alpha(scene), *_dither(scene)]


def needs_settings(scene: bpy.types.Scene) -> bool:
    """Whether `ensure_scene_settings` would change something."""
    fixable = any(splats.library is None for splats in _left_out(scene))
    return fixable or bool(_few_bounces(scene) or _holed_layers(scene))


def scene_warnings(scene: bpy.types.Scene) -> list[str]:
    """What will spoil renders of Gaussians in this scene, one sentence each; quick enough for a panel."""
    warnings = []
    splats = _splats(scene)
    if not splats:
        return warnings
    if scene.render.engine == "CYCLES" and (few := _few_bounces(scene)):
        lowest = min(few.values())
        warnings.append(f"Cycles needs {TRANSPARENT_BOUNCES} transparent bounces to draw Gaussians, not {lowest}")
    if _holed_layers(scene):
        warnings.append(f"Passes have holes where Gaussians are: set Passes > Data > Alpha Threshold to {PASS_ALPHA}")
    if _left_out(scene):
        effects = " and ".join(_effects_of_depth(scene) + _effects_of_motion(scene))
        warnings.append(f"EEVEE leaves Gaussians out of {effects} unless they are drawn dithered")
    if _quads(scene):
        for culprit in _opaque(scene):
            warnings.append(f"{culprit} draws whole quads: set Render to Points in the modifier of the Gaussians")
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


def _splats(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    return [obj for obj in scene.objects if splat_object.UUID in obj and splat_object.is_splat_object(obj)]


def _quads(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """The Gaussians that renders draw as quads."""
    return [splats for splats in _splats(scene) if splat_object.draw_mode(splats, render=True) == "QUADS"]


def _few_bounces(scene: bpy.types.Scene) -> dict[str, int]:
    """Settings of Cycles that are too low, by their names.

    Both the limit and the minimum count: below the minimum, Cycles ends rays at random, which makes noise.
    """
    cycles = getattr(scene, "cycles", None)
    if cycles is None:  # switched off in the preferences, or not built in
        return {}
    settings = {name: getattr(cycles, name) for name in ("transparent_max_bounces", "min_transparent_bounces")}
    return {name: value for name, value in settings.items() if value < TRANSPARENT_BOUNCES}


def _raise_bounces(scene: bpy.types.Scene) -> list[str]:
    labels = {
        "transparent_max_bounces": "Transparent bounces",
        "min_transparent_bounces": "Minimum transparent bounces",
    }
    changes = []
    for name, before in _few_bounces(scene).items():
        setattr(scene.cycles, name, TRANSPARENT_BOUNCES)
        changes.append(f"{labels[name]} of Cycles raised from {before} to {TRANSPARENT_BOUNCES}")
    return changes


def _has_pass(layer: bpy.types.ViewLayer, passes: tuple[str, ...]) -> bool:
    return layer.use and any(getattr(layer, f"use_pass_{name}") for name in passes)


def _holed_layers(scene: bpy.types.Scene) -> list[bpy.types.ViewLayer]:
    """View layers whose passes of Cycles show what is behind Gaussians in many of their pixels."""
    if scene.render.engine != "CYCLES":
        return []
    layers = [layer for layer in scene.view_layers if _has_pass(layer, PASSES)]
    holed = [layer for layer in layers if layer.pass_alpha_threshold > PASS_ALPHA + 1e-6]
    return holed if holed and _quads(scene) else []


def _lower_alpha(scene: bpy.types.Scene) -> list[str]:
    changes = []
    for layer in _holed_layers(scene):
        changes.append(f"Alpha threshold of {layer.name} lowered from {layer.pass_alpha_threshold:.2g} to {PASS_ALPHA}")
        layer.pass_alpha_threshold = PASS_ALPHA
    return changes


def _opaque(scene: bpy.types.Scene) -> list[str]:
    """What knows nothing of how a Gaussian fades towards its edges."""
    if scene.render.engine == "BLENDER_WORKBENCH":
        return ["Workbench"]
    overridden = [layer for layer in scene.view_layers if layer.use and layer.material_override is not None]
    return [f"The material override of {layer.name}" for layer in overridden]


# EEVEE draws what is blended last, over the finished picture, and computes these effects from what it has drawn before:
# in front of a far wall, Gaussians in focus are as blurred as the wall. What is dithered is drawn like all else.


def _effects_of_depth(scene: bpy.types.Scene) -> list[str]:
    """What EEVEE computes from the depth of pixels in this scene."""
    if scene.render.engine != versions.eevee_id():
        return []
    cameras = {scene.camera, *(marker.camera for marker in scene.timeline_markers)}
    has_focus = any(camera.type == "CAMERA" and camera.data.dof.use_dof for camera in cameras if camera)
    has_passes = any(_has_pass(layer, EEVEE_PASSES) for layer in scene.view_layers)
    return ["depth of field"] * has_focus + ["passes"] * has_passes


def _effects_of_motion(scene: bpy.types.Scene) -> list[str]:
    """What it computes from where vertices were before. They must not change their order for that."""
    is_blurred = scene.render.engine == versions.eevee_id() and scene.render.use_motion_blur
    return ["motion blur"] * is_blurred


def _left_out(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """Gaussians that EEVEE leaves out of what it is to compute in this scene, or does it wrongly for."""
    by_depth, by_motion = _effects_of_depth(scene), _effects_of_motion(scene)
    if not by_depth and not by_motion:
        return []
    in_steps = scene.eevee.motion_blur_steps > 1  # each of them a picture, in which blended Gaussians are drawn anew

    def is_left_out(splats: bpy.types.Object) -> bool:
        modifier = splat_object.playback_modifier(splats)
        material = versions.modifier_input(modifier, node_groups.MATERIAL)
        if material is not None and material.surface_render_method == "BLENDED":
            return bool(by_depth) or not in_steps
        return bool(by_motion) and versions.modifier_input(modifier, node_groups.SORT)

    return [splats for splats in _quads(scene) if is_left_out(splats)]


def _dither(scene: bpy.types.Scene) -> list[str]:
    here = [splats for splats in _left_out(scene) if splats.library is None]  # others have to be overridden first
    copies: dict[bpy.types.Material, bpy.types.Material] = {}  # of those of other files
    for splats in here:
        modifier = splat_object.playback_modifier(splats)
        material = versions.modifier_input(modifier, node_groups.MATERIAL)
        if material is not None:
            if not material.is_editable:
                if material not in copies:
                    copies[material] = material.copy()
                material = copies[material]
                versions.set_modifier_input(modifier, node_groups.MATERIAL, material)
            material.surface_render_method = "DITHERED"
        versions.set_modifier_input(modifier, node_groups.SORT, False)
    return ["EEVEE draws Gaussians dithered, which is smooth from 64 samples on"] if here else []


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
