# SPDX-License-Identifier: GPL-3.0-or-later
"""What generation is compared with: clips of animated assets, each as its moving orbit and its static orbit.

The pictures are rendered by the add-on's own code in a Blender without a window (`blender_truth`, one process per
asset), in the clip space that a still subject has: that of time 0. They stay in the output folder, so a second run
finds them. `renderer="fast"` rasterizes baked assets as training does, without Blender.
"""

import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.data.baked import read_baked, read_manifest
from backend.data.captions import action, caption
from backend.data.samples import View, render_sample
from backend.models.motion_magnitude import motion_magnitude
from backend.progress import Run, UserError
from blender_addon.contract.arrays import BadFileError, atomic_file
from blender_addon.contract.orbit import Cameras, Orbit, frame_name, orbit_cameras, read_orbit_json, write_orbit_json

ROOT = Path(__file__).resolve().parents[2]
RENDERERS = ("cycles", "fast")
FRAMES, RESOLUTION, SAMPLES = 24, 64, 32
STILL, TYPICAL = 0.008, 0.05  # mean motion by the manifest: less is hardly chosen, and what is near this comes first
LEAST_MAGNITUDE = 0.1  # m of Eq. 1: what moves less is no test of motion
BORDER_ALPHA = 0.5


@dataclass(frozen=True)
class ChosenClip:
    """One animation of one asset of a manifest."""

    entry: dict
    index: int

    @property
    def action(self) -> str:
        """Its name in the file."""
        return self.entry["clips"][self.index]["action"]

    @property
    def name(self) -> str:
        """For files and tables."""
        return re.sub(r"[^\w.-]+", "_", f"{self.entry['id'].replace('/', '__')}__{self.action}")

    @property
    def prompt(self) -> str:
        """What a user would ask for."""
        return caption(self.entry, self.action)


@dataclass(frozen=True)
class Truth:
    """A clip's pictures. Straight alpha, sRGB."""

    clip: ChosenClip
    moving: np.ndarray  # [T, H, W, 4] uint8, frame i at time i / (T - 1)
    static: np.ndarray  # [T, H, W, 4] uint8, the same cameras, all at time 0
    cameras: Cameras  # of the moving orbit
    magnitude: float  # m of Eq. 1


def premultiplied(frames: np.ndarray) -> Tensor:  # [..., 4] uint8, straight alpha -> float32 0..1
    """Pictures as metrics take them."""
    images = torch.from_numpy(np.array(frames)).float() / 255
    images[..., :3] *= images[..., 3:]
    return images


def choose_clips(entries: list[dict], per_asset: int) -> list[ChosenClip]:
    """At most `per_asset` clips of each asset, all families in turn, always the same ones.

    Within a family, actions that have not been taken yet come first, then clips that stay in place, then those whose
    motion is nearest to the typical one. What hardly moves is taken only where an asset has nothing else.
    """
    families: dict[str, list[ChosenClip]] = {}
    taken: Counter[tuple[str, str]] = Counter()

    def rank(entry: dict, k: int) -> tuple:
        clip = entry["clips"][k]
        unusual = abs(math.log(max(clip.get("motion", TYPICAL), 1e-6) / TYPICAL))
        return taken[entry["family"], action(clip["action"], entry)], clip.get("recentre", False), unusual, k

    for round_ in range(per_asset):
        for entry in sorted(entries, key=lambda entry: entry["id"]):
            chosen = families.setdefault(entry["family"], [])
            own = {clip.index for clip in chosen if clip.entry is entry}
            left = [k for k in range(len(entry["clips"])) if k not in own]
            moving = [k for k in left if entry["clips"][k].get("motion", TYPICAL) >= STILL]
            if moving or (left and round_ == 0):
                best = min(moving or left, key=lambda k, entry=entry: rank(entry, k))
                taken[entry["family"], action(entry["clips"][best]["action"], entry)] += 1
                chosen.append(ChosenClip(entry, best))
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(families[name] for name in sorted(families))))
    return [clip for clip in in_turn if clip is not None]


def make_truths(
    assets: Path, clips: list[ChosenClip], folder: Path, renderer: str, run: Run, limit: int | None = None
) -> tuple[list[Truth], dict[str, str]]:
    """Render what `folder` does not hold yet, until `limit` clips can be used.

    Returns those, and of the others that were looked at why each is left out.

    Raises:
        UserError: no Blender module, or Blender stopped.
        BadFileError: a file of the assets is missing or damaged.
    """
    if renderer == "cycles" and importlib.util.find_spec("bpy") is None:
        raise UserError(
            "no_blender",
            "Rendering needs Blender's Python module, which is not installed.",
            "Install it with `pip install bpy==4.5.15` (Python 3.11), or choose --renderer fast.",
        )
    wanted = min(limit or len(clips), len(clips))
    truths: list[Truth] = []
    left_out: dict[str, str] = {}
    waiting = list(clips)
    while waiting and len(truths) < wanted:
        batch, waiting = waiting[: wanted - len(truths)], waiting[wanted - len(truths) :]
        by_asset: dict[str, list[ChosenClip]] = {}
        for clip in batch:
            if not _is_made(assets, clip, folder, renderer):
                by_asset.setdefault(clip.entry["id"], []).append(clip)
        before, done = len(truths), len(batch) - sum(map(len, by_asset.values()))
        for own in by_asset.values():
            run.report(before + done, wanted)
            if renderer == "cycles":
                _render_in_blender(assets, own, folder)
            else:
                _rasterize(assets, own, folder)
            done += len(own)
        for clip in batch:
            problem = json.loads((folder / clip.name / "truth.json").read_text(encoding="utf-8"))["problem"]
            truth = None if problem else _read_truth(clip, folder / clip.name)
            problem = problem or _why_unfit(truth)
            if problem:
                left_out[clip.name] = problem
            else:
                truths.append(truth)
    return truths, left_out


