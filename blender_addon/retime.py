# SPDX-License-Identifier: GPL-3.0-or-later
"""Retiming: the F-curve that says which stored frame is shown when.

It is an ordinary F-curve on the input `Frame` of the playback modifier, so all of this can be done, and undone, in the
Graph Editor as well. Before its first key and after its last it either holds, repeats, or runs back and forth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import bpy

from . import node_groups, splat_object, versions

REPEATS = ("HOLD", "LOOP", "PING_PONG")
_CYCLE_MODES = {"LOOP": "REPEAT", "PING_PONG": "MIRROR"}


class RetimeError(ValueError):
    """The timing cannot be changed; the message says why and what to do."""


@dataclass(frozen=True)
class Timing:
    """How an object plays."""

    first: float  # scene frame of the first key
    last: float  # scene frame of the last key
    repeat: str  # one of REPEATS
    speed: float  # 1: as the clip was made, 2: twice as fast; the mean between first and last


def create(splats: bpy.types.Object, scene: bpy.types.Scene, frame_count: int, fps: float, start: float) -> None:
    """Key the whole clip, once, from scene frame `start` on, at the clip's own speed. Earlier keys are replaced."""
    modifier = _modifier(splats)
    path = versions.modifier_input_path(modifier, node_groups.FRAME)
    for fcurves in versions.fcurve_collections(splats):
        old = fcurves.find(path)
        if old is not None:
            fcurves.remove(old)
    last = float(frame_count - 1)
    end = start + last * scene_fps(scene) / fps
    keys = [(start, 0.0), (end, last)] if frame_count > 1 else [(start, 0.0)]
    for frame, value in keys:
        versions.set_modifier_input(modifier, node_groups.FRAME, value)
        if not splats.keyframe_insert(path, frame=frame, group="Kinesplat"):
            raise RetimeError(f"The input {node_groups.FRAME} of {splats.name} cannot be keyed.")
    fcurve = versions.find_fcurve(splats, path)
    for key in fcurve.keyframe_points:
        key.interpolation = "LINEAR"
    fcurve.extrapolation = "CONSTANT"
    fcurve.update()


def share(copy: bpy.types.Object, splats: bpy.types.Object, scene: bpy.types.Scene) -> None:
    """Let a copy of the Gaussians, which has the same action and strips, play by the same driver as well.

    Where nothing times it, it plays once from now on.
    """
    path = versions.modifier_input_path(_modifier(copy), node_groups.FRAME)
    driver = splats.animation_data.drivers.find(path) if splats.animation_data is not None else None
    if driver is not None:
        copy.animation_data_create().drivers.from_existing(src_driver=driver)
    elif versions.find_fcurve(copy, path) is None:
        if copy.animation_data is not None and copy.animation_data.action is not None:
            copy.animation_data.action = copy.animation_data.action.copy()  # the Gaussians are to stay as they are
        last = versions.modifier_input(_modifier(copy), node_groups.LAST_FRAME)
        create(copy, scene, last + 1, splat_object.clip_fps(copy), scene.frame_current_final)


def timing(splats: bpy.types.Object) -> Timing | None:
    """How the object plays, or None where its input `Frame` has no keys."""
    modifier = splat_object.playback_modifier(splats)
    if modifier is None:
        return None
    fcurve = versions.find_fcurve(splats, versions.modifier_input_path(modifier, node_groups.FRAME))
    if fcurve is None or not fcurve.keyframe_points:
        return None
    first, last = _ends(fcurve)
    repeat = "HOLD"
    for cycles in fcurve.modifiers:
        if cycles.type == "CYCLES" and not cycles.mute:
            repeat = "PING_PONG" if cycles.mode_after == "MIRROR" else "LOOP"
    shown = max(key.co.y for key in fcurve.keyframe_points) - min(key.co.y for key in fcurve.keyframe_points)
    scene = bpy.context.scene
    seconds = (last - first) / scene_fps(scene)
    speed = shown / splat_object.clip_fps(splats) / seconds if seconds > 0 else 1.0
    return Timing(first, last, repeat, speed)


