# SPDX-License-Identifier: GPL-3.0-or-later
"""An animated model file opened in Blender, so that each of its actions plays as if it were the only one.

Needs the bpy wheel. Bones without a channel keep the pose that the file gives them; Blender by itself would leave them
where the action before has put them.
"""

import contextlib
import json
import math
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from backend.progress import UserError

FPS = 24  # seconds of the file -> frames of the scene; frames are fractional
ROOT_NAME = "Kinesplat Model"
FLOAT = 5126  # glTF's number for a component type
CHUNK_HEADER = 8  # bytes of length and kind


class BlenderModel:
    """The only content of the open Blender file. Made by `open_model`."""

    def __init__(self, root: bpy.types.Object, objects: list[bpy.types.Object], pose: dict[str, dict]) -> None:
        self.root = root  # an empty at the origin, parent of everything
        self._turntable = root.parent
        self._objects = objects
        self._pose = pose

    def meshes(self) -> list[bpy.types.Object]:
        """The objects with faces, in the order of their names."""
        meshes = [obj for obj in self._objects if obj.type == "MESH" and len(obj.data.polygons)]
        return sorted(meshes, key=lambda obj: obj.name)

    def rest(self) -> None:
        """Show the model as the file describes it, without any action."""
        for animation in _animations(self._objects):
            for track in animation.nla_tracks:
                track.mute = True
            animation.action = None
        _restore_pose(self._objects, self._pose)

    def play(self, action: str) -> None:
        """Let one action of the file move the model, and nothing else.

        Raises:
            UserError: the file has no such action.
        """
        self.rest()
        found = False
        for animation in _animations(self._objects):
            # Blender names an action of a file with several equal names `Walk.001`, but its track as the file does.
            strips = [strip for track in animation.nla_tracks if track.name == action for strip in track.strips]
            if strips:
                animation.action = strips[0].action
                animation.action_slot = strips[0].action_slot
                found = True
        if not found:
            raise UserError("no_such_action", f"The model has no action {action}.", "Correct its manifest.")

    def go_to(self, frame: float) -> None:
        """Pose the model at a frame, which may be fractional."""
        whole = int(np.floor(frame))
        bpy.context.scene.frame_set(whole, subframe=frame - whole)

    def drift(self, offsets: np.ndarray, frames: np.ndarray) -> None:
        """Move the whole model: by offsets [T, 3] at frames [T], linearly between them."""
        self.root.animation_data_clear()
        for offset, frame in zip(offsets, frames, strict=True):
            self.root.location = offset
            self.root.keyframe_insert("location", frame=frame)
        action = self.root.animation_data.action
        for curve in action.layers[0].strips[0].channelbags[0].fcurves:
            for point in curve.keyframe_points:
                point.interpolation = "LINEAR"

    def stay(self) -> None:
        """Undo `drift`."""
        self.root.animation_data_clear()
        self.root.location = (0, 0, 0)

    def turn(self, degrees: float, center: np.ndarray) -> None:
        """Turn the whole model about the vertical through `center` [3]; a second turn replaces the first."""
        pivot = Matrix.Translation(center.tolist())
        self._turntable.matrix_world = pivot @ Matrix.Rotation(math.radians(degrees), 4, "Z") @ pivot.inverted()


def open_model(path: Path) -> BlenderModel:
    """Open a .glb or .gltf file; everything else in Blender is forgotten.

    Raises:
        UserError: Blender cannot read it, or it has no mesh.
    """
    description, rest = _read_gltf(path)
    _show_invisible(description.get("materials", []))
    if rest is not None:
        rest = _without_nan_weights(description, rest)
    still = {key: value for key, value in description.items() if key != "animations"}
    _import(path, still, rest)
    pose = _pose(bpy.data.objects)
    _import(path, description, rest)
    objects = list(bpy.data.objects)
    turntable = bpy.data.objects.new("Kinesplat Turntable", None)
    root = bpy.data.objects.new(ROOT_NAME, None)
    root.parent = turntable
    for empty in (turntable, root):
        bpy.context.scene.collection.objects.link(empty)
    for obj in objects:
        if obj.parent is None:
            obj.parent = root
    model = BlenderModel(root, objects, pose)
    if not model.meshes():
        raise UserError("no_mesh", f"{path.name} has no mesh.", "Leave it out of the manifest.")
    return model


