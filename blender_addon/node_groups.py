# SPDX-License-Identifier: GPL-3.0-or-later
"""The node groups that play and draw time-varying Gaussians, built so that a saved file needs no add-on.

`Kinesplat Playback` is the modifier's group. It takes a mesh whose points are Gaussians (attributes: see
`point_cloud`), finds the stored frames before and after its input `Frame`, interpolates between them and draws the
result in one of three ways, each a group of its own: points, camera-facing quads, native Gaussian splats.
`Kinesplat Mesh Playback` is that of meshes that took over a motion (see `mesh_motion`); it moves their vertices.

All of it happens in the object's own space, so the object may be moved, turned and scaled.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import bpy

from . import versions
from .attributes import NUMBER
from .contract.clip import MIN_ALPHA as MIN_ALPHA  # of the shader as of all
from .contract.spherical_harmonics import C0, sh_basis
from .node_builder import NodeBuilder, Socket

logger = logging.getLogger(__name__)

# Names of inputs as users see them; other modules and F-curves find the inputs by them.
FRAME = "Frame"
VIEWPORT = "Viewport"
RENDER = "Render"
SPLAT_SIZE = "Splat Size"
OPACITY = "Opacity"
SCENE_LINEAR = "Scene Linear"
SORT = "Sort"
MATERIAL = "Material"
LAST_FRAME = "Last Frame"
RENDER_WIDTH = "Render Width"

DRAW_MODES = {"POINTS": "Points", "QUADS": "Quads", "NATIVE": "Native"}  # as in menus

MAX_ALPHA = 0.999
POINT_REACH = 1.4  # radius of a preview point in standard deviations: surfaces look closed, outlines stay
DILATION = 0.3  # pixels^2 added to each projected covariance, as 3D Gaussian Splatting rasterisers do

_BUILD = 1  # count up when a tree changes, so that old files keep their own groups
_native_problems: list[str] = []  # why this Blender's own splats cannot be used, once that is known
_VARIANT = "kinesplat_variant"
_FINGERPRINT = "kinesplat_fingerprint"


@dataclass(frozen=True)
class Layout:
    """What the nodes have to know about a mesh: which attributes it has."""

    sh_degree: int = 0
    moving_scales: bool = False  # `lsc.0`, `lsc.1`, ... instead of one `lsc`
    moving_opacities: bool = False  # `opacity.0`, `opacity.1`, ... instead of one `opacity`


def draw_modes() -> list[str]:
    """The ways of drawing that this Blender has."""
    return [mode for mode in DRAW_MODES if mode != "NATIVE" or _has_native()]


def playback_group(layout: Layout) -> bpy.types.NodeTree:
    """The modifier's node group for meshes of this layout, made once per file and layout."""
    parts = [f"SH {layout.sh_degree}"]
    parts += ["moving scales"] * layout.moving_scales + ["moving opacities"] * layout.moving_opacities
    return _reuse("GeometryNodeTree", f"Kinesplat Playback ({', '.join(parts)})", lambda tree: _playback(tree, layout))


def mesh_playback_group() -> bpy.types.NodeTree:
    """The modifier's node group for meshes with a position per vertex and stored frame; its `Frame` is the same."""
    return _reuse("GeometryNodeTree", "Kinesplat Mesh Playback", _mesh_playback)


def splat_material() -> bpy.types.Material:
    """The material of camera-facing quads: a Gaussian's color, its opacity falling off from the middle."""
    return _reuse_material("Kinesplat Splats", _splat_shader, "BLENDED")


def point_material() -> bpy.types.Material:
    """The material of preview points: a Gaussian's color, opaque."""
    return _reuse_material("Kinesplat Points", _point_shader, "DITHERED")


def _has_native() -> bool:
    return versions.has_native_splats() and not _native_problems


# Reuse


