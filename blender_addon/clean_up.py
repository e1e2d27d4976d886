# SPDX-License-Identifier: GPL-3.0-or-later
"""Cleaning up Gaussians for all frames at once: what is stray, faint, too large, outside a volume, or too many.

What goes is chosen on a clip, as a mask over its Gaussians (True: goes). A choice is then carried out on the object:
its points are removed, with all their frames, or selected in Edit Mode.
"""

import re
from collections.abc import Callable

import bmesh
import bpy
import numpy as np
from mathutils import Matrix

from . import nearness, splat_object
from .contract import rotations
from .contract.clip import Clip, Gaussians

_JUDGED_FRAMES = 24
_SPACING_SAMPLES = 500
_FRAMES_PER_SPACING = 4  # it changes slowly, and is what takes longest
_NEIGHBORS = 4
_GRID = 1 << 20  # cells along each side: a cell's number fits into 60 bits, and far floaters leave enough for the rest
_VISIBLE_LENGTH = 4.0  # of a Gaussian, in standard deviations: from -2 to 2


class CleanUpError(ValueError):
    """Nothing was cleaned up; the message says why and what to do."""


# What goes


def floaters(clip: Clip, distance: float = 3.0, clump: float = 0.01, share_of_time: float = 0.5) -> np.ndarray:  # [N]
    """Gaussians that are apart from all others, alone or as a small clump.

    Gaussians hang together where less than about `distance` times the usual spacing is between them, or between
    places within one standard deviation of large ones.

    Args:
        clip: N Gaussians.
        distance: in multiples of the usual distance between neighbors at that moment.
        clump: what hangs together but has less than this share of the whole, weighted by opacity, is apart.
        share_of_time: of the frames in which a Gaussian is visible, the share in which it has to be apart.
    """
    apart, seen = np.zeros((2, clip.count))
    spacing = 0.0
    for number, t in enumerate(_judged_frames(clip)):
        moment = clip.frame(t)
        visible = np.flatnonzero(moment.there)
        if len(visible) > _NEIGHBORS:
            moment = moment.picked(visible)
            if number % _FRAMES_PER_SPACING == 0 or not spacing:
                spacing = _spacing(moment.means)
            seen[visible] += 1
            apart[visible] += _is_apart(moment, distance * spacing, clump)
    return (apart > 0) & (apart >= share_of_time * seen)


def faint(clip: Clip, opacity: float) -> np.ndarray:  # [N]
    """Gaussians that are never as opaque as `opacity`, 0 to 1."""
    return np.max([clip.frame(t).opacities for t in range(clip.frame_count)], axis=0) < opacity


def oversized(clip: Clip, size: float) -> np.ndarray:  # [N]
    """Gaussians that are longer than `size` times the whole at some time at which they are there.

    A Gaussian is as long as four standard deviations, the whole as the longest side of a box round 98 % of the
    Gaussians, where it is largest.
    """
    longest, whole = np.zeros(clip.count), 0.0
    for t in range(clip.frame_count):
        moment = clip.frame(t)
        if not moment.there.any():
            continue
        low, high = np.percentile(moment.means[moment.there], (1, 99), axis=0)
        whole = max(whole, float((high - low).max()))
        longest = np.maximum(longest, np.where(moment.there, moment.scales.max(axis=1), 0))
    return _VISIBLE_LENGTH * longest > size * whole


def outside(
    splats: bpy.types.Object,
    clip: Clip,
    volume: bpy.types.Object,
    is_inside: Callable[[np.ndarray], np.ndarray],
    frames: str = "ANY",
    *,
    invert: bool = False,
) -> np.ndarray:  # [N]
    """Gaussians that do not lie inside an object, where it stands at the scene's current frame; with `invert`, those
    that do. Where a Gaussian is while it is not there does not count; one that is never there stays.

    Args:
        splats: the object that the clip was read from; gives the place and the current frame.
        clip: N Gaussians.
        volume: what to crop to.
        is_inside: tells which places [P, 3] in the volume's own space lie inside (see `enclosure.inside_test`).
        frames: when a Gaussian has to lie there to count as inside: at `ANY` frame, at `ALL`, or at the `CURRENT` one.
        invert: choose what lies inside.

    Raises:
        ValueError: the volume's scale is 0; nothing plays the Gaussians (`CURRENT` alone).
    """
    to_volume = np.array(_inverse(volume) @ splats.matrix_world)
    times = [splat_object.shown_frame(splats)] if frames == "CURRENT" else range(clip.frame_count)
    inside, seen = np.full(clip.count, frames == "ALL"), np.zeros(clip.count, bool)
    for t in times:
        moment = clip.frame(t)
        seen |= moment.there
        undecided = np.flatnonzero(moment.there & (inside == (frames == "ALL")))
        places = moment.means[undecided] @ to_volume[:3, :3].T + to_volume[:3, 3]
        inside[undecided] = is_inside(places)
    return seen & (inside if invert else ~inside)