def _read_gltf(path: Path) -> tuple[dict, bytes | None]:
    """The description in a .glb or .gltf file, and of a .glb what follows it."""
    data = path.read_bytes()
    try:
        if data[:4] != b"glTF":
            return json.loads(data), None
        end = 20 + struct.unpack_from("<I", data, 12)[0]
        return json.loads(data[20:end]), data[end:]
    except (struct.error, ValueError) as error:
        raise UserError("bad_model", f"{path.name} is not a glTF file.", "Convert it with Blender.") from error


def _show_invisible(materials: list[dict]) -> None:
    """Make materials opaque that nobody could ever see: conversions from FBX confuse alpha with 1 - alpha."""
    for material in materials:
        look = material.get("pbrMetallicRoughness", {})
        factor = look.get("baseColorFactor", [1, 1, 1, 1])
        if material.get("alphaMode", "OPAQUE") != "OPAQUE" and factor[3] == 0:
            material["alphaMode"] = "OPAQUE"
            look["baseColorFactor"] = [*factor[:3], 1]


def _without_nan_weights(description: dict, rest: bytes) -> bytes:
    """The binary chunk of a .glb with skin weights that are numbers. Blender throws vertices about that have others."""
    chunk = bytearray(rest)
    for mesh in description.get("meshes", []):
        for primitive in mesh["primitives"]:
            accessor = primitive["attributes"].get("WEIGHTS_0")
            accessor = {} if accessor is None else description["accessors"][accessor]
            if accessor.get("componentType") != FLOAT or "bufferView" not in accessor:
                continue
            view = description["bufferViews"][accessor["bufferView"]]
            start = CHUNK_HEADER + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
            strides = (view.get("byteStride", 16), 4)
            weights = np.ndarray((accessor["count"], 4), "<f4", chunk, start, strides)
            broken = ~np.isfinite(weights).all(axis=1)
            weights[broken] = np.nan_to_num(weights[broken], posinf=0, neginf=0)
            weights[broken & (weights.sum(axis=1) <= 0), 0] = 1
    return bytes(chunk)


def _import(path: Path, description: dict, rest: bytes | None) -> None:
    """Import a changed copy of the file `path` into an empty Blender."""
    text = json.dumps(description).encode()
    if rest is not None:
        text += b" " * (-len(text) % 4)
        text = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest
    # A .gltf names its buffers relative to itself, so its copy must lie beside it.
    handle, copy = tempfile.mkstemp(suffix=path.suffix, dir=path.parent if rest is None else None)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = FPS
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        with quiet():
            bpy.ops.import_scene.gltf(filepath=copy, disable_bone_shape=True)
    except RuntimeError as error:
        raise UserError("bad_model", f"Blender cannot read {path.name}: {str(error).strip()}") from error
    finally:
        Path(copy).unlink(missing_ok=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what Blender prints, which goes past `sys.stdout`. Problems come as exceptions all the same."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)


def _animations(objects: list[bpy.types.Object]) -> Iterator[bpy.types.AnimData]:
    for obj in objects:
        keys = obj.data.shape_keys if obj.type == "MESH" else None
        for block in (obj, keys):
            if block is not None and block.animation_data is not None:
                yield block.animation_data


def _pose(objects: list[bpy.types.Object]) -> dict[str, dict]:
    """What an action may change, by object name: transforms, bones, shape keys."""
    found = {}
    for obj in objects:
        keys = obj.data.shape_keys if obj.type == "MESH" else None
        found[obj.name] = {
            "basis": obj.matrix_basis.copy(),
            "bones": {bone.name: bone.matrix_basis.copy() for bone in obj.pose.bones} if obj.pose else {},
            "keys": {key.name: key.value for key in keys.key_blocks} if keys else {},
        }
    return found


def principled(material: bpy.types.Material) -> bpy.types.Node | None:
    """The node that says what a surface of an imported model looks like."""
    tree = material.node_tree
    return next((node for node in tree.nodes if node.type == "BSDF_PRINCIPLED"), None) if tree else None


def _restore_pose(objects: list[bpy.types.Object], pose: dict[str, dict]) -> None:
    for obj in objects:
        kept = pose[obj.name]
        obj.matrix_basis = kept["basis"]
        for name, basis in kept["bones"].items():
            obj.pose.bones[name].matrix_basis = basis
        for name, value in kept["keys"].items():
            obj.data.shape_keys.key_blocks[name].value = value
