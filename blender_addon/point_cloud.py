# SPDX-License-Identifier: GPL-3.0-or-later
"""A clip as one object in the scene, one point for each Gaussian, and back.

Attributes of the mesh, on its points (t counts stored frames from 0, i coefficients of spherical harmonics after the
constant one):

| name                      | type         | content                                                    |
|---------------------------|--------------|------------------------------------------------------------|
| `f_dc_0, f_dc_1, f_dc_2`  | FLOAT        | constant term of the color, as in 3D Gaussian Splatting    |
| `sh_i`                    | FLOAT_VECTOR | red, green, blue of the further coefficients               |
| `opacity`                 | FLOAT        | logit; `opacity.t` as well where opacity changes over time |
| `pos.t`                   | FLOAT_VECTOR | position                                                   |
| `rot.t`                   | QUATERNION   | wxyz, continuous in sign over time                         |
| `lsc`                     | FLOAT_VECTOR | log of the scales; `lsc.t` where they change over time     |
| `number`                  | INT          | counts them from 0; anew in each clip that was joined      |

The points themselves lie at `pos.0`. Where somebody moves one, all its frames move along (see `node_groups`).
"""

import json
import uuid
from collections.abc import Callable

import bpy
import numpy as np
from mathutils import Matrix

from . import node_groups, retime, versions
from .attributes import NUMBER, readable
from .attributes import read as read_attribute
from .attributes import write as write_attribute
from .contract import rotations
from .contract.clip import Clip, FrameMotion, check_clip
from .contract.splat_files.ply_writer import logit, sigmoid
from .scene_settings import apply_frame_range as apply_frame_range  # this module is the door to the whole room
from .scene_settings import ensure_scene_settings as ensure_scene_settings
from .scene_settings import scene_warnings as scene_warnings
from .splat_object import CLIP, UUID, description, frame_count, is_splat_object, set_draw_mode
from .splat_object import draw_mode as draw_mode
from .splat_object import playback_modifier as playback_modifier

MODIFIER = "Kinesplat Playback"


