# SPDX-License-Identifier: GPL-3.0-or-later
"""The clip: time-varying 3D Gaussians in one `.npz`, written by the backend, read by Blender with numpy alone.

All of it lives in clip space: Blender's axes (right-handed, Z up), the subject's bounding box centred on the
origin, its longest side 1. `to_object` leads from there to the source object's local space.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import rotations
from .arrays import BadFileError, demands, read_arrays, write_arrays

FORMAT = "kinesplat-clip"
VERSION = 1
MAX_GAUSSIANS = 5_000_000
MAX_FRAMES = 2_000
MAX_BASES = 4_096
BASES_PER_GAUSSIAN = 4
MIN_ALPHA = 1 / 255  # a Gaussian ends where it is fainter than this
COLOR_SPACES = ("srgb", "linear")


@dataclass(frozen=True)
class BasisMotion:
    """Motion as small rigid movements, blended per Gaussian (linear blend skinning).

    At frame t a Gaussian's mean is sum_k w_k (R_k(t) mean + translation_k(t)) over its four bases, its rotation the
    normalised sum_k w_k q_k(t) times its canonical rotation. Weights are at least 0 and sum to 1.
    """

    basis_quats: np.ndarray  # [T, B, 4] float32, wxyz, unit, continuous in sign over time
    basis_translations: np.ndarray  # [T, B, 3] float32, clip space
    basis_index: np.ndarray  # [N, 4] int32, 0 <= index < B
    basis_weights: np.ndarray  # [N, 4] float32


@dataclass(frozen=True)
class FrameMotion:
    """Motion as one position and rotation per Gaussian and frame: says anything, also what appears or vanishes."""

    frame_means: np.ndarray  # [T, N, 3] float32
    frame_quats: np.ndarray  # [T, N, 4] float32, wxyz, unit, continuous in sign over time
    frame_scales: np.ndarray | None = None  # [T, N, 3] float32, linear standard deviations
    frame_opacities: np.ndarray | None = None  # [T, N] float32, 0..1


@dataclass(frozen=True)
class Gaussians:
    """The Gaussians of one moment, or of several along a leading axis."""

    means: np.ndarray  # [..., N, 3] clip space
    quats: np.ndarray  # [..., N, 4] wxyz, unit
    scales: np.ndarray  # [..., N, 3] linear standard deviations, above 0
    opacities: np.ndarray  # [..., N] 0..1

    @property
    def there(self) -> np.ndarray:  # [..., N] bool
        """Which of them are to be seen at all: others have a place, and nothing is there."""
        return self.opacities >= MIN_ALPHA

    def picked(self, chosen: np.ndarray) -> "Gaussians":
        """Those of one moment that are `chosen`, a mask or indices."""
        return Gaussians(self.means[chosen], self.quats[chosen], self.scales[chosen], self.opacities[chosen])


@dataclass(frozen=True)
class Clip:
    """Time-varying Gaussians with all that is needed to draw and to explain them. N Gaussians, T frames."""

    means: np.ndarray  # [N, 3] float32, canonical (as at frame 0)
    quats: np.ndarray  # [N, 4] float32, wxyz
    scales: np.ndarray  # [N, 3] float32, linear standard deviations
    opacities: np.ndarray  # [N] float32, 0..1
    sh: np.ndarray  # [N, K, 3] float32, spherical harmonics, K = (degree + 1)^2; colour = 0.5 + 0.28209 sh[:, 0]
    motion: BasisMotion | FrameMotion
    name: str = "Clip"
    fps: float = 24.0
    color_space: str = "srgb"  # the space in which the Gaussians were fitted and are to be blended
    to_object: np.ndarray = field(default_factory=lambda: np.eye(4))  # [4, 4] clip space -> object space
    provenance: dict = field(default_factory=dict)  # pipeline, request, prompt, seed, models, version, stage times

    @property
    def count(self) -> int:
        """N, the number of Gaussians."""
        return len(self.means)

    @property
    def frame_count(self) -> int:
        """T, the number of stored frames."""
        motion = self.motion
        return len(motion.basis_quats if isinstance(motion, BasisMotion) else motion.frame_means)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics: 0 is one colour from all sides."""
        return math.isqrt(self.sh.shape[1]) - 1

    def bounds(self) -> np.ndarray:  # [2, 3] float64
        """Smallest and largest mean over all frames."""
        moments = (self._stored(t).means for t in range(self.frame_count))
        corners = np.array([(means.min(axis=0), means.max(axis=0)) for means in moments])
        return np.stack([corners[:, 0].min(axis=0), corners[:, 1].max(axis=0)]).astype(np.float64)

    @property
    def there(self) -> np.ndarray:  # [T, N] bool
        """Which are to be seen at all at each stored frame."""
        opacities = self.motion.frame_opacities if isinstance(self.motion, FrameMotion) else None
        opacities = self.opacities if opacities is None else opacities
        return np.broadcast_to(opacities >= MIN_ALPHA, (self.frame_count, self.count))

    def frame(self, t: float) -> Gaussians:
        """The Gaussians at frame `t`, which may be fractional and is clamped to 0..T-1.

        Between two stored frames: linear for means and logarithms of scales and for opacities, slerp for rotations.
        """
        if not np.isfinite(t):
            raise ValueError(f"The frame must be a number, not {t}.")
        t = min(max(float(t), 0.0), self.frame_count - 1.0)
        before = int(t)
        weight = t - before
        a = self._stored(before)
        if weight == 0:
            return a
        b = self._stored(before + 1)
        scales = a.scales
        if a.scales is not b.scales:
            scales = np.exp((1 - weight) * np.log(a.scales) + weight * np.log(b.scales)).astype(np.float32)
        return Gaussians(
            means=((1 - weight) * a.means + weight * b.means).astype(np.float32),
            quats=rotations.slerp(a.quats, b.quats, weight).astype(np.float32),
            scales=scales,
            opacities=((1 - weight) * a.opacities + weight * b.opacities).astype(np.float32),
        )

    def frames(self) -> Gaussians:
        """All stored frames along a leading axis T, rotations continuous in sign over time."""
        moments = list(self.moments())
        return Gaussians(
            means=np.stack([moment.means for moment in moments]),
            quats=np.stack([moment.quats for moment in moments]),
            scales=np.stack([moment.scales for moment in moments]),
            opacities=np.stack([moment.opacities for moment in moments]),
        )

    def moments(self) -> Iterator[Gaussians]:
        """The same one after the other."""
        former = None
        for t in range(self.frame_count):
            moment = self._stored(t)
            quats = moment.quats if former is None else rotations.same_side(moment.quats, former)
            yield replace(moment, quats=quats)
            former = quats

    def _stored(self, t: int) -> Gaussians:
        motion = self.motion
        if isinstance(motion, FrameMotion):
            scales, opacities = motion.frame_scales, motion.frame_opacities
            return Gaussians(
                means=motion.frame_means[t],
                quats=motion.frame_quats[t],
                scales=self.scales if scales is None else scales[t],
                opacities=self.opacities if opacities is None else opacities[t],
            )
        bases = motion.basis_quats[t]
        matrices = np.concatenate([rotations.to_matrix(bases), motion.basis_translations[t, ..., None]], axis=-1)
        weights, index = motion.basis_weights, motion.basis_index
        # Movements are blended before they are applied: one matrix for each Gaussian, not one for each of its bases.
        moves = np.einsum("nk,nkc->nc", weights, matrices.reshape(-1, 12)[index]).reshape(-1, 3, 4)
        means = np.einsum("nij,nj->ni", moves[..., :3], self.means) + moves[..., 3]
        quats = bases[index]
        signed = np.where(np.einsum("nkc,nc->nk", quats, quats[:, 0]) < 0, -weights, weights)
        blended = rotations.normalize(np.einsum("nk,nkc->nc", signed, quats))
        quats = rotations.multiply(blended, self.quats)
        return Gaussians(means, rotations.normalize(quats), self.scales, self.opacities)


