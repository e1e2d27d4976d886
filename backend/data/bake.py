# SPDX-License-Identifier: GPL-3.0-or-later
"""Bakes the clips of one model into skinning matrices, as `baked.read_baked` reads them. Needs the bpy wheel.

Blender is asked for everything, so constraints, parents and objects that move as a whole come out as it shows them.
Each object is a bone, and so is each bone that carries some of its vertices. What bones cannot tell (shape keys, say)
is measured: `error` holds the farthest that a vertex of the bake lies from where Blender has it.
"""

from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from backend.data.blender_model import FPS, open_model, principled
from backend.progress import UserError
from blender_addon.contract.arrays import write_arrays
from blender_addon.contract.color import linear_to_srgb

FRAMES = 24
INFLUENCES = 4  # bones per vertex
TEXTURE_SIZE = 256  # pixels; larger ones are averaged down
CHECKED_FRAMES = (0, 8, 15, 23)


@dataclass
class Part:
    """One mesh object: its corners without repetition, and the bones that carry them."""

    obj: bpy.types.Object
    armature: bpy.types.Object | None
    bones: list[str]
    source: np.ndarray  # [V] which vertex of the object's mesh
    vertices: np.ndarray  # [V, 3] float64, of the object
    normals: np.ndarray  # [V, 3]
    uv: np.ndarray  # [V, 2], v downwards
    colors: np.ndarray  # [V, 3] sRGB 0..1
    joints: np.ndarray  # [V, 4] int: 0 the object itself, 1 + k bone k
    weights: np.ndarray  # [V, 4], sum 1
    faces: np.ndarray  # [F, 3]
    materials: np.ndarray  # [F] the object's material slot


def bake(file: Path, clips: list[dict], out: Path) -> None:
    """Write the bake of a model's clips, each {"action", "time_range": seconds}.

    Raises:
        UserError: the model cannot be read or has no such action.
    """
    model = open_model(file)
    parts = [_part(obj) for obj in model.meshes()]
    moments = [np.linspace(*clip["time_range"], FRAMES) * FPS for clip in clips]
    poses, true = [], []
    for clip, frames in zip(clips, moments, strict=True):
        model.play(clip["action"])
        seen = []
        for k, frame in enumerate(frames):
            model.go_to(frame)
            seen.append([_bone_matrices(part) for part in parts])
            if k in CHECKED_FRAMES:
                true.append(_evaluated(parts))
        poses.append(np.stack([np.concatenate(matrices) for matrices in seen]))  # [T, B, 4, 4]

    starts = np.cumsum([0, *(len(part.bones) + 1 for part in parts)])
    joints = np.concatenate([part.joints + start for part, start in zip(parts, starts[:-1], strict=True)])
    weights = np.concatenate([part.weights for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part.vertices) for part in parts])  # [V]

    # Rest vertices are the world's at the first moment, made to fit half precision: the longest side is 1.
    # Where an object has no size there and then, its own coordinates have to do.
    rest = poses[0][0][starts[:-1]]
    rest[np.abs(np.linalg.det(rest[:, :3, :3])) < 1e-12] = np.eye(4)
    first = true[0]
    low, high = first.min(axis=0), first.max(axis=0)
    side = max(float((high - low).max()), 1e-9)
    to_unit = np.diag([1 / side, 1 / side, 1 / side, 1.0])
    to_unit[:3, 3] = -(low + high) / 2 / side
    unit_rest = to_unit @ rest
    undo = np.linalg.inv(unit_rest)[np.repeat(np.arange(len(parts)), np.diff(starts))]  # [B, 4, 4]
    placed = unit_rest[owner]  # [V, 4, 4]
    local = np.concatenate([part.vertices for part in parts])
    vertices = (np.einsum("vij,vj->vi", placed[:, :3, :3], local) + placed[:, :3, 3]).astype(np.float16)
    turn = np.linalg.inv(placed[:, :3, :3]).swapaxes(1, 2)
    normals = np.einsum("vij,vj->vi", turn, np.concatenate([part.normals for part in parts]))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    matrices = [(to_unit @ pose @ undo)[:, :, :3].astype(np.float16) for pose in poses]

    arrays = {
        "v": vertices,
        "n": np.round(normals * 127).astype(np.int8),
        "i": joints.astype(np.uint8 if starts[-1] < 256 else np.uint16),
        "w": _bytes(weights),
        "uv": np.concatenate([part.uv for part in parts]).astype(np.float16),
        **_faces(parts),
        **{f"M{k}": matrix for k, matrix in enumerate(matrices)},
    }
    used = arrays["w"].astype(np.float32)
    arrays["error"] = _errors(vertices, joints, used / used.sum(1, keepdims=True), matrices, true, to_unit)
    colors = np.concatenate([part.colors for part in parts])
    if (colors < 0.999).any():
        arrays["vc"] = _bytes(colors)
    write_arrays(out, arrays)


