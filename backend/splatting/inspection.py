# SPDX-License-Identifier: GPL-3.0-or-later
"""A look at the inputs before any work: what cannot be used is refused, what is doubtful is told.

The tests of place carve a coarse visual hull and hold it against the silhouettes: cameras that do not belong to the
pictures (another order, scale, handedness, or axes) give a hull that explains them badly.
"""

import numpy as np
import torch

from backend.progress import Run, UserError
from backend.splatting.observations import Observations
from backend.splatting.sight import project
from backend.splatting.visual_hull import HALF_DIAGONAL, HALF_SIZE, INSIDE_ALPHA, carve, outlines
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.surface import SurfaceSamples

EMPTY_ALPHA = 5e-4  # mean of a picture; less than 8 pixels of 128 x 128 cannot be fitted
OPAQUE_ALPHA = 0.99  # mean of a picture from which it has no background
CUT_SHARE = 0.02  # of the pixels along the edge, from which the subject counts as cut
CELLS = 40  # of the carved hull, along each side
HULL_VIEWS = 12  # that are enough to carve it
MASK_PIXELS = 64  # longer side of the silhouettes that are compared
# Each pair: below the first refused, below the second doubtful. Right inputs (12 animated models) reach 0.75, 0.72,
# 1.00 and 0.95; orbits in reverse order, shifted by three views, or mirrored 0 to 0.9.
STATIC_AGREEMENT = 0.4, 0.7  # overlap of hull and silhouettes
FIRST_AGREEMENT = 0.15, 0.6  # the same with the moving orbit's first pictures, which parts may have left
SURFACE_INSIDE = 0.6, 0.95  # share of surface samples inside the silhouettes
SURFACE_SPAN = 0.4, 0.8  # of the silhouettes' bounding boxes, what the samples span
SURFACE_SAMPLES = 2_000  # that are tested
MOVE_CAMERAS = "move the cameras away or widen their angle"  # what helps where a camera took the pictures


def inspect(
    moving: Observations,
    static: Observations | None,
    surface: SurfaceSamples | None,
    run: Run,
    remedy: str = MOVE_CAMERAS,
    *,
    is_known: bool = False,
) -> tuple[Observations, Observations | None]:
    """The observations without empty pictures; doubts go to `run.note`.

    remedy: what its user can do about a subject that the pictures cut off.
    is_known: how the subject moves is told: what a moving picture cuts off is not guessed, where static ones show it.

    Raises:
        UserError: what there is cannot be constructed from.
    """
    for views, label in ((moving, "moving orbit"), (static, "static orbit")):
        if views is not None:
            _demand_usable(views, label)
    if len(np.unique(moving.cameras.times)) < 2:
        raise UserError(
            "orbit_without_time",
            "There is one picture only, so there is no motion to construct."
            if len(moving.images) == 1
            else "The pictures are all of the same time, so there is no motion to construct.",
            "Give a moving orbit, whose pictures have different times.",
        )
    comes = surface is not None and surface.pieces is not None  # so that it may not be there at some times
    moving, static = (
        views and _without_empty(views, label, run, comes)
        for views, label in ((moving, "moving orbit"), (static, "static orbit"))
    )
    if len(np.unique(moving.cameras.times)) < 2:
        raise UserError(
            "orbit_empty",
            "The pictures of the moving orbit show nothing except at one time: the others are transparent all over.",
            "Check that the object stays visible and near the middle during the whole motion.",
        )
    if not (is_known and static is not None):
        _note_cut(moving, "moving orbit", remedy, run)
    if static is not None:
        _note_cut(static, "static orbit", remedy, run)
    _check_places(moving, static, surface, run)
    return moving, static


def _demand_usable(views: Observations, label: str) -> None:
    count = len(views.images)
    try:
        views.cameras.check(f"The {label}")
    except BadFileError as error:
        raise UserError("orbit_cameras", str(error), "Render or export the orbit again.") from error
    if count != len(views.cameras.times):
        raise UserError(
            "orbit_cameras",
            f"The {label} has {count} pictures but {len(views.cameras.times)} cameras.",
            "Give one camera for each picture, in the same order.",
        )
    height, width = views.images.shape[1:3]
    if (width, height) != (views.cameras.width, views.cameras.height):
        raise UserError(
            "orbit_cameras",
            f"The pictures of the {label} have {width} x {height} pixels, "
            f"but its cameras are for {views.cameras.width} x {views.cameras.height}.",
            "Give the cameras' intrinsics in pixels of these very pictures.",
        )
    finite = torch.isfinite(views.images.sum(dim=(1, 2, 3)))  # of the sums: no second copy of all pictures
    if not finite.all():
        raise UserError(
            "orbit_not_finite",
            f"Pictures of the {label} hold numbers that are not finite ({_listed(~finite.numpy())}).",
            "Render them again.",
        )
    if bool((views.images[..., 3].mean(dim=(1, 2)) > OPAQUE_ALPHA).all()):
        raise UserError(
            "orbit_opaque",
            f"The pictures of the {label} have no transparent background, so the subject cannot be told from it.",
            "Render with a transparent film, or remove the background.",
        )


