# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated frames: what a diffusion pipeline makes before anything is constructed, in one `.npz`.

People look at them and choose; the construction goes on from the file that was chosen.
"""

import json
import os
from dataclasses import dataclass, field, replace

import numpy as np

from .arrays import BadFileError, demands, read_arrays, write_arrays
from .orbit import Cameras, joined_cameras
from .requests import BOUNDS, MAX_PROMPT_LENGTH

FORMAT = "kinesplat-frames"
VERSION = 3
READABLE = 1, 2, VERSION  # 1 has no movement, 2 no further views
MAX_FRAMES = int(BOUNDS["frames"].maximum)
MOVEMENT, FURTHER = ("points", "movement"), "further"  # arrays that some files lack
MAX_RESOLUTION = int(BOUNDS["resolution"].maximum)
MAX_POINTS = 20_000
MAX_FILE_BYTES = 3 * MAX_FRAMES * MAX_RESOLUTION**2 * 4 + (MAX_FRAMES + 1) * MAX_POINTS * 12 + (1 << 20)  # unpacked


@dataclass(frozen=True)
class GeneratedFrames:
    """A moving orbit that was generated, and the static orbit that it belongs to. T frames of H x W pixels."""

    moving: np.ndarray  # [T, H, W, 4] uint8 sRGB, straight alpha; frame i at time i / (T - 1)
    static: np.ndarray  # [T, H, W, 4] uint8 sRGB, straight alpha; as the same cameras see time 0
    cameras: Cameras  # of `moving`
    prompt: str = ""
    motion: float = 0.0  # motion magnitude that was asked for
    motion_measured: float = 0.0  # and that of these frames (Diffusion4D Eq. 1)
    seed: int = 0
    provenance: dict = field(default_factory=dict)  # pipeline, settings, models, versions; `warnings`: sentences
    points: np.ndarray | None = None  # [P, 3] float32, on the subject's surface at time 0, clip space
    movement: np.ndarray | None = None  # [T, P, 3] float32, of these from there; both, where it is known, or neither
    further: np.ndarray | None = None  # [F, H, W, 4] uint8 sRGB, straight alpha; as other cameras see time 0
    further_cameras: Cameras | None = None

    def still(self) -> tuple[np.ndarray, Cameras]:
        """All pictures of time 0: those of the static orbit, then the further ones; and their cameras."""
        cameras = replace(self.cameras, times=np.zeros_like(self.cameras.times))
        if self.further is None:
            return self.static, cameras
        return np.concatenate([self.static, self.further]), joined_cameras([cameras, self.further_cameras])


def write_frames(path: str | os.PathLike, frames: GeneratedFrames) -> None:
    """Write `frames` to `path` (`.npz`) in one step.

    Raises:
        BadFileError: they break a rule of the format; nothing is written.
    """
    check_frames(frames)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "cameras": frames.cameras.to_json(),
        "prompt": frames.prompt,
        "motion": frames.motion,
        "motion_measured": frames.motion_measured,
        "seed": frames.seed,
        "provenance": frames.provenance,
        "further_cameras": None if frames.further is None else frames.further_cameras.to_json(),
    }
    text = json.dumps(meta, allow_nan=False).encode()
    arrays = {"meta": np.frombuffer(text, np.uint8), "moving": frames.moving, "static": frames.static}
    known = {name: getattr(frames, name) for name in (*MOVEMENT, FURTHER) if getattr(frames, name) is not None}
    write_arrays(path, arrays | known)


def read_frames(path: str | os.PathLike) -> GeneratedFrames:
    """The frames in a file, checked.

    Raises:
        BadFileError: one sentence about what is wrong with the file.
        FileNotFoundError: there is no such file.
    """
    label = os.path.basename(path)
    arrays = read_arrays(path, MAX_FILE_BYTES)
    names = {"meta", "moving", "static"}
    if set(arrays) - {FURTHER} not in (names, names | set(MOVEMENT)) or arrays["meta"].dtype != np.uint8:
        raise BadFileError(f"{label} does not hold generated frames.")
    try:
        meta = json.loads(arrays["meta"].tobytes().decode("utf-8"))
        file_format, version = meta["format"], meta["version"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise BadFileError(f"{label} is damaged: its description cannot be read.") from error
    if file_format != FORMAT:
        raise BadFileError(f"{label} does not hold generated frames.")
    if version not in READABLE:
        raise BadFileError(
            f"{label} was made by another version of Kinesplat (format {version}, this one reads {VERSION})."
        )
    try:
        values = {name: meta[name] for name in ("prompt", "motion", "motion_measured", "seed", "provenance")}
        cameras = meta["cameras"]
    except KeyError as error:
        raise BadFileError(f"{label} is damaged: its description lacks {error}.") from error
    values |= {name: arrays[name] for name in (*MOVEMENT, FURTHER) if name in arrays}
    if meta.get("further_cameras") is not None:
        values["further_cameras"] = Cameras.from_json(meta["further_cameras"], label)
    frames = GeneratedFrames(arrays["moving"], arrays["static"], Cameras.from_json(cameras, label), **values)
    check_frames(frames, label)
    return frames


def check_frames(frames: GeneratedFrames, label: str = "The generated frames") -> None:
    """Hold `frames` against the rules of the format.

    Raises:
        BadFileError: the first rule that is broken, as one sentence that begins with `label`.
    """
    demand = demands(f"{label} cannot be used")
    for name in ("moving", "static", FURTHER):
        array = getattr(frames, name)
        if array is None and name == FURTHER:
            continue
        demand(isinstance(array, np.ndarray) and array.dtype == np.uint8, f"{name} is not uint8")
        demand(array.ndim == 4 and array.shape[3] == 4, f"{name} must have the shape [T, H, W, 4]")
    count, height, width, _ = frames.moving.shape
    demand(frames.static.shape == frames.moving.shape, "moving and static differ in shape")
    demand(2 <= count <= MAX_FRAMES, f"it holds {count} frames, and 2 to {MAX_FRAMES} are allowed")
    sizes_fit = 1 <= height == width <= MAX_RESOLUTION
    demand(sizes_fit, f"its pictures must be square, with at most {MAX_RESOLUTION} pixels a side")
    frames.cameras.check(label)
    cameras_fit = (len(frames.cameras.times), frames.cameras.width, frames.cameras.height) == (count, width, height)
    demand(cameras_fit, "its cameras do not fit its pictures")
    if frames.further is not None or frames.further_cameras is not None:
        both = frames.further is not None and frames.further_cameras is not None
        demand(both, "it holds only one of further views and their cameras")
        frames.further_cameras.check(label)
        size = len(frames.further_cameras.times), frames.further_cameras.height, frames.further_cameras.width, 4
        demand(frames.further.shape == size and size[1:3] == (height, width), "its further views do not fit")
        demand(size[0] <= MAX_FRAMES, f"it holds more than {MAX_FRAMES} further views")
        demand(not frames.further_cameras.times.any(), "its further views are not all of time 0")
    demand(isinstance(frames.prompt, str) and len(frames.prompt) <= MAX_PROMPT_LENGTH, "its prompt is not a short text")
    for name in ("motion", "motion_measured"):
        number = getattr(frames, name)
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        demand(is_number and 0 <= number < float("inf"), f"{name} must be a number, at least 0")
    demand(type(frames.seed) is int, "its seed is not a whole number")
    demand(isinstance(frames.provenance, dict), "its provenance is not a dictionary")
    known = [getattr(frames, name) for name in MOVEMENT if getattr(frames, name) is not None]
    if known:
        demand(len(known) == 2, "it holds only one of points and movement")
        demand(all(array.dtype == np.float32 for array in known), "its points and their movement are not float32")
        points = len(frames.points)
        fits = frames.points.shape == (points, 3) and frames.movement.shape == (count, points, 3)
        demand(fits and 1 <= points <= MAX_POINTS, "its points and their movement do not fit together")
        demand(all(np.isfinite(array).all() for array in known), "its points or their movement are not all finite")
