# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians that were joined (Ctrl J), which Blender does to the points alone and not to the stored frames.

Those of another scale, turned otherwise or with another number of frames then do not fit the frames that they bring
along. Each point has its number in its clip, so another part begins where the numbers begin anew.
"""

import re
from dataclasses import dataclass

import bpy
import numpy as np

from . import attributes, node_groups, splat_object, versions
from .contract import rotations
from .contract.clip import Clip, FrameMotion
from .contract.placement import placed, placed_sh
from .contract.splat_files.ply_writer import logit, sigmoid

SAMPLES = 64  # points of each part, of as many as there may be: panels ask, too
FEW = 4  # points that tell whether a part has a frame
TOLERANCE = 1e-3  # of a part's size, and of a scale of 1; less is rounding
MOST_PARTS = 64  # more are points in another order, not clips
OURS = re.compile(r"(pos|rot|lsc|opacity)(\.\d+)?|sh_\d+|f_dc_[012]")  # attributes


@dataclass(frozen=True)
class Part:
    """Points that came with one clip."""

    points: slice
    applied: np.ndarray | None  # [4, 4] from where their first frame has them to where they lie; None: no such matrix
    frames: int  # that they have brought along; none where they are no Gaussians


def parts(mesh: bpy.types.Mesh) -> list[Part]:
    """The parts of a mesh that stores frames; none in Edit Mode, where nothing can be read.

    A single point that was moved by hand, and no matrix leads to all of its part.
    """
    count = len(mesh.vertices)
    if not count or "pos.0" not in mesh.attributes or len(mesh.attributes["pos.0"].data) != count:
        return []
    starts = [0]
    if attributes.NUMBER in mesh.attributes:
        numbers = attributes.read(mesh.attributes[attributes.NUMBER])
        later = (np.flatnonzero(np.diff(numbers) < 0) + 1).tolist()
        starts += later if len(later) < MOST_PARTS else []
    pieces = [slice(*ends) for ends in zip(starts, [*starts[1:], count], strict=True)]
    return [Part(points, _applied(mesh, points), _frames(mesh, points)) for points in pieces]


def is_same_turn(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two matrices scale and turn alike, wherever they shift to."""
    return bool(np.abs(one[:3, :3] - other[:3, :3]).max() < TOLERANCE * np.abs(one[:3, :3]).max())


def misfits(splats: bpy.types.Object | None, mesh: bpy.types.Mesh | None = None) -> bool:
    """Whether Gaussians were joined that do not fit the frames that they have. `mesh`: a copy of theirs."""
    modifier = splat_object.playback_modifier(splats) if splat_object.is_splat_object(splats) else None
    if modifier is None:
        return False
    mesh = mesh or splats.data
    found = parts(mesh)
    played = _played(modifier, mesh)
    matrices = [part.applied for part in found if part.applied is not None]
    if any(part.frames != found[0].frames or part.frames < played for part in found):
        return True
    return any(not is_same_turn(matrix, matrices[0]) for matrix in matrices)


def settle(splats: bpy.types.Object) -> None:
    """Let the frames of all parts go along with how they were joined: they become one clip.

    Each plays for as long as what they were joined to, whatever its number of frames was.

    Raises:
        ValueError: nothing is to be mended, it belongs to another file, a part is no Gaussians, or one was stretched
            and cannot be followed.
    """
    if not misfits(splats):
        raise ValueError(f"{splats.name} has nothing to mend.")
    if splats.library is not None or splats.data.library is not None:
        raise ValueError(splat_object.LINKED.format(splats.name))
    mesh, modifier = splats.data, splat_object.playback_modifier(splats)
    found = [(part, _matrix(part)) for part in parts(mesh)]
    if not all(part.frames for part, _ in found):
        raise ValueError(
            f"Points were joined into {splats.name} that are no Gaussians, such as those of a mesh. "
            "Undo that, or delete them in Edit Mode."
        )
    played = max(_played(modifier, mesh), found[0][0].frames)
    single = {name for name in ("lsc", "opacity") if _reads(modifier.node_group, name)}  # not one for each frame
    if "lsc" in single and any(not _is_even(matrix) for _, matrix in found):
        raise ValueError(
            f"Gaussians were stretched unevenly before they were joined into {splats.name}, which a scale that is the "
            "same in all frames cannot follow. Undo that, or delete them."
        )
    former = {column.name: attributes.read(column) for column in mesh.attributes if OURS.fullmatch(column.name)}
    frames = range(played)
    widths = {f"pos.{t}": 3 for t in frames} | {f"rot.{t}": 4 for t in frames}
    widths |= {"lsc": 3} if "lsc" in single else {f"lsc.{t}": 3 for t in frames}
    widths |= {"opacity": 1} | ({} if "opacity" in single else {f"opacity.{t}": 1 for t in frames})
    widths |= {name: 3 for name in former if name.startswith("sh_")}
    made = {name: np.zeros((len(mesh.vertices), width), np.float32) for name, width in widths.items()}
    for part, matrix in found:
        clip = _clip(former, part)
        sh = placed_sh(clip.sh, matrix)
        for index in range(1, sh.shape[1]):
            made[f"sh_{index - 1}"][part.points] = sh[:, index]
        quats = None
        for t, moment in enumerate(clip.frame(source) for source in np.linspace(0, clip.frame_count - 1, played)):
            moment = placed(moment, matrix)
            quats = moment.quats if quats is None else rotations.same_side(moment.quats, quats)
            at = {"pos": moment.means, "rot": quats, "lsc": np.log(moment.scales)}
            at["opacity"] = logit(moment.opacities)[:, None]
            for name, values in at.items():
                if name not in single:
                    made[f"{name}.{t}"][part.points] = values
                if t == 0 and name in made:
                    made[name][part.points] = values
    for name in former:
        if name not in made and not name.startswith("f_dc_"):
            mesh.attributes.remove(mesh.attributes[name])
    for name, values in made.items():
        attributes.write(mesh.attributes[name], values)
    if attributes.NUMBER in mesh.attributes:
        attributes.write(mesh.attributes[attributes.NUMBER], np.arange(len(mesh.vertices)))
    mesh.update()