def _without_empty(views: Observations, label: str, run: Run, expected: bool) -> Observations:
    empty = views.images[..., 3].mean(dim=(1, 2)).numpy() < EMPTY_ALPHA
    if empty.all():
        raise UserError(
            "orbit_empty",
            f"The pictures of the {label} show nothing: they are transparent all over.",
            "Check that the object is visible in renders and stands where the cameras look.",
        )
    if not empty.any():
        return views
    if not expected:
        listed = _listed(empty)
        run.note(f"{empty.sum()} of {len(empty)} pictures of the {label} show nothing and were left out ({listed}).")
    return views.subset(~empty)


def _note_cut(views: Observations, label: str, remedy: str, run: Run) -> None:
    inside = views.images[..., 3] > INSIDE_ALPHA
    edges = torch.cat([inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]], dim=1).float().mean(dim=1)
    cut = edges.numpy() > CUT_SHARE
    if cut.any():
        run.note(
            f"In {cut.sum()} of {len(cut)} pictures of the {label} the subject is cut off by the edge "
            f"({_listed(cut)}). What lies outside can only be guessed: {remedy}."
        )


def _check_places(moving: Observations, static: Observations | None, surface: SurfaceSamples | None, run: Run) -> None:
    """Hold cameras, surface and time 0 against each other."""
    moment = (static or moving).cameras.times[0 if static else moving.cameras.times.argmin()]
    static = static and static.subset(static.cameras.times == moment)  # there may be some of other times
    first = moving.subset(np.abs(moving.cameras.times - moment) == np.abs(moving.cameras.times - moment).min())
    reference = static or first
    _demand_in_sight(moving, "moving orbit")
    if static is not None:
        _demand_in_sight(static, "static orbit")
    points = _surface_points(surface, moment)
    if len(points):
        inside, span = _inside_and_span(points, reference)
        hint = "Check that cameras, pictures and surface are of the same object at the same moment and scale."
        outside = f"Only {inside:.0%} of the surface points lie inside the outlines of the pictures"
        _judge(inside, SURFACE_INSIDE, "surface_mismatch", outside, hint, run)
        small = f"The surface points fill only {span:.0%} of the outlines' extent in the pictures"
        _judge(span, SURFACE_SPAN, "surface_mismatch", small, hint, run)
    if static is None or len(static.images) < 3:
        return  # pictures of different moments have no hull in common that could judge them
    hull = _hull(static)
    agreement = _overlap(hull, static)
    if len(points) and agreement < STATIC_AGREEMENT[1]:
        return  # many small bits have no hull, and their surface has been held against the pictures
    _judge(
        agreement,
        STATIC_AGREEMENT,
        "orbit_inconsistent",
        "The pictures of the static orbit do not fit together: what is inside all outlines explains only "
        f"{agreement:.0%} of them",
        "Check that the cameras belong to these pictures (order, axes, scale) and that the subject keeps still.",
        run,
    )
    if np.abs(moving.cameras.times - moment).min() < 0.5 / len(np.unique(moving.cameras.times)):
        agreement = _overlap(hull, first)
        _judge(
            agreement,
            FIRST_AGREEMENT,
            "static_mismatch",
            "The static orbit and the moving orbit's picture of that time do not show the same: "
            f"they overlap by {agreement:.0%}",
            "Give a static orbit of the very moment that its cameras tell, with cameras of the same scale.",
            run,
        )


def _surface_points(surface: SurfaceSamples | None, moment: float) -> np.ndarray:  # [M, 3]
    """Some of them, at the time of the pictures against which they are held."""
    if surface is None:
        return np.zeros((0, 3))
    points = surface.points
    if surface.pieces is not None:
        points, _ = surface.pieces.at(round(float(moment) * (int(surface.pieces.times) - 1)))
    return points[:: max(len(points) // SURFACE_SAMPLES, 1)]


def _demand_in_sight(views: Observations, label: str) -> None:
    """The box of clip space, in which the subject stands, must be before the cameras and within the pictures."""
    corners = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 5)] * 3), axis=-1).reshape(-1, 3)
    missed = np.array(
        [
            not project(corners, viewmat, intrinsics, views.cameras.width, views.cameras.height)[2].any()
            for viewmat, intrinsics in zip(views.cameras.viewmats(), views.cameras.Ks, strict=True)
        ]
    )
    if missed.any():
        raise UserError(
            "orbit_cameras",
            f"{missed.sum()} of {len(missed)} cameras of the {label} do not look at the subject, which stands at the "
            f"origin and is 1 across ({_listed(missed)}).",
            "Give camera-to-world matrices with OpenGL axes (x right, y up, z backward), in units of the subject.",
        )


