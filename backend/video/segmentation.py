# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the one subject of a video before a background that is plain, shaded, or filmed from a tripod.

The background is learned where the subject is least: along the pictures' border (a smooth surface of color, or a few
colors), and then, where the camera stands still, at each pixel while the subject is elsewhere. What differs from it is
the subject, made smooth by the convex form of a minimal cut (Chan, Esedoglu and Nikolova 2006; solved as by Chambolle
and Pock 2011), and followed from frame to frame as one piece. It is no matting network, and says what it is unsure of.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from backend.progress import UserError
from blender_addon.contract.color import srgb_to_linear

SIDE = 240  # pixels of the longer side on which the subject is looked for
BORDER_SHARE = 0.03  # of the shorter side
NOISE = 1.5  # CIELAB units that any background may vary
SMOOTH_RESIDUAL = 8.0  # CIELAB units; a border that fits a smooth surface so well is a plain or shaded background
STILL_RESIDUAL = 6.0  # CIELAB units; a border that changes less over time is filmed by a camera that stands still
DISTANCE = 3.5  # standard deviations from which on a color is not the background's
FOREIGN = 1.4 * DISTANCE  # a color that the background does not have anywhere
NORM_MEDIAN = 1.4  # of the length of a normal vector in three dimensions (1.54), and a little reserve
SMOOTHNESS = 1.2  # weight of the outline's length against the colors
TINY_HOLE = 0.006  # of the subject's area: spots of the background's color, such as the white of an eye
PIECE = 0.04  # of the main piece's area that another piece needs to belong to the subject
MIN_AREA, MAX_AREA = 0.002, 0.9  # of the picture
MIN_CONTRAST = 5.0  # standard deviations of the background; with less the outline is guesswork
FLICKER, LEAP = 1.5, 3.0  # change of the area for one frame, and from one frame to the next, that no motion explains

UNTRUSTED_HINT = (
    "Use a video with transparency, or one of the whole subject before a plain background of another color."
)


@dataclass(frozen=True)
class Segmentation:
    """Where the subject is, coarsely, and what is known about the background."""

    masks: np.ndarray  # [T, h, w] bool, longer side at most SIDE
    is_still: bool  # the background does not move
    noise: float  # of the background, standard deviation in 0..255
    method: str  # how it was found, for the provenance
    notes: list[str]


def find_subject(frames: np.ndarray, tick: Callable[[], None] = lambda: None) -> Segmentation:
    """The subject of opaque frames [T, H, W, 3 or 4] uint8; `tick` is called now and then and may raise.

    Raises:
        UserError: no subject can be told from the background.
    """
    small = np.stack([_small(frame[..., :3]) for frame in frames])
    lab = _lab(small)
    border = _border(lab.shape[1:3])
    residual = _surface_residual(lab, border)
    noise = _noise(lab)
    is_smooth = bool(np.percentile(residual[:, border], 75) < max(SMOOTH_RESIDUAL, 2.5 * noise))
    resting = np.median(lab, axis=0)
    drift = np.linalg.norm(lab - resting, axis=-1)
    is_still = bool(np.percentile(drift[:, border], 75) < max(STILL_RESIDUAL, 3 * noise))
    tick()
    if is_smooth:
        spread = max(noise, float(np.median(residual[:, border])) / NORM_MEDIAN)
        distance = residual / (np.sqrt(3) * spread)
    else:
        colors = _Colors(lab[:, border].reshape(-1, 3), noise)
        distance = foreign = colors.distance(lab)
        if is_still:  # what differs from how the pixel mostly is, where that may be background ...
            changed = drift / (np.sqrt(3) * max(noise, float(np.median(drift[:, border])) / NORM_MEDIAN))
            usual = colors.distance(resting)
            is_change = (usual < DISTANCE) & (foreign > usual - 0.3)  # ... rather than the subject, which now is away
            distance = np.maximum(distance, np.where(is_change, changed, 0))
    edges = _edge_weights(lab)
    masks = _followed(_cut(_odds(distance), edges, tick))
    tick()
    if is_still and not is_smooth:  # what lies behind the subject shows while it is elsewhere
        for _ in range(2):
            plate, spread, known = _plate(lab, masks, noise)
            behind = np.linalg.norm(lab - plate, axis=-1) / (np.sqrt(3) * spread)
            empty = colors.distance(plate)
            known &= empty < DISTANCE  # else it is a part of the subject that stays in its place
            behind = np.where(foreign > empty - 0.3, behind, 0)
            distance = np.where(known, np.maximum(behind, np.where(foreign > FOREIGN, foreign, 0)), distance)
            masks = _followed(_cut(_odds(distance), edges, tick))
    masks = _without_tiny_holes(masks)
    notes = _judged(masks, distance, is_smooth, is_still)
    method = "background surface" if is_smooth else "background plate" if is_still else "background colors"
    flicker = np.abs(np.diff(small[:, border].astype(np.float32), axis=0))
    return Segmentation(masks, is_still, max(float(np.median(flicker)), 1.0), method, notes)