def _matrix(part: Part) -> np.ndarray:  # [4, 4]
    """Where the frames of a part are to go; those of points that were moved by hand or shifted have their offsets."""
    if part.applied is None or is_same_turn(part.applied, np.eye(4)):
        return np.eye(4)
    matrix = part.applied.copy()
    if _is_even(matrix):  # and rounding apart exactly so
        left, scale, right = np.linalg.svd(matrix[:3, :3])
        matrix[:3, :3] = left @ right * scale.mean()
    return matrix


def _is_even(matrix: np.ndarray) -> bool:
    scale = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(scale[0] - scale[2] <= TOLERANCE * scale[0])


def _clip(columns: dict[str, np.ndarray], part: Part) -> Clip:
    """The Gaussians of a part as they were before they were joined."""
    own = {name: values[part.points] for name, values in columns.items()}
    times = range(part.frames)

    def stacked(name: str) -> np.ndarray | None:  # [T, n, ..]; Blender fills up with zeros what a part had not
        if f"{name}.0" not in own or not own[f"{name}.0"].any():
            return None
        return np.stack([own[f"{name}.{t}"] for t in times])

    log_scales, logits = stacked("lsc"), stacked("opacity")
    scales = np.exp(own["lsc"] if log_scales is None else log_scales.mean(0))
    rest = [own[f"sh_{index}"] for index in range(sum(name.startswith("sh_") for name in own))]
    constant = np.stack([own[f"f_dc_{channel}"] for channel in range(3)], axis=-1)
    means = stacked("pos")
    quats = rotations.normalize(np.stack([own[f"rot.{t}"] for t in times]))
    return Clip(
        means=means[0],
        quats=quats[0],
        scales=scales,
        opacities=sigmoid(own["opacity"]),
        sh=np.stack([constant, *rest], axis=1),
        motion=FrameMotion(
            means,
            quats,
            None if log_scales is None else np.exp(log_scales),
            None if logits is None else sigmoid(logits),
        ),
    )


def _played(modifier: bpy.types.NodesModifier, mesh: bpy.types.Mesh) -> int:
    """How many of the stored frames are played."""
    last = int(versions.modifier_input(modifier, node_groups.LAST_FRAME))
    return min(last + 1, splat_object.frame_count(mesh))


def _reads(tree: bpy.types.NodeTree, name: str) -> bool:
    """Whether nodes read an attribute of this very name, rather than one for each frame."""
    nodes = (node for node in tree.nodes if node.bl_idname == "GeometryNodeInputNamedAttribute")
    return any(node.inputs["Name"].default_value == name and not node.inputs["Name"].is_linked for node in nodes)


def _applied(mesh: bpy.types.Mesh, points: slice) -> np.ndarray | None:  # [4, 4]
    """The matrix that leads from where points have their first frame to where they lie, if it is the same for all."""
    chosen = np.unique(np.linspace(points.start, points.stop - 1, SAMPLES).astype(int)).tolist()
    stored, vertices = mesh.attributes["pos.0"].data, mesh.vertices
    if len(chosen) < 4:
        return None
    first = np.array([stored[index].vector for index in chosen], np.float64)
    now = np.array([vertices[index].co for index in chosen], np.float64)
    center, to = first.mean(axis=0), now.mean(axis=0)
    linear, _, rank, _ = np.linalg.lstsq(first - center, now - to, rcond=1e-6)
    size = max(np.ptp(first, axis=0).max(), np.ptp(now, axis=0).max())
    astray = np.abs((first - center) @ linear + to - now).max()
    if rank < 3 or astray > TOLERANCE * size or np.linalg.cond(linear) > 1e6:
        return None
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear.T, to - center @ linear
    return matrix


def _frames(mesh: bpy.types.Mesh, points: slice) -> int:
    """How many frames points have: those that they have not brought along, Blender fills with zeros."""
    chosen = np.unique(np.linspace(points.start, points.stop - 1, FEW).astype(int)).tolist()
    low, high = 0, splat_object.frame_count(mesh)
    while low < high:  # the first that is not theirs
        middle = (low + high) // 2
        stored = mesh.attributes[f"pos.{middle}"].data
        if any(any(stored[index].vector) for index in chosen):
            low = middle + 1
        else:
            high = middle
    return low