def _reuse(kind: str, name: str, build: Callable[[bpy.types.NodeTree], None]) -> bpy.types.NodeTree:
    """A group of this file that was built as `name` and has not been changed since; else a new one."""
    variant = f"{name} / {_BUILD} / {'native' if _has_native() else 'quads'}"
    for tree in bpy.data.node_groups:
        if tree.library is None and tree.get(_VARIANT) == variant and tree.get(_FINGERPRINT) == _fingerprint(tree):
            return tree
    tree = bpy.data.node_groups.new(name, kind)
    try:
        build(tree)
    except BaseException:
        bpy.data.node_groups.remove(tree)
        raise
    tree[_VARIANT] = variant
    tree[_FINGERPRINT] = _fingerprint(tree)
    return tree


def _reuse_material(name: str, build: Callable[[bpy.types.NodeTree], None], method: str) -> bpy.types.Material:
    variant = f"{name} / {_BUILD}"
    for material in bpy.data.materials:
        known = material.library is None and material.get(_VARIANT) == variant
        if known and material.node_tree is not None and material.get(_FINGERPRINT) == _fingerprint(material.node_tree):
            return material
    material = bpy.data.materials.new(name)
    if material.node_tree is None:  # up to 4.5; since 5.0 every material has one
        material.use_nodes = True
    material.node_tree.nodes.clear()
    build(material.node_tree)
    material.surface_render_method = method
    material.use_backface_culling = False
    if hasattr(material, "cycles"):  # it may be switched off
        # Else each quad is a lamp among the scene's own: twice the time, and a third more noise on all around. What
        # shines from Gaussians is still found by the rays that meet them.
        material.cycles.emission_sampling = "NONE"
    material[_VARIANT] = variant
    material[_FINGERPRINT] = _fingerprint(material.node_tree)
    return material


def _fingerprint(tree: bpy.types.NodeTree) -> str:
    """A text that changes when somebody edits the nodes (moving them about does not count)."""
    lines = []
    for node in tree.nodes:
        inner = getattr(node, "node_tree", None)
        settings = [getattr(node, name, None) for name in ("operation", "data_type", "domain", "mute")]
        lines.append(f"{node.bl_idname} {node.name} {inner.name if inner else ''} {settings}")
        for socket in node.inputs:
            default = getattr(socket, "default_value", None)
            if hasattr(default, "foreach_get"):
                default = tuple(default)
            if not socket.is_linked and isinstance(default, int | float | str | tuple):
                lines.append(f"  {socket.identifier} {default}")
    for link in tree.links:
        ends = (link.from_node.name, link.from_socket.identifier, link.to_node.name, link.to_socket.identifier)
        lines.append(" ".join(ends))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


# Interfaces


def _input(tree: bpy.types.NodeTree, name: str, kind: str, description: str = "", **properties) -> None:
    socket = tree.interface.new_socket(name, description=description, in_out="INPUT", socket_type=f"NodeSocket{kind}")
    for property_name, value in properties.items():
        setattr(socket, property_name, value)


def _begin(tree: bpy.types.NodeTree) -> tuple[NodeBuilder, dict[str, Socket]]:
    """A builder for a tree whose inputs are declared, and the inputs by name."""
    nodes = NodeBuilder(tree)
    group_input = nodes.node("NodeGroupInput")
    return nodes, {socket.name: Socket(nodes, socket) for socket in group_input.outputs if socket.name}


def _end(nodes: NodeBuilder, geometry: Socket) -> None:
    output = nodes.node("NodeGroupOutput")
    nodes.put(output.inputs[0], geometry)
    nodes.arrange()


def _use(nodes: NodeBuilder, group: bpy.types.NodeTree, inputs: dict[str, object]) -> Socket:
    """Add a group as a node and feed its inputs, by name."""
    node = nodes.node("GeometryNodeGroup", node_tree=group)
    for name, operand in inputs.items():
        nodes.put(node.inputs[name], operand)
    return nodes.out(node)


# The modifier's group