def _part(obj: bpy.types.Object) -> Part:
    mesh = obj.data
    mesh.calc_loop_triangles()
    corner_vertices = _read(mesh.loops, "vertex_index", 1, np.int32)[:, 0]
    normals = _read(mesh.corner_normals, "vector", 3)
    layer = next((layer for layer in mesh.uv_layers if layer.active_render), None)
    uv = _read(layer.uv, "vector", 2) if layer else np.zeros((len(corner_vertices), 2), np.float32)
    uv[:, 1] = 1 - uv[:, 1]
    colors = _corner_colors(mesh, corner_vertices)

    # Corners that agree in all they carry are one vertex of the bake.
    keys = np.column_stack([corner_vertices, np.round(normals * 127), uv.astype(np.float16), np.round(colors * 255)])
    _, first, index = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    source = corner_vertices[first]
    triangles = _read(mesh.loop_triangles, "loops", 3, np.int32)
    armature, bones, joints, weights = _influences(obj)
    return Part(
        obj=obj,
        armature=armature,
        bones=bones,
        source=source,
        vertices=_read(mesh.vertices, "co", 3)[source].astype(np.float64),
        normals=normals[first].astype(np.float64),
        uv=uv[first],
        colors=colors[first],
        joints=joints[source],
        weights=weights[source],
        faces=index.reshape(-1)[triangles],
        materials=_read(mesh.loop_triangles, "material_index", 1, np.int32)[:, 0],
    )


def _influences(obj: bpy.types.Object) -> tuple[bpy.types.Object | None, list[str], np.ndarray, np.ndarray]:
    """The armature of an object, its bones that carry vertices, and for each vertex of the mesh the strongest four."""
    count = len(obj.data.vertices)
    joints, weights = np.zeros((count, INFLUENCES), int), np.zeros((count, INFLUENCES))
    weights[:, 0] = 1  # what no bone carries moves with the object
    modifier = next((m for m in obj.modifiers if m.type == "ARMATURE" and m.object and m.show_render), None)
    if modifier is None:
        return None, [], joints, weights
    deforming = {bone.name for bone in modifier.object.data.bones if bone.use_deform}
    groups = [group.name if group.name in deforming else None for group in obj.vertex_groups]
    bones = sorted({name for name in groups if name is not None})
    place = {name: k + 1 for k, name in enumerate(bones)}
    for vertex in obj.data.vertices:
        found = [(g.weight, place[groups[g.group]]) for g in vertex.groups if groups[g.group] is not None]
        found = sorted((pair for pair in found if pair[0] > 0), reverse=True)[:INFLUENCES]
        whole = sum(weight for weight, _ in found)
        if whole > 1e-4:
            weights[vertex.index] = 0
            for k, (weight, joint) in enumerate(found):
                weights[vertex.index, k], joints[vertex.index, k] = weight / whole, joint
    return modifier.object, bones, joints, weights


def _bone_matrices(part: Part) -> np.ndarray:  # [1 + bones, 4, 4] float64
    """Where the object and its bones now take a vertex of the object's mesh, in the world."""
    graph = bpy.context.evaluated_depsgraph_get()
    world = np.array(part.obj.evaluated_get(graph).matrix_world)
    matrices = [world]
    if part.armature is not None:
        armature = part.armature.evaluated_get(graph)
        to_world = np.array(armature.matrix_world)
        into = np.linalg.inv(to_world) @ world
        for name in part.bones:
            bone = armature.pose.bones[name]
            rest = np.array(bone.bone.matrix_local)
            matrices.append(to_world @ np.array(bone.matrix) @ np.linalg.inv(rest) @ into)
    return np.stack(matrices)


def _evaluated(parts: list[Part]) -> np.ndarray:  # [V, 3] float64
    """Where Blender itself now has the vertices of the bake, in the world."""
    graph = bpy.context.evaluated_depsgraph_get()
    found = []
    for part in parts:
        obj = part.obj.evaluated_get(graph)
        mesh = obj.to_mesh()
        positions = _read(mesh.vertices, "co", 3).astype(np.float64)
        obj.to_mesh_clear()
        if len(positions) != len(part.obj.data.vertices):
            raise UserError("not_bakeable", f"A modifier changes the mesh of {part.obj.name}.", "Apply it.")
        matrix = np.array(obj.matrix_world)
        found.append(positions[part.source] @ matrix[:3, :3].T + matrix[:3, 3])
    return np.concatenate(found)


def _errors(
    vertices: np.ndarray,
    joints: np.ndarray,
    weights: np.ndarray,
    matrices: list[np.ndarray],
    true: list[np.ndarray],
    to_unit: np.ndarray,
) -> np.ndarray:  # [clips] float32
    """Farthest distance, for each clip, of a vertex as a reader will pose it from where Blender has it; sides of 1."""
    errors = np.zeros(len(matrices), np.float32)
    rest = vertices.astype(np.float32)
    for clip, stored in enumerate(matrices):
        for k, frame in enumerate(CHECKED_FRAMES):
            moves = stored[frame].astype(np.float32)
            posed = np.zeros_like(rest)
            for influence in range(INFLUENCES):
                move = moves[joints[:, influence]]
                moved = np.einsum("vij,vj->vi", move[:, :, :3], rest) + move[:, :, 3]
                posed += weights[:, influence, None] * moved
            wanted = true[clip * len(CHECKED_FRAMES) + k] @ to_unit[:3, :3].T + to_unit[:3, 3]
            errors[clip] = max(errors[clip], np.linalg.norm(posed - wanted, axis=1).max())
    return errors