def lies_in_nla(splats: bpy.types.Object) -> bool:
    """Whether a strip in the NLA times the object, so that the keys lie elsewhere in time than they say."""
    path = versions.modifier_input_path(_modifier(splats), node_groups.FRAME)
    return versions.find_fcurve(splats, path, in_nla=False) is None and versions.find_fcurve(splats, path) is not None


def timing_key(splats: bpy.types.Object) -> tuple:
    """The same for objects that one F-curve of this file times, so that whoever retimes one retimes all."""
    animation = splats.animation_data
    if animation is None or animation.action is None or animation.action.library is not None:
        return (splats,)
    path = versions.modifier_input_path(_modifier(splats), node_groups.FRAME)
    return animation.action, animation.action_slot_handle, path


def is_shared(splats: bpy.types.Object) -> bool:
    """Whether something else has the same keys of this file, and is retimed along."""
    animation = splats.animation_data
    action = animation.action if animation is not None else None
    if action is None or action.library is not None or animation.action_slot is None:
        return False
    return len(animation.action_slot.users()) > 1  # others may have other slots of the action, with keys of their own


def part(splats: bpy.types.Object) -> None:
    """Give an object an action of its own, which is what it was: from now on it is retimed alone."""
    if splats.library is not None:
        raise RetimeError(splat_object.LINKED.format(splats.name))
    if is_shared(splats):
        splats.animation_data.action = splats.animation_data.action.copy()


def shown_frames(splats: bpy.types.Object) -> dict[float, float]:
    """Which stored frame is shown at the first key, at the last one, and at each scene frame between them, in order.

    Raises:
        RetimeError: the input `Frame` has no keys, or they lie in the NLA, or a driver overrules them.
    """
    path = versions.modifier_input_path(_modifier(splats), node_groups.FRAME)
    fcurve = versions.find_fcurve(splats, path, in_nla=False)
    if fcurve is None or not fcurve.keyframe_points or splats.animation_data.drivers.find(path) is not None:
        raise RetimeError(f"The timing of {splats.name} does not lie in keys of its own.")
    first, last = _ends(fcurve)
    frames = [first, *range(math.floor(first) + 1, math.ceil(last)), last]
    return {frame: fcurve.evaluate(frame) for frame in frames}


def fit(splats: bpy.types.Object, first: float, last: float) -> None:
    """Play the clip, with the timing that it has, from scene frame `first` to scene frame `last`."""
    if not last > first:
        raise RetimeError("The last frame must come after the first.")
    fcurve = _editable_fcurve(splats)
    old_first, old_last = _ends(fcurve)
    factor = (last - first) / (old_last - old_first) if old_last > old_first else 1.0
    move_keys(fcurve, lambda frame: first + (frame - old_first) * factor)


def start_at(splats: bpy.types.Object, frame: float) -> None:
    """Play with the timing that it has, from scene frame `frame` on."""
    fcurve = _editable_fcurve(splats)
    way = frame - _ends(fcurve)[0]
    move_keys(fcurve, lambda old: old + way)


def is_over(now: Timing, scene: bpy.types.Scene) -> bool:
    """Whether nothing of what is played once lies within the scene's frame range."""
    return now.repeat == "HOLD" and (now.last <= scene.frame_start or now.first >= scene.frame_end)


def set_speed(splats: bpy.types.Object, speed: float) -> None:
    """Play faster or slower from the first key on: 1 is the clip's own speed."""
    if not speed > 0:
        raise RetimeError("The speed must be above 0. To play backwards, use Reverse.")
    now = timing(splats)
    fcurve = _editable_fcurve(splats)
    first, last = _ends(fcurve)
    if now is None or last <= first or now.speed <= 0:
        raise RetimeError(f"{splats.name} shows a single frame, so it has no speed.")
    move_keys(fcurve, lambda frame: first + (frame - first) * now.speed / speed)