def _playback(tree: bpy.types.NodeTree, layout: Layout) -> None:
    tree.is_modifier = True
    tree.description = "Plays time-varying Gaussians. Key the input Frame to retime them"
    _timing_inputs(tree, "Gaussians")
    _input(tree, VIEWPORT, "Menu", "How the viewport draws the Gaussians. Quads face the scene's camera")
    _input(tree, RENDER, "Menu", "How final renders draw the Gaussians")
    _input(tree, SPLAT_SIZE, "Float", "Factor on the size of each Gaussian", default_value=1.0, min_value=0.0)
    _input(tree, OPACITY, "Float", "Factor on the opacity", default_value=1.0, min_value=0.0, max_value=1.0)
    _input(
        tree,
        SCENE_LINEAR,
        "Bool",
        "Convert sRGB colors to linear ones, for view transforms such as Standard or AgX. Without it, colors come "
        "out as they were fitted, which is exact with the view transform Raw",
        default_value=True,
    )
    _input(tree, SORT, "Bool", "Draw far quads first. EEVEE needs this, Cycles does not", default_value=True)
    _input(tree, MATERIAL, "Material", "Material of the quads", default_value=splat_material())
    _input(tree, LAST_FRAME, "Int", "Number of the last stored frame", hide_in_modifier=True)
    _input(tree, RENDER_WIDTH, "Float", "Width of the render in pixels", default_value=1920.0, hide_in_modifier=True)
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    nodes, inputs = _begin(tree)

    moment = _interpolate(nodes, inputs, layout)
    scale = nodes.vector(*(nodes.exp(part) for part in nodes.parts(moment["log_scale"]))) * inputs[SPLAT_SIZE]
    alpha = moment["opacity"] * inputs[OPACITY]

    fields = {"Geometry": inputs["Geometry"], "Center": moment["center"], "Scale": scale, "Alpha": alpha}
    colors = {SCENE_LINEAR: inputs[SCENE_LINEAR]}
    view = {"Rotation": moment["rotation"], RENDER_WIDTH: inputs[RENDER_WIDTH]}
    drawn = {
        "POINTS": _use(nodes, _points_group(), fields | colors),
        "QUADS": _use(
            nodes,
            _quads_group(layout.sh_degree),
            fields | colors | view | {SORT: inputs[SORT], MATERIAL: inputs[MATERIAL]},
        ),
    }
    if _has_native():
        try:
            native = native_group(layout.sh_degree)
        except (RuntimeError, TypeError, KeyError, StopIteration) as error:
            # The node is there but not as expected: a newer Blender. Quads draw the clip all the same.
            _native_problems.append(str(error))
            logger.warning("Blender's own Gaussian splats are not used: %s", error)
        else:
            drawn["NATIVE"] = _use(nodes, native, fields | {"Rotation": moment["rotation"]})
    _end(nodes, _choose(nodes, inputs, drawn))
    for name, default in ((VIEWPORT, "POINTS"), (RENDER, "NATIVE" if "NATIVE" in drawn else "QUADS")):
        tree.interface.items_tree[name].default_value = DRAW_MODES[default]


def _timing_inputs(tree: bpy.types.NodeTree, played: str) -> None:
    """The inputs that come first in all groups that play something, so that one F-curve fits all of them."""
    _input(tree, "Geometry", "Geometry")
    _input(tree, FRAME, "Float", f"Which stored frame to show; between two frames, the {played} are interpolated")


def _mesh_playback(tree: bpy.types.NodeTree) -> None:
    tree.is_modifier = True
    tree.description = "Moves a mesh as Gaussians have moved. Key the input Frame to retime it"
    _timing_inputs(tree, "positions")
    _input(tree, LAST_FRAME, "Int", "Number of the last stored frame", hide_in_modifier=True)
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    nodes, inputs = _begin(tree)
    place = _center(nodes, *_stored_frames(nodes, inputs))
    moved = nodes.value("GeometryNodeSetPosition", {"Geometry": inputs["Geometry"], "Position": place})
    _end(nodes, nodes.remove(moved, "pos.*"))