def judge_outline(masks: np.ndarray) -> list[str]:
    """What is suspicious about a subject's outline, whoever found it: sentences.

    Raises:
        UserError: it cannot be a subject.
    """
    areas = masks.mean(axis=(1, 2))
    if np.median(areas) < MIN_AREA:
        raise UserError("no_subject", "No subject can be told from the background of the video.", UNTRUSTED_HINT)
    sides = {
        "left": masks[:, :, 0].mean(axis=1),
        "right": masks[:, :, -1].mean(axis=1),
        "upper": masks[:, 0].mean(axis=1),
        "lower": masks[:, -1].mean(axis=1),
    }
    touched = [name for name, share in sides.items() if (share > 0.02).mean() > 0.25]
    if np.median(areas) > MAX_AREA or len(touched) == 4:
        sentence = "The subject of the video reaches the border on all sides: it cannot be told from the background."
        raise UserError("no_subject", sentence, UNTRUSTED_HINT)
    if not masks[0].any():
        sentence = "The first frame of the video shows no subject, and all that follows is built on it."
        raise UserError("no_subject", sentence, "Choose a later start, at which the subject is in the picture.")
    notes = []
    if touched:
        text = " and ".join(touched)
        notes.append(f"The subject reaches the {text} border of the video: what lies beyond is missing.")
    if (masks.reshape(len(masks), -1).sum(axis=1) == 0).any():
        notes.append("The subject is not to be seen in some frames: choose a range that shows it throughout.")
    sizes = np.log(np.maximum(areas, 1e-6))
    odd = np.abs(sizes[1:-1] - np.median([sizes[:-2], sizes[1:-1], sizes[2:]], axis=0))
    if odd.max(initial=0) > np.log(FLICKER) or np.abs(np.diff(sizes)).max(initial=0) > np.log(LEAP):
        notes.append("The subject's outline jumps between frames: look at the cut-out before you trust the result.")
    return notes


def _judged(masks: np.ndarray, distance: np.ndarray, is_smooth: bool, is_still: bool) -> list[str]:
    notes = judge_outline(masks)
    inside = distance[masks]
    contrast = float(np.percentile(inside, 25)) if len(inside) else 0.0
    if contrast < MIN_CONTRAST:
        notes.append("The subject's colors are close to the background's: parts of it may be missing.")
    if not is_smooth:
        where = "is not plain" if is_still else "is not plain and moves"
        notes.append(f"The background of the video {where}: parts of it may stick to the subject.")
    return notes


