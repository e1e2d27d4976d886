# SPDX-License-Identifier: GPL-3.0-or-later
"""The motion of Gaussians given to the mesh that they were made of, or to any other that lies where they lie.

The mesh itself stays as it is: a copy of what it looks like, with its materials and UV maps, moves. Each of its
vertices goes along with the Gaussians round it, blended as bones are. The copy keeps a position for each vertex and
stored frame, and plays them by the same modifier input and the same action as the Gaussians: retiming one retimes both.
For other programs the positions may be shape keys instead, which are keyed with the timing of the moment.
"""

from collections.abc import Callable

import bpy
import numpy as np
from mathutils import Matrix

from . import (
    applied_transform,
    exchange,
    nearness,
    node_groups,
    origin,
    placing,
    retime,
    splat_object,
    subject,
    versions,
)
from .contract import rotations
from .contract.clip import Clip, Gaussians
from .point_cloud import clip_of_object

NEIGHBORS = 32  # Gaussians that a vertex goes along with, at most: so many average out what they disagree in
NEAR = 2.0  # weights fall to exp(-1/2) at so many times the distance of the nearest quarter of the neighbors
FAR = 0.06  # mean distance of vertices to Gaussians, relative to the size of all: beyond it they are of other things
PROBES = 500  # vertices by which that is judged
MOST = 0.5  # part of those Gaussians that are there when most are: with fewer, it is not the whole that lies there
FLAT = 1e-3  # of the size of all: what is smaller has no size at that moment
LOST = 0.05  # part of the vertices that may be left without Gaussians at some frame: the others take these along
FADED = 1e-3  # weight of a Gaussian while it is not there
PARTNER = 8  # the neighbor whose distance tells whether the surface round a Gaussian has drawn together
DRAWN_TOGETHER = 0.25  # part of that distance: below it what is gone has shrunk to nothing, which a mesh can do
LOOKS = (  # of objects, beside those of their meshes
    "color",
    "pass_index",
    "display_type",
    "show_in_front",
    "is_holdout",
    "is_shadow_catcher",
    "visible_camera",
    "visible_diffuse",
    "visible_glossy",
    "visible_transmission",
    "visible_volume_scatter",
    "visible_shadow",
)
_BOUND_AT_ONCE, _CARRIED_AT_ONCE = 2_000, 500  # vertices: what belongs to them fits into the processor's cache
_FRAMES_AT_ONCE = 8
_BINDING = 0.7  # share of the time that it takes to find the neighbors


class MeshMotionError(ValueError):
    """The mesh cannot take over the motion; the message says why and what to do."""


def source_objects(splats: bpy.types.Object, context: bpy.types.Context) -> list[bpy.types.Object]:
    """The objects with a surface of which the Gaussians were made, as far as the scene still has them."""
    source = origin.source_of(splats, context.scene)
    family = subject.family(source) if source is not None else []
    return [obj for obj in family if may_move(obj) and obj.name in context.scene.objects]


def may_move(obj: bpy.types.Object) -> bool:
    """Whether an object has a surface that could take over a motion."""
    return obj.type in subject.SURFACE_TYPES and not splat_object.is_splat_object(obj)