def too_many(clip: Clip, share: float) -> np.ndarray:  # [N]
    """Gaussians that go where only a share of them is to stay.

    Of each few that follow each other on a path through space, the one stays that is most to be seen. So each part
    keeps its due, and none is left bare. What comes and goes at the same times has a path of its own.

    Args:
        clip: N Gaussians.
        share: of the Gaussians that is to stay, 0 to 1; at least one stays.
    """
    count = min(max(round(share * clip.count), 1), clip.count)
    path = nearness.path_through(clip.frame(clip.frame_count // 2).means)
    comes, goes = clip.there.argmax(axis=0), clip.there[::-1].argmax(axis=0)
    path = path[np.lexsort((goes[path], comes[path]))]
    few = np.arange(clip.count) * count // clip.count  # number of the few that each step of the path belongs to
    opacities, areas = _prominence(clip)
    order = np.lexsort((-(opacities * np.sqrt(areas))[path], few))
    starts = np.searchsorted(few, np.arange(count))
    gone = np.ones(clip.count, bool)
    gone[path[order[starts]]] = False
    return gone


def growth(clip: Clip, gone: np.ndarray, fill: float = 0.7) -> float:
    """Factor by which those that stay have to become wider, so that the surface stays closed.

    Args:
        clip: N Gaussians.
        gone: [N] bool, those that go.
        fill: how much is made up for. 1 gives back the whole area that was lost, which is more than the eye misses,
            as Gaussians overlap: at 0.7 the surface is closed and the picture close to the one before.
    """
    opacities, areas = _prominence(clip)
    covered = opacities * areas
    left = covered[~gone].sum()
    return float(covered.sum() / left) ** (fill / 2) if left > 0 else 1.0


# Carrying it out


def demand_editable(sharing: list[bpy.types.Object]) -> None:
    """Refuse what must not be changed: Gaussians of another file, and those that other objects show as well.

    Args:
        sharing: objects that have one mesh and are to be changed together.

    Raises:
        CleanUpError: the mesh is linked, or more objects have it than these.
    """
    splats, mesh = sharing[0], sharing[0].data
    if splats.library is not None:
        raise CleanUpError(
            f"{splats.name} is linked from another file. "
            "Make it local first: Object > Relations > Make Local > Selected Objects and Data."
        )
    if mesh.library is not None:
        raise CleanUpError(
            f"The Gaussians of {splats.name} are linked from another file. "
            "Give it its own first: Object > Relations > Make Single User > Object & Data."
        )
    others = [obj.name for obj in bpy.data.objects if obj.data == mesh and obj not in sharing]
    if others:
        shown = others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more"
        raise CleanUpError(
            f"{splats.name} shares its Gaussians with {shown}. Select these as well to change all of them, "
            "or give it its own first: Object > Relations > Make Single User > Object & Data."
        )


def remove(mesh: bpy.types.Mesh, gone: np.ndarray) -> None:
    """Remove points, with all their frames; all attributes of the others keep their exact values.

    Args:
        mesh: of Gaussians, not in Edit Mode.
        gone: [N] bool, points to remove.
    """
    if not gone.any():
        return
    points = bmesh.new()  # rather than new arrays: vertex groups and shape keys live on as well
    try:
        points.from_mesh(mesh)
        points.verts.ensure_lookup_table()
        bmesh.ops.delete(points, geom=[points.verts[i] for i in np.flatnonzero(gone).tolist()], context="VERTS")
        points.to_mesh(mesh)
    finally:
        points.free()
    mesh.update()


def select(splats: bpy.types.Object, chosen: np.ndarray) -> int:
    """Select points of an object in Edit Mode, and no others; hidden ones stay as they are. Returns how many.

    Args:
        splats: the object, in Edit Mode.
        chosen: [N] bool, points to select.
    """
    points = bmesh.from_edit_mesh(splats.data)
    points.select_mode = {"VERT"}  # loose points cannot be selected as edges or faces
    count = 0
    for point, is_chosen in zip(points.verts, chosen.tolist(), strict=True):
        point.select = is_chosen and not point.hide
        count += point.select
    points.select_history.clear()
    bmesh.update_edit_mesh(splats.data, loop_triangles=False, destructive=False)
    return count


def widen(mesh: bpy.types.Mesh, factor: float) -> None:
    """Make all Gaussians larger by a factor, at all frames, along their two longer axes: surfaces stay as thin.

    Args:
        mesh: of Gaussians, not in Edit Mode.
        factor: above 0.
    """
    columns = [column for column in mesh.attributes if re.fullmatch(r"lsc(\.\d+)?", column.name)]
    logs = np.empty((len(columns), len(mesh.vertices), 3), np.float32)
    for column, log in zip(columns, logs, strict=True):
        column.data.foreach_get("vector", log.reshape(-1))
    shortest = np.argmin(logs.mean(axis=0), axis=1)
    logs += np.where(np.arange(3) == shortest[:, None], 0, np.log(factor)).astype(np.float32)
    for column, log in zip(columns, logs, strict=True):
        column.data.foreach_set("vector", log.reshape(-1))
    mesh.update()


# Helpers


def _judged_frames(clip: Clip) -> list[int]:
    """All stored frames, or as many as are enough, evenly spread, with the first and the last."""
    count = min(clip.frame_count, _JUDGED_FRAMES)
    return np.linspace(0, clip.frame_count - 1, count).round().astype(int).tolist()


def _is_apart(moment: Gaussians, reach: float, clump: float) -> np.ndarray:  # [N]
    """Whether each Gaussian of a moment belongs to a clump of little weight. What is within reach hangs together."""
    count = len(moment.means)
    if reach <= 0:  # all at one place
        return np.zeros(count, bool)
    places, owners = _places(moment, reach)
    cells = np.floor((places - np.median(places, axis=0)) / reach)
    x, y, z = np.clip(cells + _GRID // 2, 1, _GRID - 2).astype(np.int64).T
    numbers, cell_of = np.unique((x * _GRID + y) * _GRID + z, return_inverse=True)
    links = [(cell_of[owners], cell_of)]
    for step in _half_of_the_neighbors():
        position = np.searchsorted(numbers, numbers + step)
        position[position == len(numbers)] = 0
        found = np.flatnonzero(numbers[position] == numbers + step)
        links.append((found, position[found]))
    clumps = _connected(len(numbers), *(np.concatenate(ends) for ends in zip(*links, strict=True)))[cell_of[:count]]
    weights = np.bincount(clumps, moment.opacities)
    return weights[clumps] < clump * weights.sum()


def _spacing(means: np.ndarray) -> float:
    """The usual distance between neighbors: the median over Gaussians of the mean over their nearest."""
    tree = nearness.tree_of(means)
    chosen = means[np.linspace(0, len(means) - 1, min(len(means), _SPACING_SAMPLES)).astype(int)]
    nearest = [[found[2] for found in tree.find_n(place, _NEIGHBORS + 1)] for place in chosen.tolist()]
    return float(np.median(np.sum(nearest, axis=1))) / _NEIGHBORS  # the nearest of all is the Gaussian itself


def _places(moment: Gaussians, reach: float) -> tuple[np.ndarray, np.ndarray]:  # [P, 3], [P]
    """Where Gaussians are, and whose places these are: the centers first, then six more for each that is large."""
    large = np.flatnonzero(moment.scales.max(axis=1) > reach)
    axes = rotations.to_matrix(moment.quats[large]) * moment.scales[large, None]  # columns: one standard deviation
    ends = np.concatenate([axes, -axes], axis=2).swapaxes(1, 2)  # [large, 6, 3]
    places = (moment.means[large, None] + ends).reshape(-1, 3)
    owners = np.concatenate([np.arange(len(moment.means)), np.repeat(large, 6)])
    return np.concatenate([moment.means, places]), owners


def _half_of_the_neighbors() -> list[int]:
    """Steps in cell numbers to 13 of the 26 cells around one; the others are met from the other side."""
    steps = [(x * _GRID + y) * _GRID + z for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
    return [step for step in steps if step > 0]


def _connected(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:  # [count]
    """Number of the component of each of `count` nodes, of a graph with an edge between each `a` and `b`."""
    labels = np.arange(count)
    while True:
        low = np.minimum(labels[a], labels[b])
        linked = labels.copy()
        for ends in (a, b):
            np.minimum.at(linked, labels[ends], low)
        while True:
            jumped = linked[linked]
            if np.array_equal(jumped, linked):
                break
            linked = jumped
        if np.array_equal(linked, labels):
            return labels
        labels = linked


def _inverse(volume: bpy.types.Object) -> Matrix:
    try:
        return volume.matrix_world.inverted()
    except ValueError as error:
        raise CleanUpError(f"{volume.name} has a scale of 0, so nothing lies inside it. Give it a size.") from error


def _prominence(clip: Clip) -> tuple[np.ndarray, np.ndarray]:  # [N], [N]
    """The highest opacity of each Gaussian, and how large it is seen from in front, in the mean over time."""
    moments = [clip.frame(t) for t in _judged_frames(clip)]
    opacities = np.max([moment.opacities for moment in moments], axis=0)
    areas = np.mean([np.prod(np.sort(moment.scales, axis=1)[:, 1:], axis=1) for moment in moments], axis=0)
    return opacities, areas