Stored = Callable[[str, str], tuple[Socket, Socket]]


def _stored_frames(nodes: NodeBuilder, inputs: dict[str, Socket]) -> tuple[Socket, Stored]:
    """How far `Frame` is from the stored frame before it to that after it, and what reads an attribute at both."""
    last = inputs[LAST_FRAME]
    frame = nodes.minimum(nodes.maximum(inputs[FRAME], 0.0), last)
    before = nodes.math("FLOOR", frame)
    numbers = (_text(nodes, before), _text(nodes, nodes.minimum(before + 1.0, last)))

    def stored(name: str, data_type: str) -> tuple[Socket, Socket]:
        a, b = (nodes.named(_join(nodes, f"{name}.", number), data_type) for number in numbers)
        return a, b

    return frame - before, stored


def _center(nodes: NodeBuilder, weight: Socket, stored: Stored) -> Socket:
    # Points that somebody moved, in Edit Mode or with a modifier above this one, keep that offset in all frames.
    moved = nodes.value("GeometryNodeInputPosition") - nodes.named("pos.0", "FLOAT_VECTOR")
    return nodes.mix("VECTOR", weight, *stored("pos", "FLOAT_VECTOR")) + moved


def _interpolate(nodes: NodeBuilder, inputs: dict[str, Socket], layout: Layout) -> dict[str, Socket]:
    """The Gaussians between the two stored frames round `Frame`: center, rotation, log_scale, opacity (0 to 1)."""
    weight, stored = _stored_frames(nodes, inputs)

    def sigmoid(logit: Socket) -> Socket:
        return 1.0 / (1.0 + nodes.exp(-logit))

    if layout.moving_scales:
        log_scale = nodes.mix("VECTOR", weight, *stored("lsc", "FLOAT_VECTOR"))
    else:
        log_scale = nodes.named("lsc", "FLOAT_VECTOR")
    if layout.moving_opacities:
        opacity = nodes.mix("FLOAT", weight, *(sigmoid(logit) for logit in stored("opacity", "FLOAT")))
    else:
        opacity = sigmoid(nodes.named("opacity", "FLOAT"))
    return {
        "center": _center(nodes, weight, stored),
        "rotation": nodes.mix("ROTATION", weight, *stored("rot", "QUATERNION")),
        "log_scale": log_scale,
        "opacity": opacity,
    }


def _text(nodes: NodeBuilder, number: Socket) -> Socket:
    integer = nodes.value("FunctionNodeFloatToInt", {"Float": number}, rounding_mode="ROUND")
    node = nodes.node("FunctionNodeValueToString", data_type="INT")
    nodes.put(node.inputs["Value"], integer)
    return nodes.out(node)


def _join(nodes: NodeBuilder, start: str, end: Socket) -> Socket:
    node = nodes.node("GeometryNodeStringJoin")
    # Links into one socket are read in the reverse of the order in which they are made.
    nodes.put(node.inputs["Strings"], end)
    nodes.put(node.inputs["Strings"], nodes.value("FunctionNodeInputString", string=start))
    return nodes.out(node)


def _choose(nodes: NodeBuilder, inputs: dict[str, Socket], drawn: dict[str, Socket]) -> Socket:
    """The drawing that the menus ask for; Blender evaluates that one alone."""
    is_viewport = nodes.value("GeometryNodeIsViewport")
    mode = nodes.value(
        "GeometryNodeSwitch",
        {"Switch": is_viewport, "False": inputs[RENDER], "True": inputs[VIEWPORT]},
        input_type="MENU",
    )
    switch = nodes.node("GeometryNodeMenuSwitch", data_type="GEOMETRY")
    switch.enum_items.clear()
    for item in drawn:
        switch.enum_items.new(DRAW_MODES[item])
    nodes.put(switch.inputs["Menu"], mode)
    for item, geometry in drawn.items():
        nodes.put(switch.inputs[DRAW_MODES[item]], geometry)
    return nodes.out(switch, "Output")