def import_clip(
    clip: Clip,
    scene: bpy.types.Scene,
    *,
    source: bpy.types.Object | None = None,
    name: str | None = None,
    draw: str = "POINTS",
    collection: bpy.types.Collection | None = None,
    start: float | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> bpy.types.Object:
    """Add a clip to a scene as one object that plays it: once, or again and again if it was made for that.

    Args:
        clip: what to add.
        scene: gives the frame rate and the current frame.
        source: the object of which the clip was made; the new one is placed where it stands.
        name: of the new object; the clip's name by default.
        draw: how the viewport draws it: `POINTS`, `QUADS` or `NATIVE` (Blender 5.3 and newer). Renders use native
            splats where Blender has them and quads elsewhere.
        collection: where to link the object; the scene's own collection by default.
        start: scene frame at which the clip begins; the current one by default.
        on_progress: is told the share of the work that is done, 0 to 1.

    Raises:
        BadFileError: the clip breaks a rule of its format; nothing was added.
        ValueError: this Blender cannot draw in that way; nothing was added.
    """
    check_clip(clip)
    layout = _layout(clip)
    group = node_groups.playback_group(layout)
    if draw not in node_groups.draw_modes():
        raise ValueError(f"This version of Blender cannot draw Gaussians as {draw.lower()}.")
    label = name or clip.name
    to_world = Matrix(np.asarray(clip.to_object, np.float64).tolist())
    if source is not None:
        to_world = source.matrix_world @ to_world
    splats = bpy.data.objects.new(label, _build_mesh(clip, layout, label, on_progress))
    splats.matrix_world = to_world
    splats[UUID] = str(uuid.uuid4())
    splats[CLIP] = json.dumps(
        {
            "name": clip.name,
            "fps": clip.fps,
            "color_space": clip.color_space,
            "to_object": np.asarray(clip.to_object, np.float64).tolist(),
            "provenance": clip.provenance,
        }
    )
    (collection or scene.collection).objects.link(splats)

    modifier = splats.modifiers.new(MODIFIER, "NODES")
    modifier.node_group = group
    versions.set_modifier_input(modifier, node_groups.LAST_FRAME, clip.frame_count - 1)
    versions.set_modifier_input(modifier, node_groups.SCENE_LINEAR, clip.color_space == "srgb")
    versions.set_modifier_input(modifier, node_groups.MATERIAL, node_groups.splat_material())
    set_draw_mode(splats, viewport=draw)
    _drive_render_width(splats, modifier)
    retime.create(splats, scene, clip.frame_count, clip.fps, scene.frame_current_final if start is None else start)
    if clip.provenance.get("loop") is True:
        retime.set_repeat(splats, "LOOP")
    return splats


def clip_of_object(splats: bpy.types.Object) -> Clip:
    """The Gaussians of an object as a clip, with what was deleted or moved in Edit Mode.

    Raises:
        ValueError: the object holds no Gaussians, or an edit removed what makes them.
    """
    if not is_splat_object(splats):
        raise ValueError(f"{splats.name} holds no Gaussians of Kinesplat.")
    with readable(splats) as mesh:
        return _read_clip(splats, mesh)


def _read_clip(splats: bpy.types.Object, mesh: bpy.types.Mesh) -> Clip:
    attributes = mesh.attributes
    if not mesh.vertices:
        raise ValueError(f"{splats.name} has no Gaussians left.")
    count = frame_count(mesh)

    def read(name: str) -> np.ndarray:
        if name not in attributes:
            raise ValueError(f"{splats.name} has lost its attribute {name}.")
        return read_attribute(attributes[name])

    def read_frames(name: str) -> np.ndarray:
        return np.stack([read(f"{name}.{t}") for t in range(count)])

    moved = read("position") - read("pos.0")
    means = read_frames("pos") + moved
    quats = rotations.normalize(read_frames("rot"))
    moving_scales = np.exp(read_frames("lsc")) if "lsc.0" in attributes else None
    moving_opacities = sigmoid(read_frames("opacity")) if "opacity.0" in attributes else None
    coefficients = 0
    while f"sh_{coefficients}" in attributes:
        coefficients += 1
    constant = np.stack([read(f"f_dc_{channel}") for channel in range(3)], axis=-1)
    sh = np.stack([constant, *(read(f"sh_{index}") for index in range(coefficients))], axis=1)
    about = description(splats)
    clip = Clip(
        means=means[0],
        quats=quats[0],
        scales=moving_scales[0] if moving_scales is not None else np.exp(read("lsc")),
        opacities=sigmoid(read("opacity")),
        sh=sh,
        motion=FrameMotion(means, quats, moving_scales, moving_opacities),
        name=splats.name,
        fps=about.get("fps", 24.0),
        color_space=about.get("color_space", "srgb"),
        to_object=np.array(about.get("to_object", np.eye(4)), np.float64),
        provenance=about.get("provenance", {}),
    )
    check_clip(clip, splats.name)
    return clip


# Mesh and attributes


def _layout(clip: Clip) -> node_groups.Layout:
    motion = clip.motion if isinstance(clip.motion, FrameMotion) else None
    return node_groups.Layout(
        sh_degree=clip.sh_degree,
        moving_scales=motion is not None and motion.frame_scales is not None,
        moving_opacities=motion is not None and motion.frame_opacities is not None,
    )


def _build_mesh(
    clip: Clip, layout: node_groups.Layout, name: str, on_progress: Callable[[float], None]
) -> bpy.types.Mesh:
    columns = {NUMBER: "INT", "opacity": "FLOAT", **{f"f_dc_{channel}": "FLOAT" for channel in range(3)}}
    columns |= {f"sh_{index}": "FLOAT_VECTOR" for index in range(clip.sh.shape[1] - 1)}
    if not layout.moving_scales:
        columns["lsc"] = "FLOAT_VECTOR"
    for t in range(clip.frame_count):
        columns |= {f"pos.{t}": "FLOAT_VECTOR", f"rot.{t}": "QUATERNION"}
        if layout.moving_scales:
            columns[f"lsc.{t}"] = "FLOAT_VECTOR"
        if layout.moving_opacities:
            columns[f"opacity.{t}"] = "FLOAT"
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(clip.count)
    for column, data_type in columns.items():
        mesh.attributes.new(column, data_type, "POINT")

    # Only now: adding an attribute may move the others in memory.
    def write(column: str, values: np.ndarray) -> None:
        write_attribute(mesh.attributes[column], values)

    write(NUMBER, np.arange(clip.count))
    for channel in range(3):
        write(f"f_dc_{channel}", clip.sh[:, 0, channel])
    for index in range(1, clip.sh.shape[1]):
        write(f"sh_{index - 1}", clip.sh[:, index])
    if not layout.moving_scales:
        write("lsc", np.log(clip.scales))
    for t, moment in enumerate(clip.moments()):
        if t == 0:
            write("position", moment.means)
            write("opacity", logit(moment.opacities))
        write(f"pos.{t}", moment.means)
        write(f"rot.{t}", moment.quats)
        if layout.moving_scales:
            write(f"lsc.{t}", np.log(moment.scales))
        if layout.moving_opacities:
            write(f"opacity.{t}", logit(moment.opacities))
        on_progress((t + 1) / clip.frame_count)
    mesh.update()
    return mesh


def _drive_render_width(splats: bpy.types.Object, modifier: bpy.types.NodesModifier) -> None:
    """Keep the input Render Width at the width of whichever scene renders the object.

    The expression is of the simple kind that Blender evaluates without Python, so no file needs permission for it.
    """
    curve = splats.driver_add(versions.modifier_input_path(modifier, node_groups.RENDER_WIDTH))
    curve.driver.type = "SCRIPTED"
    for variable_name, path in (("width", "render.resolution_x"), ("percent", "render.resolution_percentage")):
        variable = curve.driver.variables.new()
        variable.name = variable_name
        variable.type = "CONTEXT_PROP"
        variable.targets[0].context_property = "ACTIVE_SCENE"
        variable.targets[0].data_path = path
    curve.driver.expression = "width * percent / 100"