def _inside_and_span(points: np.ndarray, views: Observations) -> tuple[float, float]:
    """Of points [N, 3] that the pictures can show: share inside the silhouettes, extent beside theirs (means)."""
    cameras, silhouettes = views.cameras, outlines(views.images[..., 3].numpy())
    hits = seen = 0
    spans = []
    for silhouette, viewmat, intrinsics in zip(silhouettes, cameras.viewmats(), cameras.Ks, strict=True):
        pixels, _, inside = project(points, viewmat, intrinsics, cameras.width, cameras.height)
        hits += int((_widened(silhouette, 1)[pixels[:, 1], pixels[:, 0]] & inside).sum())
        seen += int(inside.sum())
        if inside.any() and silhouette.any():
            spans.append(np.ptp(pixels[inside], axis=0).max() / np.ptp(np.argwhere(silhouette), axis=0).max().clip(1))
    return hits / max(seen, 1), float(np.mean(spans or [0.0]))


def _hull(views: Observations) -> tuple[np.ndarray, float]:  # [M, 3] centers of cells, their size
    few = views.subset(np.unique(np.linspace(0, len(views.images) - 1, HULL_VIEWS).round().astype(int)))
    box = np.full(3, -HALF_SIZE), np.full(3, HALF_SIZE)
    size = 2 * HALF_SIZE / CELLS
    for reach in (HALF_DIAGONAL, 0.0):  # a spear may pass beside the centers of the first cells, which are large
        occupied = carve(few, np.ones(len(few.images)), 1.0, *box, CELLS, reach)
        cell = (box[1] - box[0]) / CELLS
        filled = np.argwhere(occupied)
        points, size = box[0] + (filled + 0.5) * cell, float(cell.max())
        if not len(filled):
            break
        box = box[0] + (filled.min(axis=0) - 1) * cell, box[0] + (filled.max(axis=0) + 2) * cell
    return points, size


def _overlap(hull: tuple[np.ndarray, float], views: Observations) -> float:
    """Mean intersection over union of the hull's outlines and the pictures', both coarse."""
    points, size = hull
    cameras, images = views.cameras, views.images[..., 3]
    share = min(MASK_PIXELS / max(cameras.width, cameras.height), 1.0)
    width, height = max(round(cameras.width * share), 1), max(round(cameras.height * share), 1)
    masks = outlines(torch.nn.functional.interpolate(images[:, None], (height, width), mode="area")[:, 0].numpy())
    scale = np.diag([width / cameras.width, height / cameras.height, 1.0])
    overlaps = []
    for mask, viewmat, intrinsics in zip(masks, cameras.viewmats(), cameras.Ks, strict=True):
        pixels, depth, inside = project(points, viewmat, scale @ intrinsics, width, height)
        drawn = np.zeros_like(mask)
        drawn[pixels[inside, 1], pixels[inside, 0]] = True
        if inside.any():
            drawn = _widened(drawn, int(0.5 * size * (scale @ intrinsics)[0, 0] / np.median(depth[inside])))
        overlaps.append((drawn & mask).sum() / max((drawn | mask).sum(), 1))
    return float(np.mean(overlaps))


def _widened(mask: np.ndarray, pixels: int) -> np.ndarray:  # [H, W] bool
    tensor = torch.from_numpy(mask)[None, None].float()
    return torch.nn.functional.max_pool2d(tensor, 2 * pixels + 1, 1, pixels)[0, 0].numpy() > 0


def _judge(value: float, limits: tuple[float, float], code: str, sentence: str, hint: str, run: Run) -> None:
    refused, doubtful = limits
    if value < refused:
        raise UserError(code, f"{sentence}.", hint)
    if value < doubtful:
        run.note(f"{sentence}. {hint}")


def _listed(chosen: np.ndarray) -> str:  # [V] bool
    """`pictures 0, 3, 4 ...`, a few."""
    numbers = np.flatnonzero(chosen)
    text = ", ".join(str(number) for number in numbers[:5])
    return f"{'picture' if len(numbers) == 1 else 'pictures'} {text}{' ...' if len(numbers) > 5 else ''}"