# Drawing


def _drawing_inputs(tree: bpy.types.NodeTree) -> None:
    """What all drawing groups take: points, and fields on them."""
    _input(tree, "Geometry", "Geometry")
    _input(tree, "Center", "Vector")
    _input(tree, "Scale", "Vector")
    _input(tree, "Alpha", "Float")
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")


def _base_color(nodes: NodeBuilder) -> Socket:
    """f_dc_0, f_dc_1, f_dc_2 as a vector."""
    return nodes.vector(*(nodes.named(f"f_dc_{channel}", "FLOAT") for channel in range(3)))


def _scene_color(nodes: NodeBuilder, color: Socket, scene_linear: Socket) -> Socket:
    """The color to emit: at least 0, and converted from sRGB to linear where that is asked for."""
    color = nodes.maximum(color, (0.0, 0.0, 0.0))
    curve = nodes.vector_math("POWER", (color + (0.055,) * 3) / 1.055, (2.4,) * 3)
    line = color / 12.92
    is_bright = nodes.maximum(nodes.minimum((color - (0.04045,) * 3) * 1e6, (1.0,) * 3), (0.0,) * 3)
    linear = line + is_bright * (curve - line)
    return nodes.value(
        "GeometryNodeSwitch", {"Switch": scene_linear, "False": color, "True": linear}, input_type="VECTOR"
    )


def _remove_frames(nodes: NodeBuilder, geometry: Socket) -> Socket:
    """Drop the stored frames and what only panels need: renderers copy every attribute that is left."""
    for pattern in ("pos.*", "rot.*", "lsc*", "opacity*", "f_dc_*", "sh_*", NUMBER):
        geometry = nodes.remove(geometry, pattern)
    return geometry


def _points_group() -> bpy.types.NodeTree:
    return _reuse("GeometryNodeTree", "Kinesplat Points", _points)


def _points(tree: bpy.types.NodeTree) -> None:
    """One small opaque point for each Gaussian; the faint ones smaller."""
    _drawing_inputs(tree)
    _input(tree, SCENE_LINEAR, "Bool")
    nodes, inputs = _begin(tree)
    x, y, z = nodes.parts(inputs["Scale"])
    largest, smallest = nodes.maximum(nodes.maximum(x, y), z), nodes.minimum(nodes.minimum(x, y), z)
    middle = x + y + z - largest - smallest  # Gaussians are often thin: this is how wide they look from in front
    radius = middle * nodes.sqrt(inputs["Alpha"]) * POINT_REACH
    points = nodes.value(
        "GeometryNodeMeshToPoints",
        {"Mesh": inputs["Geometry"], "Position": inputs["Center"], "Radius": radius},
        mode="VERTICES",
    )
    color = _base_color(nodes) * C0 + (0.5, 0.5, 0.5)
    points = nodes.store(points, "splat_color", "FLOAT_COLOR", _scene_color(nodes, color, inputs[SCENE_LINEAR]))
    points = _remove_frames(nodes, points)
    _end(nodes, nodes.value("GeometryNodeSetMaterial", {"Geometry": points, "Material": point_material()}))


def _quads_group(sh_degree: int) -> bpy.types.NodeTree:
    return _reuse("GeometryNodeTree", f"Kinesplat Quads (SH {sh_degree})", lambda tree: _quads(tree, sh_degree))