def clip_of_moments(clip: Clip, moments: Sequence[Gaussians]) -> Clip:
    """`clip` with these moments as its frames; sizes and opacities are stored once where they did not change."""
    motion, first = clip.motion, moments[0]
    moving_scales = isinstance(motion, FrameMotion) and motion.frame_scales is not None
    moving_opacities = isinstance(motion, FrameMotion) and motion.frame_opacities is not None
    return replace(
        clip,
        means=first.means,
        quats=first.quats,
        scales=first.scales,
        opacities=first.opacities,
        motion=FrameMotion(
            np.stack([moment.means for moment in moments]),
            rotations.make_continuous(np.stack([moment.quats for moment in moments])),
            np.stack([moment.scales for moment in moments]) if moving_scales else None,
            np.stack([moment.opacities for moment in moments]) if moving_opacities else None,
        ),
    )


def travelling(clip: Clip, way: np.ndarray) -> Clip:
    """The clip with all Gaussians moved along a way [T, 3] in clip space, which begins with 0."""
    if isinstance(clip.motion, BasisMotion):
        moved = {"basis_translations": clip.motion.basis_translations + way[:, None]}
    else:
        moved = {"frame_means": clip.motion.frame_means + way[:, None]}
    moved = {name: array.astype(np.float32) for name, array in moved.items()}
    return replace(clip, motion=replace(clip.motion, **moved))


