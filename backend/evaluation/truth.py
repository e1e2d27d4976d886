# SPDX-License-Identifier: GPL-3.0-or-later
"""True pictures of animated assets, from any cameras at any times of their clips.

They are those of the data room: rendered by the add-on's own code in a Blender without a window, in the clip space
that a still subject has (that of time 0), or rasterized as in training. They stay in the output folder, so that a
second run finds them.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from backend.data.baked import baked_file, model_file
from backend.data.blender_wheel import demand_blender
from backend.data.children import ask_all
from backend.data.curation import touches_border
from backend.data.views import FRAMES
from backend.evaluation.choice import ChosenClip
from backend.models.motion_magnitude import magnitude_of
from backend.progress import Run, UserError
from blender_addon.contract.arrays import BadFileError, atomic_file, read_arrays, write_json
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.surface import SurfaceSamples, read_surface_samples

MOVING, STATIC = "moving", "static"  # shots by which a clip's fitness is judged
FURTHER = "further"  # shot of time 0 from above and below
LEAVES_PICTURE = "the subject leaves the picture"
LEAST_MAGNITUDE = 0.1  # m of Eq. 1: what moves less is no test of motion
TRACKED_POINTS = 2_000
ALGORITHM = 2  # counts changes that make older pictures useless


@dataclass(frozen=True)
class Shots:
    """Pictures that are wanted of every clip."""

    cameras: Cameras  # times are those of stored frames, i / (FRAMES - 1)
    samples: int  # of Cycles, per pixel


@dataclass(frozen=True)
class Plan:
    """What is wanted of every clip."""

    shots: dict[str, Shots]  # by name, all of one size; with `MOVING` and `STATIC` only fit clips are rendered further
    surface: bool = False  # surface samples with their movement, and other points tracked over time

    @property
    def resolution(self) -> int:
        """Pixels of one side."""
        return next(iter(self.shots.values())).cameras.width


def render_usable(
    assets: Path,
    clips: list[ChosenClip],
    folder: Path,
    renderer: str,
    plan: Plan,
    run: Run,
    limit: int | None = None,
) -> tuple[list[ChosenClip], dict[str, str]]:
    """Render what `folder` does not hold yet, until `limit` clips can be used.

    Returns those, and of the others that were looked at why each is left out.

    Raises:
        UserError: no Blender module, or Blender stopped.
        BadFileError: a file of the assets is missing or damaged.
    """
    if renderer == "cycles":
        demand_blender("Rendering", "choose --renderer fast")

    def problems_of(batch: list[ChosenClip], found: int, wanted: int) -> dict[str, str]:
        _render(assets, batch, folder, renderer, plan, run, found, wanted)
        told = {clip.name: _read_json(folder / clip.name)["problem"] for clip in batch}
        return {name: problem for name, problem in told.items() if problem}

    return until_enough(clips, limit, problems_of)


def until_enough(
    clips: list[ChosenClip], limit: int | None, problems_of: Callable[[list[ChosenClip], int, int], dict[str, str]]
) -> tuple[list[ChosenClip], dict[str, str]]:
    """Look at clips until `limit` of them can be used. Returns those, and why each of the others cannot.

    problems_of: why each that cannot be used of some clips cannot, where so many are found of so many wanted.
    """
    wanted = min(limit or len(clips), len(clips))
    usable: list[ChosenClip] = []
    left_out: dict[str, str] = {}
    waiting = list(clips)
    while waiting and len(usable) < wanted:
        batch, waiting = waiting[: wanted - len(usable)], waiting[wanted - len(usable) :]
        problems = problems_of(batch, len(usable), wanted)
        usable += [clip for clip in batch if clip.name not in problems]
        left_out |= problems
    return usable, left_out


def none_usable(left_out: dict[str, str]) -> UserError:
    """The error for an evaluation that has no clips."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    return UserError("no_usable_clips", "None of the clips can be used.", f"{reasons}.")


def why_unfit(moving: np.ndarray, static: np.ndarray) -> str:  # 2 x [T, H, W, 4] uint8
    """Why a clip is no fair test, as in the paper's curation; empty where it is one."""
    if static[..., 3].max() == 0:
        return "nothing is to be seen"
    if touches_border(moving):
        return LEAVES_PICTURE
    magnitude = magnitude_of(moving, static)
    if magnitude < LEAST_MAGNITUDE:
        return f"it hardly moves (m = {magnitude:.3f})"
    return ""