def _quads(tree: bpy.types.NodeTree, sh_degree: int) -> None:
    """One quad for each Gaussian, facing the scene's camera and spanned by the Gaussian's projected covariance."""
    _drawing_inputs(tree)
    _input(tree, "Rotation", "Rotation")
    _input(tree, SCENE_LINEAR, "Bool")
    _input(tree, SORT, "Bool")
    _input(tree, MATERIAL, "Material")
    _input(tree, RENDER_WIDTH, "Float")
    nodes, inputs = _begin(tree)

    # The ray from the camera to the Gaussian, and how large a pixel is there.
    camera = nodes.value("GeometryNodeInputActiveCamera")
    place = nodes.node("GeometryNodeObjectInfo", {"Object": camera}, transform_space="RELATIVE")
    lens = nodes.node("GeometryNodeCameraInfo", {"Camera": camera})
    is_orthographic = nodes.out(lens, "Is Orthographic")
    forward = nodes.value(
        "FunctionNodeRotateVector", {"Vector": (0.0, 0.0, -1.0), "Rotation": nodes.out(place, "Rotation")}
    )
    ray = inputs["Center"] - nodes.out(place, "Location")
    distance = nodes.length(ray)
    direction = nodes.value(
        "GeometryNodeSwitch",
        {"Switch": is_orthographic, "False": ray / distance, "True": forward},
        input_type="VECTOR",
    )
    separate = nodes.node("FunctionNodeSeparateMatrix", {"Matrix": nodes.out(lens, "Projection Matrix")})
    pixel_angle = 2.0 / (nodes.out(separate, "Column 1 Row 1") * inputs[RENDER_WIDTH])
    object_unit = nodes.parts(nodes.out(place, "Scale"))[0]  # of the camera as seen from the object: 1 / object scale
    pixel = pixel_angle * nodes.value(
        "GeometryNodeSwitch",
        {"Switch": is_orthographic, "False": distance, "True": object_unit},
        input_type="FLOAT",
    )

    # Covariance seen along the ray: two axes across it, the Gaussian's axes projected on them, a pixel's blur added.
    across = nodes.normalize(nodes.cross(direction, (0.0123, 0.0271, 1.0)))  # askew: rays hardly ever run along it
    upward = nodes.cross(across, direction)
    scales = nodes.parts(inputs["Scale"])
    units = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    axes = [
        nodes.value("FunctionNodeRotateVector", {"Vector": unit, "Rotation": inputs["Rotation"]}) * scale
        for unit, scale in zip(units, scales, strict=True)
    ]
    widths = nodes.vector(*(nodes.dot(axis, across) for axis in axes))
    heights = nodes.vector(*(nodes.dot(axis, upward) for axis in axes))
    blur = pixel * pixel * DILATION
    xx, xy, yy = nodes.dot(widths, widths) + blur, nodes.dot(widths, heights), nodes.dot(heights, heights) + blur

    # Its Cholesky factor spans the quad: no special cases, as eigenvectors would have. One unit is one standard
    # deviation; the quad ends where the Gaussian is fainter than MIN_ALPHA.
    l11 = nodes.sqrt(xx)
    l21 = xy / l11
    l22 = nodes.sqrt(nodes.maximum(yy - l21 * l21, 1e-14))
    reach = nodes.sqrt(
        nodes.maximum(2.0 * nodes.math("LOGARITHM", inputs["Alpha"] / MIN_ALPHA, 2.718281828459045), 0.0)
    )
    color = _base_color(nodes) * C0 + (0.5, 0.5, 0.5)
    for index, factor in enumerate(sh_basis(sh_degree, *nodes.parts(direction))):
        color = color + nodes.named(f"sh_{index}", "FLOAT_VECTOR") * factor
    points, splat = nodes.capture(
        inputs["Geometry"],
        center=("VECTOR", inputs["Center"]),
        x_axis=("VECTOR", (across * l11 + upward * l21) * reach),
        y_axis=("VECTOR", upward * l22 * reach),
        color=("VECTOR", _scene_color(nodes, color, inputs[SCENE_LINEAR])),
        alpha=("FLOAT", inputs["Alpha"]),
        distance=("FLOAT", distance),
    )

    # As many quads as there are points; corner k of quad i is point 4 i + k.
    count = nodes.out(nodes.node("GeometryNodeAttributeDomainSize", {"Geometry": points}), "Point Count")
    grid = nodes.node("GeometryNodeMeshGrid", {"Size X": 2.0, "Size Y": 2.0, "Vertices X": 2, "Vertices Y": 2})
    quad = nodes.store(
        nodes.out(grid, "Mesh"), "splat_corner", "FLOAT_VECTOR", nodes.value("GeometryNodeInputPosition")
    )
    quads = nodes.value("GeometryNodeDuplicateElements", {"Geometry": quad, "Amount": count}, domain="FACE")
    index = nodes.value("GeometryNodeInputIndex")
    corner_of = nodes.value("FunctionNodeIntegerMath", {"Value": index, "Value_001": 4}, operation="DIVIDE_FLOOR")

    def at_corner(name: str) -> Socket:
        return nodes.sample_index(points, "FLOAT_VECTOR", splat[name], corner_of)

    corner_x, corner_y, _ = nodes.parts(nodes.named("splat_corner", "FLOAT_VECTOR"))
    place_of_corner = at_corner("center") + at_corner("x_axis") * corner_x + at_corner("y_axis") * corner_y
    quads = nodes.value("GeometryNodeSetPosition", {"Geometry": quads, "Position": place_of_corner})
    for name, data_type, value in (
        ("splat_color", "FLOAT_VECTOR", splat["color"]),
        ("splat_alpha", "FLOAT", splat["alpha"]),
    ):
        quads = nodes.store(quads, name, data_type, nodes.sample_index(points, data_type, value, index), "FACE")

    far_first = -nodes.sample_index(points, "FLOAT", splat["distance"], index)
    ordered = nodes.value("GeometryNodeSortElements", {"Geometry": quads, "Sort Weight": far_first}, domain="FACE")
    quads = nodes.value(
        "GeometryNodeSwitch", {"Switch": inputs[SORT], "False": quads, "True": ordered}, input_type="GEOMETRY"
    )
    _end(nodes, nodes.value("GeometryNodeSetMaterial", {"Geometry": quads, "Material": inputs[MATERIAL]}))


