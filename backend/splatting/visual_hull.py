# SPDX-License-Identifier: GPL-3.0-or-later
"""Visual hull: the surface of all that no silhouette rules out (Laurentini 1994)."""

import numpy as np
from scipy import ndimage

from backend.progress import UserError
from backend.splatting.observations import Observations
from backend.splatting.scene import pixel_size
from backend.splatting.sight import project

HALF_SIZE = 1.0  # of the box that is searched; the subject's own longest side is 1
COARSE_CELLS, FINE_CELLS = 40, 64  # along each side
# Of a picture's largest alpha, from which a pixel counts as subject. More would cut off fins that fill no whole pixel;
# sheets that are seen edge-on have none that is whole.
INSIDE_ALPHA = 0.2
HALF_DIAGONAL = 0.87  # of a cell; a tail may pass beside the centres of the coarse cells, and must not be lost there
SPECK = 0.005  # of all cells of the hull; smaller pieces are leftovers between the outlines


def visual_hull(
    views: Observations,
    view_weights: np.ndarray,  # [V]
    agreement: float,
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # [count, 3] x 2 float32
    """Points on the hull's surface, and outward normals.

    A place belongs to the subject where views that hold `agreement` (0..1) of the weight of all that can see it do so.
    1 is right for a subject that keeps still; less leaves room for parts that moved between views.

    Raises:
        UserError: the silhouettes have no place in common.
    """
    low, high = np.full(3, -HALF_SIZE), np.full(3, HALF_SIZE)
    reach = HALF_DIAGONAL if agreement == 1 else 0.0  # what moves is wide enough as it is
    occupied = carve(views, view_weights, agreement, low, high, COARSE_CELLS, reach)
    if occupied.any():
        # The same again in the box that it fills, one cell wider on all sides.
        cell = (high - low) / COARSE_CELLS
        filled = np.argwhere(occupied)
        low, high = low + (filled.min(axis=0) - 1) * cell, low + (filled.max(axis=0) + 2) * cell
        occupied = _without_specks(carve(views, view_weights, agreement, low, high, FINE_CELLS))
    if not occupied.any():
        raise UserError(
            "orbit_inconsistent",
            "The pictures of the orbit do not fit together: no place in space is inside all the outlines.",
            "Check that the cameras belong to these pictures and that the subject stays near the centre.",
        )
    return _surface(occupied, low, high, count, rng)


def carve(
    views: Observations,
    view_weights: np.ndarray,
    agreement: float,
    low: np.ndarray,
    high: np.ndarray,
    cells: int,
    reach: float = 0.0,
) -> np.ndarray:  # [cells, cells, cells] bool
    """Which cells of a grid in the box from `low` [3] to `high` [3] belong to the subject (see `visual_hull`).

    A cell does where its centre does, or, with `reach`, what is so many cells beside it in the pictures.
    """
    centres = [low[axis] + (np.arange(cells) + 0.5) / cells * (high - low)[axis] for axis in range(3)]
    points = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 3)
    silhouettes = outlines(views.images[..., 3].numpy())
    height, width = silhouettes.shape[1:]
    pixels_per_cell = float(np.mean(high - low)) / cells / pixel_size(views)
    if radius := round(reach * pixels_per_cell):
        silhouettes = ndimage.maximum_filter(silhouettes, (1, 2 * radius + 1, 2 * radius + 1))
    # Cells that the views so far rule out, whatever the others say, are left out from there on: most of them, soon.
    left = np.arange(len(points))
    inside_weight, seen_weight = np.zeros(len(points)), np.zeros(len(points))
    missable = (1 - agreement + 1e-6) * view_weights.sum()
    for silhouette, viewmat, intrinsics, weight in zip(
        silhouettes, views.cameras.viewmats(), views.cameras.Ks, view_weights, strict=True
    ):
        pixels, _, inside = project(points[left], viewmat, intrinsics, width, height)
        seen_weight += weight * inside
        inside_weight += weight * (inside & silhouette[pixels[:, 1], pixels[:, 0]])
        possible = seen_weight - inside_weight <= missable
        left, inside_weight, seen_weight = left[possible], inside_weight[possible], seen_weight[possible]
    # A place that few views can see is not ruled out by the others, and would stay for want of evidence.
    enough = seen_weight > 0.5 * view_weights.sum()
    occupied = np.zeros(len(points), bool)
    occupied[left] = enough & (inside_weight >= (agreement - 1e-6) * seen_weight)
    return occupied.reshape(cells, cells, cells)


def outlines(alphas: np.ndarray) -> np.ndarray:  # [V, H, W] 0..1 -> [V, H, W] bool
    """Which pixels count as subject; none of an empty picture."""
    return alphas > INSIDE_ALPHA * alphas.max(axis=(1, 2), keepdims=True)


def _without_specks(occupied: np.ndarray) -> np.ndarray:  # [cells, cells, cells] bool
    pieces, _ = ndimage.label(occupied, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    keep = sizes >= SPECK * occupied.sum()
    keep[0] = False
    return keep[pieces]


def _surface(
    occupied: np.ndarray, low: np.ndarray, high: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    solid = np.pad(occupied, 1)
    inner = np.ones_like(occupied)
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(solid, step, axis)[1:-1, 1:-1, 1:-1]
    shell = np.argwhere(occupied & ~inner)
    # Outward is against the gradient of the solid, smoothed a little as cells know only 26 directions.
    smooth = solid.astype(np.float32)
    for axis in range(3):
        smooth = (np.roll(smooth, 1, axis) + 2 * smooth + np.roll(smooth, -1, axis)) / 4
    gradient = np.stack(np.gradient(smooth), axis=-1)[1:-1, 1:-1, 1:-1]
    chosen = shell[rng.choice(len(shell), count, replace=len(shell) < count)]
    cell = (high - low) / np.array(occupied.shape)
    points = low + (chosen + rng.random((count, 3))) * cell
    normals = -gradient[tuple(chosen.T)] / cell
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(lengths > 1e-6, normals / np.maximum(lengths, 1e-6), [0.0, 0.0, 1.0])
    return points.astype(np.float32), normals.astype(np.float32)