def _why_unfit(truth: Truth) -> str:
    """Why a clip is no fair test, as in the paper's curation; empty where it is one."""
    alpha = truth.moving[..., 3]
    border = np.concatenate([alpha[:, [0, -1]].ravel(), alpha[:, :, [0, -1]].ravel()])
    if border.max() > 255 * BORDER_ALPHA:
        return "the subject leaves the picture"
    if truth.magnitude < LEAST_MAGNITUDE:
        return f"it hardly moves (m = {truth.magnitude:.3f})"
    if truth.static[..., 3].max() == 0:
        return "nothing is to be seen"
    return ""


def _fingerprint(assets: Path, clip: ChosenClip, renderer: str) -> str:
    """Of all that a clip's pictures depend on."""
    file = assets / clip.entry["file"] if renderer == "cycles" else _bake(assets, clip)
    try:
        stat = file.stat()
    except OSError as error:
        raise BadFileError(f"{file} is missing: the manifest names it.") from error
    parts = [renderer, FRAMES, RESOLUTION, SAMPLES, clip.entry["clips"][clip.index], stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _bake(assets: Path, clip: ChosenClip) -> Path:
    return assets / "baked24" / (clip.entry["id"].replace("/", "__") + ".npz")


def _is_made(assets: Path, clip: ChosenClip, folder: Path, renderer: str) -> bool:
    try:
        made = json.loads((folder / clip.name / "truth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return made.get("fingerprint") == _fingerprint(assets, clip, renderer)


def write_truth_json(folder: Path, fingerprint: str, problem: str = "") -> None:
    """Mark a clip's folder as complete; `problem` says why there are no pictures in it."""
    with atomic_file(folder / "truth.json") as file:
        file.write(json.dumps({"fingerprint": fingerprint, "problem": problem}).encode())


def _render_in_blender(assets: Path, clips: list[ChosenClip], folder: Path) -> None:
    """Render clips of one asset in a process of their own, which Blender may take down without harm."""
    job = {
        "file": str((assets / clips[0].entry["file"]).resolve()),
        "clips": [
            {
                "action": clip.action,
                "time_range": clip.entry["clips"][clip.index]["time_range"],
                "recentre": bool(clip.entry["clips"][clip.index].get("recentre")),
                "folder": str((folder / clip.name).resolve()),
                "fingerprint": _fingerprint(assets, clip, "cycles"),
            }
            for clip in clips
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "blender.log"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(log, "ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend.evaluation.blender_truth"],
            stdin=subprocess.PIPE, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        try:
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    for clip in clips:
        if not _is_made(assets, clip, folder, "cycles"):
            raise UserError(
                "blender_failed",
                f"Blender stopped with code {code} while it rendered {clip.entry['id']}.",
                f"Its messages are in {log}.",
            )


def _rasterize(assets: Path, clips: list[ChosenClip], folder: Path) -> None:
    asset = read_baked(assets, clips[0].entry)
    for clip in clips:
        sample = render_sample(asset, clip.index, View(), RESOLUTION, FRAMES)
        for moving, name in ((True, "moving"), (False, "static")):
            target = folder / clip.name / name
            target.mkdir(parents=True, exist_ok=True)
            images = np.array(sample.moving if moving else sample.static)
            images[..., :3] /= np.maximum(images[..., 3:], 1e-6)
            for k, picture in enumerate((images.clip(0, 1) * 255).round().astype(np.uint8)):
                Image.fromarray(picture).save(target / frame_name(k))
            write_orbit_json(target, orbit_cameras(Orbit(FRAMES), RESOLUTION, RESOLUTION, moving=moving))
        write_truth_json(folder / clip.name, _fingerprint(assets, clip, "fast"))


def _read_truth(clip: ChosenClip, folder: Path) -> Truth:
    cameras = read_orbit_json(folder / "moving")
    moving, static = (_read_frames(folder / name, len(cameras.times)) for name in ("moving", "static"))
    magnitude = float(motion_magnitude(premultiplied(moving), premultiplied(static)))
    return Truth(clip, moving, static, cameras, magnitude)


def _read_frames(folder: Path, count: int) -> np.ndarray:  # [T, H, W, 4] uint8
    try:
        return np.stack([np.asarray(Image.open(folder / frame_name(k)).convert("RGBA")) for k in range(count)])
    except (OSError, ValueError) as error:
        raise BadFileError(f"The pictures in {folder} cannot be read. Remove that folder and try again.") from error


def chosen_clips(assets: Path, split: str, per_asset: int) -> list[ChosenClip]:
    """The clips of a split that may be evaluated, in order.

    Raises:
        BadFileError: no manifest.
        UserError: the split has no clips.
    """
    clips = choose_clips(read_manifest(assets, split), per_asset)
    if not clips:
        known = sorted({entry["split"] for entry in read_manifest(assets)})
        raise UserError("no_clips", f"There are no clips in split {split!r}.", f"Splits: {', '.join(known) or 'none'}.")
    return clips