def native_group(sh_degree: int) -> bpy.types.NodeTree:
    """Points with the attributes of Blender's own Gaussian splats (5.3 and newer), made such by its own node.

    Raises:
        RuntimeError: this Blender has no such node, or the node knows no splats.
    """
    return _reuse("GeometryNodeTree", f"Kinesplat Native (SH {sh_degree})", lambda tree: _native(tree, sh_degree))


def _native(tree: bpy.types.NodeTree, sh_degree: int) -> None:
    """Blender's own splats: `scale` linear, `rotation` wxyz, `radiance:base` f_dc and opacity, `radiance:sh_i`."""
    _drawing_inputs(tree)
    _input(tree, "Rotation", "Rotation")
    nodes, inputs = _begin(tree)
    x, y, z = nodes.parts(inputs["Scale"])
    points = nodes.value(
        "GeometryNodeMeshToPoints",
        {
            "Mesh": inputs["Geometry"],
            "Position": inputs["Center"],
            "Radius": nodes.maximum(nodes.maximum(x, y), z),
        },
        mode="VERTICES",
    )
    red, green, blue = nodes.parts(_base_color(nodes))
    base = nodes.value(
        "FunctionNodeCombineColor", {"Red": red, "Green": green, "Blue": blue, "Alpha": inputs["Alpha"]}, mode="RGB"
    )
    points = nodes.store(points, "radiance:base", _four_numbers(nodes), base)
    points = nodes.store(points, "scale", "FLOAT_VECTOR", inputs["Scale"])
    points = nodes.store(points, "rotation", "QUATERNION", inputs["Rotation"])
    for index in range((sh_degree + 1) ** 2 - 1):
        coefficient = nodes.named(f"sh_{index}", "FLOAT_VECTOR")
        points = nodes.store(points, f"radiance:sh_{index}", "FLOAT_VECTOR", coefficient)
    points = _remove_frames(nodes, points)
    set_type = nodes.node(versions.SPLAT_NODE)
    nodes.put(next(socket for socket in set_type.inputs if socket.type == "GEOMETRY"), points)
    choose_splats(set_type)
    _end(nodes, nodes.out(set_type))