def _noise(lab: np.ndarray) -> float:
    """Standard deviation of the noise of single pixels in CIELAB units (after Immerkaer 1996, with a median)."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    values = [np.median(np.abs(ndimage.convolve(frame[..., k], kernel))) for frame in lab[:8] for k in range(3)]
    return max(NOISE, 1.4826 * float(np.mean(values)) / 6)


# --- the background --------------------------------------------------------------------------------------------------


def _surface_residual(lab: np.ndarray, border: np.ndarray) -> np.ndarray:  # [T, h, w]
    """How far the color of each pixel is from a quadratic surface of color through the border.

    Least squares, repeated without what lies far off: the subject may touch the border.
    """
    height, width = border.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    basis = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
    samples = np.median(lab, axis=0)[border]
    used = np.ones(len(samples), bool)
    for _ in range(5):
        solution, *_ = np.linalg.lstsq(basis[border][used], samples[used], rcond=None)
        off = np.linalg.norm(samples - basis[border] @ solution, axis=-1)
        used = off <= max(2.5 * float(np.median(off)), 2.0)
    surface = (basis @ solution).astype(np.float32)
    return np.linalg.norm(lab - surface, axis=-1)


class _Colors:
    """A few colors, each with its spread: those of the border of all frames."""

    def __init__(self, samples: np.ndarray, noise: float, count: int = 10) -> None:
        generator = np.random.default_rng(0)
        samples = samples[generator.permutation(len(samples))[:6000]].astype(np.float64)
        _, labels = kmeans2(samples, count, minit="++", seed=generator)
        groups = [samples[labels == label] for label in range(count)]
        groups = [group for group in groups if len(group) > 0.02 * len(samples)]  # fewer: the subject at the border
        self.centers = np.stack([group.mean(axis=0) for group in groups])
        regular = noise**2 * np.eye(3)
        self.whitening = [np.linalg.cholesky(np.linalg.inv(np.cov(group.T) + regular)) for group in groups]

        # The spread within a group is no bell curve: what most of the border keeps to decides what is far.
        self.unit = 1.0
        self.unit = max(1.0, 1.6 * float(np.percentile(self.distance(samples), 95)) / DISTANCE)

    def distance(self, lab: np.ndarray) -> np.ndarray:  # [...]
        """Standard deviations to the nearest of the colors; DISTANCE is beyond nearly all of the border."""
        nearest = np.full(lab.shape[:-1], np.inf, np.float32)
        for center, whitening in zip(self.centers, self.whitening, strict=True):
            away = np.linalg.norm((lab - center) @ whitening, axis=-1) / np.sqrt(3)
            nearest = np.minimum(nearest, away.astype(np.float32))
        return nearest / self.unit


def _plate(lab: np.ndarray, masks: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The empty background [h, w, 3], its spread over time [h, w], and where it is known [h, w]."""
    free = ~np.stack([ndimage.binary_dilation(mask, iterations=3) for mask in masks])
    count = free.sum(axis=0)
    known = count >= min(len(masks), max(2, len(masks) // 6))
    hidden = np.where(free[..., None], lab, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # pixels that are never free
        plate = np.nanmedian(hidden, axis=0)
        spread = 1.4826 * np.nanmedian(np.linalg.norm(hidden - plate, axis=-1), axis=0) / np.sqrt(3)
    plate, spread = np.nan_to_num(plate), np.maximum(np.nan_to_num(spread), noise)
    return plate.astype(np.float32), spread.astype(np.float32), known


# --- the cut ---------------------------------------------------------------------------------------------------------


def _odds(distance: np.ndarray) -> np.ndarray:
    """How much each pixel speaks for the subject, -3 to 3."""
    return ((distance - DISTANCE) / 0.5 / DISTANCE).clip(-1, 1).astype(np.float32) * 3


def _edge_weights(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an outline costs between neighbours in x and y: less where the colors differ. Each [T, h, w]."""
    costs = []
    for axis in (2, 1):
        step = np.linalg.norm(np.diff(lab, axis=axis), axis=-1)
        scale = 2 * np.mean(step**2) + 1e-6
        padding = [(0, 0)] * 3
        padding[axis] = (0, 1)
        costs.append(np.pad(SMOOTHNESS * (0.15 + 0.85 * np.exp(-(step**2) / scale)), padding).astype(np.float32))
    return costs[0], costs[1]


def _cut(odds: np.ndarray, edges: tuple[np.ndarray, np.ndarray], tick: Callable[[], None]) -> np.ndarray:
    """[T, h, w] bool: the u in [0, 1] that minimises the sum of edges_x |du/dx| + edges_y |du/dy| - odds u.

    It is cut at 1/2, which keeps it minimal: the same as a graph cut with four neighbours.
    """
    out = np.zeros(odds.shape, bool)
    for t in range(len(odds)):  # frame by frame: that stays in the cache
        u = (odds[t] > 0).astype(np.float32)
        over, p, q = u.copy(), np.zeros_like(u), np.zeros_like(u)
        wx, wy, step = edges[0][t], edges[1][t], 0.35
        for _ in range(100):
            p[:, :-1] += step * (over[:, 1:] - over[:, :-1])
            q[:-1] += step * (over[1:] - over[:-1])
            np.clip(p, -wx, wx, out=p)
            np.clip(q, -wy, wy, out=q)
            divergence = p + q
            divergence[:, 1:] -= p[:, :-1]
            divergence[1:] -= q[:-1]
            former, u = u, np.clip(u + step * (divergence + odds[t]), 0, 1)
            over = 2 * u - former
        out[t] = u > 0.5
        tick()
    return out


# --- one subject -----------------------------------------------------------------------------------------------------


def _followed(masks: np.ndarray) -> np.ndarray:
    """Of each frame the piece that continues the largest one, and the pieces close to it that are large enough."""
    areas = masks.reshape(len(masks), -1).sum(axis=1)
    best = max(range(len(masks)), key=lambda t: _largest_area(masks[t]))
    if not areas[best]:
        return masks
    out = np.zeros_like(masks)
    for order in (range(best, len(masks)), range(best, -1, -1)):
        former: np.ndarray | None = None
        for t in order:
            out[t] = _subject_of(masks[t], former)
            former = out[t] if out[t].any() else former
    return out


def _largest_area(mask: np.ndarray) -> int:
    labels, count = ndimage.label(mask)
    return int(np.bincount(labels.ravel())[1:].max()) if count else 0


def _subject_of(mask: np.ndarray, former: np.ndarray | None) -> np.ndarray:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return mask
    numbers = np.arange(1, count + 1)
    areas = ndimage.sum_labels(mask, labels, numbers)
    score = areas.copy()
    if former is not None:
        size = np.sqrt(former.sum())
        here = np.array(ndimage.center_of_mass(former))
        away = np.linalg.norm(np.array(ndimage.center_of_mass(mask, labels, numbers)) - here, axis=-1)
        score = areas * np.exp(-away / size)
    main = int(score.argmax())
    near = ndimage.binary_dilation(labels == main + 1, iterations=max(2, round(0.06 * np.sqrt(areas[main]))))
    close = np.unique(labels[near])
    belongs = [n for n in close if n and (n == main + 1 or areas[n - 1] > PIECE * areas[main])]
    return np.isin(labels, belongs)


def _without_tiny_holes(masks: np.ndarray) -> np.ndarray:
    out = masks.copy()
    for mask in out:
        holes, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
        if count:
            areas = np.bincount(holes.ravel())
            tiny = np.flatnonzero(areas <= TINY_HOLE * mask.sum())
            mask |= np.isin(holes, tiny[tiny > 0])
    return out


# --- pictures --------------------------------------------------------------------------------------------------------


def _small(rgb: np.ndarray) -> np.ndarray:
    height, width = rgb.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(round(width * scale), 8), max(round(height * scale), 8))
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.BOX))


def _border(shape: tuple[int, int]) -> np.ndarray:  # [h, w] bool
    width = max(2, round(BORDER_SHARE * min(shape)))
    border = np.ones(shape, bool)
    border[width:-width, width:-width] = False
    return border


def _lab(rgb: np.ndarray) -> np.ndarray:  # [..., 3] uint8 sRGB -> float32 CIELAB, D65
    light = srgb_to_linear(rgb.astype(np.float32) / 255)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    xyz = light @ (to_xyz / to_xyz.sum(axis=1, keepdims=True)).T
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