# --- files -----------------------------------------------------------------------------------------------------------


def write_pictures(folder: Path, name: str, pictures: np.ndarray) -> None:  # [V, H, W, 4] uint8
    """One file with the pictures of a shot side by side. Straight alpha, sRGB."""
    with atomic_file(folder / f"{name}.png") as file:
        Image.fromarray(np.concatenate(list(pictures), axis=1)).save(file, format="PNG")


def read_pictures(folder: Path, name: str, count: int) -> np.ndarray:  # [V, H, W, 4] uint8
    """What `write_pictures` wrote.

    Raises:
        BadFileError: it is not there, or damaged.
    """
    path = folder / f"{name}.png"
    try:
        with Image.open(path) as strip:
            return np.stack(np.split(np.asarray(strip.convert("RGBA")), count, axis=1))
    except (OSError, ValueError) as error:
        raise BadFileError(f"{path} cannot be read. Remove its folder and try again.") from error


def surface_path(folder: Path) -> Path:
    """Where a clip's surface samples lie."""
    return folder / "surface.npz"


def tracks_path(folder: Path) -> Path:
    """Where a clip's tracked points lie."""
    return folder / "tracks.npz"


def read_surface(folder: Path) -> tuple[SurfaceSamples, np.ndarray]:
    """Surface samples, and other points on the surface at all frames [T, M, 3]; both in clip space.

    Raises:
        BadFileError: they are not there, or damaged.
    """
    return read_surface_samples(surface_path(folder)), read_arrays(tracks_path(folder))["points"]


def write_truth_json(folder: Path, fingerprint: str, problem: str = "") -> None:
    """Mark a clip's folder as complete; `problem` says why there are no pictures in it."""
    write_json(folder / "truth.json", {"fingerprint": fingerprint, "problem": problem})


def _read_json(folder: Path) -> dict:
    try:
        return json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# --- rendering -------------------------------------------------------------------------------------------------------


def _render(
    assets: Path, clips: list[ChosenClip], folder: Path, renderer: str, plan: Plan, run: Run, done: int, total: int
) -> None:
    """Let a child process render the clips that `folder` does not hold yet."""
    shots = {name: {"cameras": one.cameras.to_json(), "samples": one.samples} for name, one in plan.shots.items()}
    wanted = json.dumps([ALGORITHM, renderer, shots, plan.surface, TRACKED_POINTS, LEAST_MAGNITUDE], sort_keys=True)
    questions: dict[str, dict] = {}
    for clip in clips:
        fingerprint = _fingerprint(assets, clip, renderer, wanted)
        if _read_json(folder / clip.name).get("fingerprint") == fingerprint:
            continue
        questions[clip.name] = {
            "renderer": renderer,
            "assets": str(assets.resolve()),
            "entry": clip.entry,
            "clip": clip.index,
            "folder": str((folder / clip.name).resolve()),
            "fingerprint": fingerprint,
            "resolution": plan.resolution,
            "samples": max(one.samples for one in plan.shots.values()),
            "shots": shots,
            "tracked": TRACKED_POINTS if plan.surface else 0,
        }

    def tick(answered: int) -> None:
        run.report(done + len(clips) * answered / max(len(questions), 1), max(total, done + len(clips)))

    log = folder / "blender.log"
    module = "backend.evaluation.truth_worker"
    for name, answer in ask_all(questions, module, 1, log, fresh=False, tick=tick):
        if "error" in answer:
            raise UserError("rendering_failed", f"{name} could not be rendered: {answer['error']}.", f"See {log}.")


def _fingerprint(assets: Path, clip: ChosenClip, renderer: str, wanted: str) -> str:
    """Of all that a clip's pictures depend on."""
    file = (model_file if renderer == "cycles" else baked_file)(assets, clip.entry)
    try:
        stat = file.stat()
    except OSError as error:
        raise BadFileError(f"{file} is missing: the manifest names it.") from error
    parts = [wanted, FRAMES, clip.entry["clips"][clip.index], stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