def reverse(splats: bpy.types.Object) -> None:
    """Play the same keys from the last to the first."""
    fcurve = _editable_fcurve(splats)
    keys = fcurve.keyframe_points
    first, last = _ends(fcurve)

    def mirrored(point) -> tuple[float, float]:
        return first + last - point[0], point[1]

    old = [
        {
            "co": mirrored(key.co),
            "handle_left": mirrored(key.handle_right),
            "handle_right": mirrored(key.handle_left),
            "handle_left_type": key.handle_right_type,
            "handle_right_type": key.handle_left_type,
        }
        for key in keys
    ]
    segments = [(key.interpolation, key.easing) for key in keys]  # of the segment after each key
    turned = [*reversed(segments[:-1]), segments[-1]]
    for key, values, (interpolation, easing) in zip(keys, reversed(old), turned, strict=True):
        for name in ("handle_left_type", "handle_right_type", "co", "handle_left", "handle_right"):
            setattr(key, name, values[name])
        key.interpolation = interpolation
        key.easing = {"EASE_IN": "EASE_OUT", "EASE_OUT": "EASE_IN"}.get(easing, easing)
    fcurve.update()


def set_repeat(splats: bpy.types.Object, repeat: str) -> None:
    """What happens outside the keys: one of REPEATS."""
    if repeat not in REPEATS:
        raise ValueError(f"Unknown way to repeat: {repeat}.")
    repeat_fcurve(_editable_fcurve(splats), repeat)


def repeat_fcurve(fcurve: bpy.types.FCurve, repeat: str) -> None:
    """What an F-curve does before its first key and after its last: one of REPEATS."""
    for cycles in [modifier for modifier in fcurve.modifiers if modifier.type == "CYCLES"]:
        fcurve.modifiers.remove(cycles)
    fcurve.extrapolation = "CONSTANT"
    if repeat != "HOLD":
        cycles = fcurve.modifiers.new("CYCLES")
        cycles.mode_before = cycles.mode_after = _CYCLE_MODES[repeat]
    fcurve.update()


def move_keys(fcurve: bpy.types.FCurve, moved: Callable[[float], float]) -> None:
    """Move keys and handles in time. `moved` keeps their order."""
    places = [(moved(key.handle_left.x), moved(key.co.x), moved(key.handle_right.x)) for key in fcurve.keyframe_points]
    for key, (left, middle, right) in zip(fcurve.keyframe_points, places, strict=True):
        key.co.x = middle
        key.handle_left.x, key.handle_right.x = left, right
    fcurve.update()


def scene_fps(scene: bpy.types.Scene) -> float:
    """Frames per second of a scene."""
    return scene.render.fps / scene.render.fps_base


def _modifier(splats: bpy.types.Object) -> bpy.types.NodesModifier:
    modifier = splat_object.playback_modifier(splats)
    if modifier is None:
        raise RetimeError(
            f"{splats.name} has lost the modifier that plays its Gaussians. Undo that, or import it again."
        )
    return modifier


def _editable_fcurve(splats: bpy.types.Object) -> bpy.types.FCurve:
    """The F-curve of the input `Frame`, in an action that may be edited: a linked one is copied into this file."""
    path = versions.modifier_input_path(_modifier(splats), node_groups.FRAME)
    if splats.library is not None:
        raise RetimeError(splat_object.LINKED.format(splats.name))
    animation = splats.animation_data
    action = animation.action if animation is not None else None
    if action is not None and action.library is not None:
        animation.action = action.copy()
    fcurve = versions.find_fcurve(splats, path, in_nla=False)
    if fcurve is not None and fcurve.keyframe_points:
        return fcurve
    if versions.find_fcurve(splats, path) is not None:
        raise RetimeError(f"The timing of {splats.name} lies in the NLA. Change the strip there, or enter Tweak Mode.")
    raise RetimeError(
        f"The input {node_groups.FRAME} of {splats.name} has no keys. Add two in the modifier: I over the input."
    )


def _ends(fcurve: bpy.types.FCurve) -> tuple[float, float]:
    keys = fcurve.keyframe_points
    return keys[0].co.x, keys[-1].co.x