def moving_copies(
    splats: bpy.types.Object,
    objects: list[bpy.types.Object],
    context: bpy.types.Context,
    *,
    shape_keys: bool = False,
    on_progress: Callable[[float], None] = lambda share: None,
) -> list[bpy.types.Object]:
    """Copies of objects that move as the Gaussians do, beside the originals, one for each that has a surface.

    Mesh and Gaussians are taken as they lie at the current frame; where the first stored frame fits the mesh better,
    that one is taken.

    Args:
        splats: the Gaussians, with what was deleted or moved in Edit Mode.
        objects: with modifiers, shape keys and armatures as they look now; those disabled in viewports are left out.
        context: of the scene in which they are.
        shape_keys: keep the motion as shape keys with a keyed value each, as game engines take it.
        on_progress: is told the share of the work that is done, 0 to 1.

    Raises:
        ValueError: there is nothing to move, or it does not lie where the Gaussians are, or nothing plays these;
            nothing was added.
    """
    if not objects:
        raise MeshMotionError(
            f"The mesh of which {splats.name} was made is not in this scene. "
            "Select the mesh to move first, then the Gaussians with Shift, and try again."
        )
    applied_transform.refuse(splats)
    clip, shown = clip_of_object(splats), splat_object.shown_frame(splats)
    timing, repeat = _timing(splats, context) if shape_keys else ({}, "HOLD")
    graph = context.evaluated_depsgraph_get()
    known = [obj for obj in objects if obj.evaluated_get(graph).is_evaluated]
    if not known:
        raise MeshMotionError(
            f"{objects[0].name} is disabled in viewports or excluded from the view layer. Enable it and try again."
        )
    meshes = [(obj, mesh) for obj in known if (mesh := _looks(obj, graph)) is not None]
    try:
        if not meshes:
            raise MeshMotionError("There is no surface to move. Select a mesh that has faces, then the Gaussians.")
        to_clip = splats.matrix_world.inverted_safe()
        places = [_transformed(_vertices(mesh), to_clip @ obj.matrix_world) for obj, mesh in meshes]
        rest = _frame_that_fits(clip, shown, places, [obj for obj, _ in meshes])
        _demand_lasting(clip, rest, places, [obj.name for obj, _ in meshes])
    except BaseException:
        for _, mesh in meshes:
            bpy.data.meshes.remove(mesh)
        raise

    copies, done, whole = [], 0, sum(map(len, places))
    for (obj, mesh), place in zip(meshes, places, strict=True):
        moved = follow(place, clip, rest, _part_of(on_progress, done / whole, len(place) / whole))
        done += len(place)
        copy = _add(obj, mesh, splats, context)
        moved = _transformed(moved, copy.matrix_world.inverted_safe() @ splats.matrix_world)
        mesh.vertices.foreach_set("co", moved[0].reshape(-1))
        mesh.update()
        if shape_keys:
            _key_shapes(copy, moved, timing, repeat)
        else:
            _play(copy, moved, splats, context)
        copies.append(copy)
    return copies


def follow(
    vertices: np.ndarray, clip: Clip, rest: float, on_progress: Callable[[float], None] = lambda share: None
) -> np.ndarray:
    """Where vertices go that move along with Gaussians, by linear blend skinning.

    Those that are not there at `rest` have no part in it, and while one is not there the others lead in its place.
    Where a surface grows or shrinks, so does what lies round it.

    Args:
        vertices: [V, 3] at `rest`, clip space.
        clip: the Gaussians.
        rest: stored frame, may be fractional, at which both lie as they belong together.
        on_progress: is told the share of the work that is done, 0 to 1.

    Returns:
        [T, V, 3] float32, one for each stored frame.
    """
    start = clip.frame(rest)
    present = np.flatnonzero(start.there)
    start = start.picked(present)
    # What lies side by side in space lies side by side in memory then, which is several times as fast.
    path = nearness.path_through(vertices)
    vertices = vertices[path]
    nearest, weights = _bind(vertices, start, _part_of(on_progress, 0.0, _BINDING))
    moved = np.empty((clip.frame_count, *vertices.shape), np.float32)
    for first in range(0, clip.frame_count, _FRAMES_AT_ONCE):
        frames = range(first, min(first + _FRAMES_AT_ONCE, clip.frame_count))
        carriers = _carriers(start, [clip.frame(t).picked(present) for t in frames])
        moved[frames.start : frames.stop, path] = _carried(vertices, nearest, weights, carriers)
        on_progress(_BINDING + (1 - _BINDING) * frames.stop / clip.frame_count)
    return moved


def _part_of(on_progress: Callable[[float], None], begun: float, part: float) -> Callable[[float], None]:
    return lambda share: on_progress(begun + part * share)