def _four_numbers(nodes: NodeBuilder) -> str:
    """The attribute type to store four numbers as.

    Blender's splats have FLOAT4. In 5.2 Store Named Attribute offers that type, but takes three numbers for it and
    sets the fourth, the opacity, to 0. Colors are four numbers as well, and Blender converts them where it looks up a
    FLOAT4.
    """
    probe = nodes.node("GeometryNodeStoreNamedAttribute")
    try:
        probe.data_type = "FLOAT4"
        takes_four = len(probe.inputs["Value"].default_value) == 4
    except TypeError:  # up to 5.1 there is no such type
        takes_four = False
    nodes.tree.nodes.remove(probe)
    return "FLOAT4" if takes_four else "FLOAT_COLOR"


def choose_splats(set_type: bpy.types.Node) -> None:
    """Choose Gaussian splats in the menu of the node Set Point Cloud Type, whatever its items are called.

    Raises:
        RuntimeError: there is no such item.
    """
    menu = next((socket for socket in set_type.inputs if socket.type == "MENU"), None)
    if menu is None:
        raise RuntimeError("Set Point Cloud Type has no menu in this version of Blender.")
    for item in ("3D Gaussian Splats", "Gaussian Splats", "Gaussian Splat", "GAUSSIAN_SPLAT", "GSPLAT"):
        try:
            menu.default_value = item
            return
        except TypeError as error:  # an unknown item: Blender lists those that there are
            listed = str(error).split("(", 1)[-1].replace('"', "'").split("'")[1::2]
            splats = [name for name in listed if "splat" in name.lower()]
            if splats:
                menu.default_value = splats[0]
                return
    raise RuntimeError("Set Point Cloud Type knows no Gaussian splats in this version of Blender.")


# Materials


def _attribute(nodes: NodeBuilder, name: str, output: str) -> Socket:
    return nodes.out(nodes.node("ShaderNodeAttribute", attribute_type="GEOMETRY", attribute_name=name), output)


def _splat_shader(tree: bpy.types.NodeTree) -> None:
    """Emission in the Gaussian's color, mixed over what lies behind by the Gaussian's opacity at this place.

    The corners of a quad lie where alpha has fallen to MIN_ALPHA in the middle of a side, so with r = 1 there,
    alpha exp(-sigma) becomes alpha (alpha / MIN_ALPHA)^(-r^2).
    """
    nodes = NodeBuilder(tree)
    alpha = _attribute(nodes, "splat_alpha", "Fac")
    corner = _attribute(nodes, "splat_corner", "Vector")
    r2 = nodes.dot(corner, corner)
    opacity = alpha * nodes.math("POWER", alpha / MIN_ALPHA, -r2)
    opacity = nodes.minimum(opacity, MAX_ALPHA) * nodes.math("LESS_THAN", r2, 1.0)
    emission = nodes.value("ShaderNodeEmission", {"Color": _attribute(nodes, "splat_color", "Color")})
    behind = nodes.value("ShaderNodeBsdfTransparent")
    mix = nodes.node("ShaderNodeMixShader")
    for socket, operand in zip(mix.inputs, (opacity, behind, emission), strict=True):
        nodes.put(socket, operand)
    output = nodes.node("ShaderNodeOutputMaterial")
    nodes.put(output.inputs["Surface"], nodes.out(mix))
    nodes.arrange()


def _point_shader(tree: bpy.types.NodeTree) -> None:
    nodes = NodeBuilder(tree)
    emission = nodes.value("ShaderNodeEmission", {"Color": _attribute(nodes, "splat_color", "Color")})
    output = nodes.node("ShaderNodeOutputMaterial")
    nodes.put(output.inputs["Surface"], emission)
    nodes.arrange()