def _faces(parts: list[Part]) -> dict[str, np.ndarray]:
    """Triangles and what they look like: `f`, `m`, `col`, `ti` and the textures."""
    faces, materials = [], []
    looks: list[tuple[np.ndarray, bpy.types.Image | None]] = []
    known: dict[str | None, int] = {}
    start = 0
    for part in parts:
        faces.append(part.faces + start)
        start += len(part.vertices)
        slots = [slot.material for slot in part.obj.material_slots] or [None]
        for material in slots:
            name = material and material.name
            if name not in known:
                known[name] = len(looks)
                looks.append(_look(material))
        numbers = np.array([known[material and material.name] for material in slots])
        materials.append(numbers[np.clip(part.materials, 0, len(slots) - 1)])
    images = list(dict.fromkeys(image for _, image in looks if image is not None))
    count = start
    return {
        "f": np.concatenate(faces).astype(np.uint16 if count < 65536 else np.uint32),
        "m": np.concatenate(materials).astype(np.uint8 if len(looks) < 256 else np.uint16),
        "col": _bytes(np.stack([linear_to_srgb(color) for color, _ in looks])),
        "ti": np.array([images.index(image) if image is not None else -1 for _, image in looks], np.int16),
        **{f"tex{k}": _bytes(_pixels(image)) for k, image in enumerate(images)},
    }


def _look(material: bpy.types.Material | None) -> tuple[np.ndarray, bpy.types.Image | None]:
    """Base colour, linear, and base texture of a material as the glTF importer builds it; light of its own is added."""
    node = material and principled(material)
    if not node:
        return np.full(3, 0.8), None
    color, image = _socket_look(node.inputs["Base Color"])
    emission, _ = _socket_look(node.inputs["Emission Color"])
    if not node.inputs["Emission Color"].is_linked:
        color = color + emission * node.inputs["Emission Strength"].default_value
    return color.clip(0, 1), image


def _socket_look(socket: bpy.types.NodeSocket) -> tuple[np.ndarray, bpy.types.Image | None]:
    """Product of all colours that lead to a socket, and the texture among them. Vertex colours are read elsewhere."""
    if not socket.is_linked:
        return np.array(socket.default_value[:3]), None
    node = socket.links[0].from_node
    if node.type == "TEX_IMAGE":
        return np.ones(3), node.image
    if node.type == "MIX" and node.blend_type == "MULTIPLY":
        color, image = np.ones(3), None
        for factor in _color_inputs(node):
            part, texture = _socket_look(factor)
            color, image = color * part, image or texture
        return color, image
    return np.ones(3), None


def _color_inputs(mix: bpy.types.Node) -> list[bpy.types.NodeSocket]:
    return [socket for socket in mix.inputs if socket.type == "RGBA" and socket.enabled]


def _corner_colors(mesh: bpy.types.Mesh, corner_vertices: np.ndarray) -> np.ndarray:  # [corners, 3] sRGB 0..1
    """The colour attribute that materials multiply by; white where there is none."""
    white = np.ones((len(corner_vertices), 3), np.float32)
    names = {
        node.layer_name
        for material in mesh.materials
        if material and material.node_tree
        for node in material.node_tree.nodes
        if node.type == "VERTEX_COLOR" and node.outputs["Color"].is_linked
    }
    attribute = next((attribute for attribute in mesh.color_attributes if attribute.name in names), None)
    if attribute is None:
        return white
    values = linear_to_srgb(np.minimum(_read(attribute.data, "color", 4)[:, :3], 1))
    return values if attribute.domain == "CORNER" else values[corner_vertices]


def _pixels(image: bpy.types.Image) -> np.ndarray:  # [h, w, 3] sRGB 0..1, first row on top
    width, height = image.size
    if not width or not height:
        return np.ones((1, 1, 3), np.float32)
    pixels = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(pixels)
    pixels = pixels.reshape(height, width, image.channels)[::-1]
    pixels = pixels[..., :3] if image.channels >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    step = -(-max(width, height) // TEXTURE_SIZE)
    rows, columns = height // step or 1, width // step or 1
    pixels = pixels[: rows * step, : columns * step]
    return pixels.reshape(rows, pixels.shape[0] // rows, columns, pixels.shape[1] // columns, 3).mean((1, 3))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(values.clip(0, 1) * 255).astype(np.uint8)


def _read(collection, name: str, width: int, dtype: type = np.float32) -> np.ndarray:  # [N, width]
    values = np.empty(len(collection) * width, dtype)
    collection.foreach_get(name, values)
    return values.reshape(-1, width)