def _bind(
    vertices: np.ndarray, start: Gaussians, on_progress: Callable[[float], None]
) -> tuple[np.ndarray, np.ndarray]:  # [V, K] int, [V, K] float32
    """The Gaussians that each vertex goes along with, and how much: by distance and opacity."""
    count = min(NEIGHBORS, len(start.means))
    tree = nearness.tree_of(start.means)
    nearest = np.empty((len(vertices), count), np.int64)
    weights = np.empty((len(vertices), count), np.float32)
    for first in range(0, len(vertices), _BOUND_AT_ONCE):
        part = slice(first, first + _BOUND_AT_ONCE)
        places = vertices[part]
        near = np.array([[index for _, index, _ in tree.find_n(place, count)] for place in places.tolist()])
        distances = np.linalg.norm(start.means[near] - places[:, None], axis=2)  # from the nearest on
        reach = NEAR * np.maximum(distances[:, : max(count // 4, 1)].mean(1, keepdims=True), 1e-6)
        # From the nearest on, as else a vertex far from all would go along with one alone.
        away = (distances**2 - distances[:, :1] ** 2) / reach**2
        weight = np.exp(-0.5 * away) * np.maximum(start.opacities[near], 1e-3)
        nearest[part], weights[part] = near, weight / weight.sum(1, keepdims=True)
        on_progress(first / len(vertices))
    return nearest, weights


def _carriers(start: Gaussians, moments: list[Gaussians]) -> np.ndarray:  # [N, F, 13] float32
    """The movement of each Gaussian from one moment to F others in clip space, times its weight there; the weight."""
    backwards = start.quats * np.array([1, -1, -1, -1], np.float32)
    carriers = np.empty((len(start.means), len(moments), 13), np.float32)
    for row, now in enumerate(moments):
        turns = rotations.to_matrix(rotations.normalize(rotations.multiply(now.quats, backwards)))
        turns = turns * _growth(start, now)[:, None, None]
        ways = now.means - np.einsum("nij,nj->ni", turns, start.means)
        carriers[:, row, :12] = np.concatenate([turns, ways[..., None]], axis=-1).reshape(-1, 12)
        carriers[:, row, 12] = 1
        carriers[~now.there, row] *= FADED
    return carriers


def _growth(start: Gaussians, now: Gaussians) -> np.ndarray:  # [N]
    """How many times as large each Gaussian is; 1 where not all of it has grown alike, as then it tells of itself."""
    ratios = now.scales / start.scales
    return np.where(ratios.max(axis=1) < 1.01 * ratios.min(axis=1), ratios[:, 0], 1.0)


def _carried(
    vertices: np.ndarray, nearest: np.ndarray, weights: np.ndarray, carriers: np.ndarray
) -> np.ndarray:  # [F, V, 3]
    """Each Gaussian carries vertices by `carriers` of its own [N, F, 13]; a vertex goes by the mean of them."""
    count, frames = carriers.shape[:2]
    rows = carriers.reshape(count, -1)
    out = np.empty((frames, *vertices.shape), np.float32)
    for first in range(0, len(vertices), _CARRIED_AT_ONCE):
        part = slice(first, first + _CARRIED_AT_ONCE)
        sums = (weights[part, None] @ rows[nearest[part]]).reshape(-1, frames, 13)
        means = (sums[..., :12] / sums[..., 12:]).reshape(-1, frames, 3, 4)
        out[:, part] = np.einsum("vfij,vj->fvi", means[..., :3], vertices[part]) + means[..., 3].swapaxes(0, 1)
    return out


# What is bound to what


def _frame_that_fits(clip: Clip, shown: float, places: list[np.ndarray], objects: list[bpy.types.Object]) -> float:
    """The stored frame at which the Gaussians lie where the vertices are: the one shown now, or the first."""
    vertices = np.concatenate(places)
    probes = vertices[:: max(len(vertices) // PROBES, 1)].tolist()
    size = max(float(np.ptp(vertices, axis=0).max()), float(np.ptp(clip.means, axis=0).max()), 1e-9)
    for obj, place in zip(objects, places, strict=True):
        if np.ptp(place, axis=0).max() < FLAT * size:
            raise MeshMotionError(f"{obj.name} has no size at this frame. Go to a frame at which it is whole.")

    def distance(frame: float) -> float:
        moment = clip.frame(frame)
        tree = nearness.tree_of(moment.means[moment.there])
        return sum(tree.find(probe)[2] for probe in probes) / len(probes) / size

    counts = {frame: clip.frame(frame).there.sum() for frame in (0.0, shown)}
    most = clip.there.sum(axis=1).max()
    distances = {frame: distance(frame) for frame, count in counts.items() if count and count >= MOST * most}
    if not distances:
        raise MeshMotionError(
            f"{100 * counts[shown] / max(most, 1):.0f} % of the Gaussians are there at this frame. "
            "Go to one at which most of them are, and lie on the mesh."
        )
    best = min(distances, key=distances.get)
    if distances[best] > FAR:
        names = objects[0].name if len(objects) == 1 else f"{objects[0].name} and the others"
        raise MeshMotionError(
            f"{names} and the Gaussians do not lie in the same place: {100 * distances[best]:.0f} % of the size apart. "
            "Put them where they belong together, or go to the frame at which they do."
        )
    return best


def _demand_lasting(clip: Clip, rest: float, places: list[np.ndarray], names: list[str]) -> None:
    """Refuse a mesh of which a part has no Gaussians at some frame, as a mesh has all of its faces all the time.

    Args:
        clip: the Gaussians.
        rest: stored frame, may be fractional, at which they lie on the meshes.
        places: [V, 3] vertices of each mesh at `rest`, clip space.
        names: of these, for people.

    Raises:
        MeshMotionError: more than `LOST` of the vertices of a mesh would be left behind.
    """
    start = clip.frame(rest)
    present = np.flatnonzero(start.there)
    if clip.there[:, present].all():
        return
    start = start.picked(present)
    tree, count = nearness.tree_of(start.means), min(NEIGHBORS, len(present))
    partner = np.array([tree.find_n(place, min(PARTNER, count))[-1][1] for place in start.means.tolist()])
    reach = np.linalg.norm(start.means[partner] - start.means, axis=1)

    def lost(moment: Gaussians) -> np.ndarray:  # [N] bool
        drawn = np.linalg.norm(moment.means[partner] - moment.means, axis=1) < DRAWN_TOGETHER * reach
        return ~(moment.there | drawn)

    gone = np.stack([lost(moment.picked(present)) for moment in clip.moments()])

    def left_behind(vertices: np.ndarray) -> np.ndarray:  # [T], the part of the vertices
        probes = vertices[:: max(len(vertices) // PROBES, 1)].tolist()
        near = np.array([[index for _, index, _ in tree.find_n(probe, count)] for probe in probes])
        return (gone[:, near].mean(axis=2) > 0.5).mean(axis=1)

    left, name = max(zip(map(left_behind, places), names, strict=True), key=lambda found: found[0].max())
    if left.max() > LOST:
        raise MeshMotionError(
            f"{100 * left.max():.0f} % of {name} has no Gaussians at stored frame {left.argmax()}, as the surface "
            "comes, goes or is made anew. A mesh has all of its faces all the time and cannot follow that: keep "
            "the Gaussians, or select parts that are always there, then the Gaussians."
        )


# Meshes


def _looks(obj: bpy.types.Object, graph: bpy.types.Depsgraph) -> bpy.types.Mesh | None:
    """A new mesh of what an object looks like now, with all that modifiers do; None where it has no vertices."""
    mesh = bpy.data.meshes.new_from_object(obj.evaluated_get(graph), preserve_all_data_layers=True, depsgraph=graph)
    if mesh is not None and not mesh.polygons:
        bpy.data.meshes.remove(mesh)
        return None
    if mesh is not None:
        for index, slot in enumerate(obj.material_slots):
            if slot.link == "OBJECT" and index < len(mesh.materials):
                mesh.materials[index] = slot.material
    return mesh


def _vertices(mesh: bpy.types.Mesh) -> np.ndarray:  # [V, 3]
    values = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", values)
    return values.reshape(-1, 3)


def _transformed(points: np.ndarray, matrix: Matrix) -> np.ndarray:  # [..., 3] float32
    values = np.asarray(matrix, np.float64)
    return (points @ values[:3, :3].T + values[:3, 3]).astype(np.float32)


def _add(
    obj: bpy.types.Object, mesh: bpy.types.Mesh, splats: bpy.types.Object, context: bpy.types.Context
) -> bpy.types.Object:
    """An object with the mesh beside the original, with the keys and strips that the Gaussians have.

    It stands as the original does, unless something moves the Gaussians as a whole: then it goes with them.
    """
    copy = splats.copy()  # brings the timing along
    if copy.override_library is not None:
        copy = copy.make_local(clear_liboverride=True)
    copy.data = mesh
    copy.name = mesh.name = f"{obj.name} Moving"
    copy.modifiers.clear()
    if copy.animation_data is not None:
        for driver in [driver for driver in copy.animation_data.drivers if driver.data_path.startswith("modifiers[")]:
            copy.animation_data.drivers.remove(driver)
    copy.asset_clear()
    for key in set(copy.keys()) - {splat_object.CLIP}:
        del copy[key]
    copy.hide_viewport = copy.hide_render = copy.hide_select = False
    for name in LOOKS:
        setattr(copy, name, getattr(obj, name))
    if not placing.moves_as_a_whole(splats):
        copy.matrix_world = obj.matrix_world
    placing.collection_beside(context, obj).objects.link(copy)
    context.view_layer.update()  # it may not be able to stand as askew as the original does
    return copy


def _play(copy: bpy.types.Object, moved: np.ndarray, splats: bpy.types.Object, context: bpy.types.Context) -> None:
    """Keep positions [T, V, 3] as attributes, and play them timed as the Gaussians are."""
    for t, positions in enumerate(moved):
        attribute = copy.data.attributes.new(f"pos.{t}", "FLOAT_VECTOR", "POINT")
        attribute.data.foreach_set("vector", positions.reshape(-1))
    modifier = copy.modifiers.new(splat_object.playback_modifier(splats).name, "NODES")  # one F-curve fits both
    modifier.node_group = node_groups.mesh_playback_group()
    versions.set_modifier_input(modifier, node_groups.LAST_FRAME, len(moved) - 1)
    retime.share(copy, splats, context.scene)
    copy.update_tag(refresh={"TIME"})  # its keys were last read when there was no modifier yet


def _timing(splats: bpy.types.Object, context: bpy.types.Context) -> tuple[dict[float, float], str]:
    """Which stored frame is shown at which scene frame, and what comes before and after: one of `retime.REPEATS`."""
    try:
        return retime.shown_frames(splats), retime.timing(splats).repeat
    except retime.RetimeError:  # strips, a driver or nothing time it: what the scene's range plays
        return {shown.scene_frame: shown.frame for shown in exchange.played(context, splats)}, "HOLD"


def _key_shapes(copy: bpy.types.Object, moved: np.ndarray, timing: dict[float, float], repeat: str) -> None:
    """Keep positions [T, V, 3] as shape keys, each with a value that is keyed so that they follow each other.

    timing: which stored frame is shown at each scene frame; repeat: what comes before and after, one of
    `retime.REPEATS`.
    """
    if not placing.moves_as_a_whole(copy):
        copy.animation_data_clear()
    copy.shape_key_add(name="Basis", from_mix=False)
    last = len(moved) - 1
    shown = np.clip(list(timing.values()), 0, last)
    for t in range(1, len(moved)):
        block = copy.shape_key_add(name=f"Frame {t}", from_mix=False)
        block.data.foreach_set("co", moved[t].reshape(-1))
        values = np.maximum(0, 1 - np.abs(shown - t))
        near = np.convolve(values > 0, (1, 1, 1))[1:-1] > 0
        near[[0, -1]] = True  # all curves begin and end together, so that they can repeat
        for scene_frame, value, is_near in zip(timing, values.tolist(), near, strict=True):
            if is_near:
                block.value = value
                block.keyframe_insert("value", frame=scene_frame)
        block.value = 0.0
    for fcurves in versions.fcurve_collections(copy.data.shape_keys):
        for fcurve in fcurves:
            for key in fcurve.keyframe_points:
                key.interpolation = "LINEAR"
            retime.repeat_fcurve(fcurve, repeat)