def write_clip(path: str | os.PathLike, clip: Clip) -> None:
    """Write `clip` to `path` (`.npz`) in one step.

    Raises:
        BadFileError: the clip breaks a rule of the format; nothing is written.
    """
    check_clip(clip)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "name": clip.name,
        "frame_count": clip.frame_count,
        "fps": clip.fps,
        "sh_degree": clip.sh_degree,
        "color_space": clip.color_space,
        "to_object": np.asarray(clip.to_object, np.float64).tolist(),
        "bounds": clip.bounds().tolist(),
        "provenance": clip.provenance,
    }
    arrays = {
        "meta": np.frombuffer(json.dumps(meta, allow_nan=False).encode(), np.uint8),
        **{name: getattr(clip, name) for name in ("means", "quats", "scales", "opacities", "sh")},
        **{name: array for name, array in vars(clip.motion).items() if array is not None},
    }
    write_arrays(path, arrays)


def read_clip(path: str | os.PathLike) -> Clip:
    """The clip in a file, checked.

    Raises:
        BadFileError: one sentence about what is wrong with the file.
        FileNotFoundError: there is no such file.
    """
    label = os.path.basename(path)
    arrays = read_arrays(path)
    if "meta" not in arrays or arrays["meta"].dtype != np.uint8:
        raise BadFileError(f"{label} is not a Kinesplat clip: it has no description.")
    try:
        meta = json.loads(arrays.pop("meta").tobytes().decode("utf-8"))
        file_format, version = meta["format"], meta["version"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise BadFileError(f"{label} is damaged: its description cannot be read.") from error
    if file_format != FORMAT:
        raise BadFileError(f"{label} is not a Kinesplat clip.")
    if version != VERSION:
        raise BadFileError(
            f"{label} was made by another version of Kinesplat (format {version}, this one reads {VERSION})."
        )
    try:
        static = {name: arrays.pop(name) for name in ("means", "quats", "scales", "opacities", "sh")}
        motion = BasisMotion(**arrays) if "basis_quats" in arrays else FrameMotion(**arrays)
        clip = Clip(
            **static,
            motion=motion,
            name=meta["name"],
            fps=meta["fps"],
            color_space=meta["color_space"],
            to_object=np.array(meta["to_object"], np.float64),
            provenance=meta["provenance"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(f"{label} is not a complete clip: {error}.") from error
    check_clip(clip, label)
    if (meta.get("frame_count"), meta.get("sh_degree")) != (clip.frame_count, clip.sh_degree):
        raise BadFileError(f"{label} is damaged: its description does not fit its data.")
    return clip


def check_clip(clip: Clip, label: str = "The clip") -> None:
    """Hold `clip` against the rules of the format: shapes, dtypes, finite numbers, ranges, sizes.

    Raises:
        BadFileError: the first rule that is broken, as one sentence that begins with `label`.
    """
    demand = demands(f"{label} is not a valid clip")

    def demand_array(owner: Any, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> None:
        array = getattr(owner, name)
        demand(isinstance(array, np.ndarray), f"{name} is missing")
        demand(array.dtype == dtype, f"{name} has type {array.dtype}, not {np.dtype(dtype).name}")
        demand(array.shape == shape, f"{name} has shape {array.shape}, not {shape}")
        demand(dtype is np.int32 or np.isfinite(array).all(), f"{name} holds numbers that are not finite")

    demand(isinstance(clip.name, str) and len(clip.name) <= 200, "its name is not a short text")
    fps_is_number = isinstance(clip.fps, int | float) and not isinstance(clip.fps, bool)
    demand(fps_is_number and np.isfinite(clip.fps) and 0 < clip.fps <= 1000, "fps must lie between 0 and 1000")
    demand(clip.color_space in COLOR_SPACES, f"the colour space must be one of {', '.join(COLOR_SPACES)}")
    to_object = np.asarray(clip.to_object)
    demand(
        to_object.shape == (4, 4) and to_object.dtype.kind == "f" and bool(np.isfinite(to_object).all()),
        "to_object is not a 4x4 matrix",
    )
    demand(abs(np.linalg.det(to_object[:3, :3])) > 1e-30, "to_object cannot be inverted")
    demand(isinstance(clip.provenance, dict), "its provenance is not a dictionary")

    demand(isinstance(clip.means, np.ndarray) and clip.means.ndim == 2, "means is missing")
    n = len(clip.means)
    demand(1 <= n <= MAX_GAUSSIANS, f"it holds {n} Gaussians, and 1 to {MAX_GAUSSIANS} are allowed")
    demand(isinstance(clip.sh, np.ndarray) and clip.sh.ndim == 3, "sh is missing")
    demand(clip.sh.shape[1] in (1, 4, 9, 16, 25), "sh must hold 1, 4, 9, 16 or 25 coefficients")
    demand_array(clip, "means", (n, 3))
    demand_array(clip, "quats", (n, 4))
    demand_array(clip, "scales", (n, 3))
    demand_array(clip, "opacities", (n,))
    demand_array(clip, "sh", (n, clip.sh.shape[1], 3))

    motion = clip.motion
    leading = motion.basis_quats if isinstance(motion, BasisMotion) else motion.frame_means
    demand(isinstance(leading, np.ndarray) and leading.ndim == 3, "its motion is missing")
    frames = len(leading)
    demand(1 <= frames <= MAX_FRAMES, f"it holds {frames} frames, and 1 to {MAX_FRAMES} are allowed")
    scales, opacities = [clip.scales], [clip.opacities]
    if isinstance(motion, BasisMotion):
        bases = motion.basis_quats.shape[1]
        demand(1 <= bases <= MAX_BASES, f"it holds {bases} motion bases, and 1 to {MAX_BASES} are allowed")
        demand_array(motion, "basis_quats", (frames, bases, 4))
        demand_array(motion, "basis_translations", (frames, bases, 3))
        demand_array(motion, "basis_index", (n, BASES_PER_GAUSSIAN), np.int32)
        demand_array(motion, "basis_weights", (n, BASES_PER_GAUSSIAN))
        within = (motion.basis_index >= 0) & (motion.basis_index < bases)
        demand(within.all(), "basis_index points outside the bases")
        whole = np.allclose(motion.basis_weights.sum(axis=1), 1, atol=1e-3)
        demand(whole and (motion.basis_weights >= 0).all(), "basis_weights must be at least 0 and sum to 1")
    else:
        demand_array(motion, "frame_means", (frames, n, 3))
        demand_array(motion, "frame_quats", (frames, n, 4))
        for name, shape, values in (
            ("frame_scales", (frames, n, 3), scales),
            ("frame_opacities", (frames, n), opacities),
        ):
            if getattr(motion, name) is not None:
                demand_array(motion, name, shape)
                values.append(getattr(motion, name))
    for array in (clip.quats, motion.basis_quats if isinstance(motion, BasisMotion) else motion.frame_quats):
        demand(np.allclose(np.sum(array * array, axis=-1), 1, atol=1e-3), "rotations must have length 1")
    for array in scales:
        demand((array > 0).all(), "scales must be above 0")
    for array in opacities:
        demand(((array >= 0) & (array <= 1)).all(), "opacities must lie between 0 and 1")
