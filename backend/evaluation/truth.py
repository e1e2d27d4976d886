# SPDX-License-Identifier: GPL-3.0-or-later
"""What generation is compared with: clips of animated assets, each as its moving orbit and its static orbit.

The pictures are those of the data room: rendered by the add-on's own code in a Blender without a window, in the clip
space that a still subject has (that of time 0), or rasterized as in training. They stay in the output folder, so that
a second run finds them.
"""

import hashlib
import importlib.util
import itertools
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from backend.data.baked import read_manifest
from backend.data.captions import action, caption
from backend.data.children import ask_all
from backend.data.curation import magnitude_of, touches_border
from backend.data.views import FRAMES, DatasetView
from backend.progress import Run, UserError
from blender_addon.contract.arrays import BadFileError, atomic_file
from blender_addon.contract.orbit import Cameras

RENDERERS = ("cycles", "fast")
RESOLUTION, SAMPLES = 64, 32  # pixels, of Cycles
VIDEOS = ("moving", "static")
STILL, TYPICAL = 0.008, 0.05  # mean motion by the manifest: less is hardly chosen, and what is near this comes first
LEAST_MAGNITUDE = 0.1  # m of Eq. 1: what moves less is no test of motion


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
        _render(assets, batch, folder, renderer, run, len(truths), wanted)
        for clip in batch:
            truth, problem = _read_truth(clip, folder / clip.name)
            problem = problem or _why_unfit(truth)
            if problem:
                left_out[clip.name] = problem
            else:
                truths.append(truth)
    return truths, left_out


def _render(
    assets: Path, clips: list[ChosenClip], folder: Path, renderer: str, run: Run, done: int, total: int
) -> None:
    """Let a child process render the clips that `folder` does not hold yet."""
    questions: dict[str, dict] = {}
    for clip in clips:
        fingerprint = _fingerprint(assets, clip, renderer)
        if _read_json(folder / clip.name).get("fingerprint") == fingerprint:
            continue
        settings = {"renderer": renderer, "assets": str(assets.resolve()), "resolution": RESOLUTION, "samples": SAMPLES}
        question = questions.setdefault(clip.entry["id"], {**settings, "entry": clip.entry, "clips": []})
        own = folder / clip.name
        question["clips"].append({"index": clip.index, "folder": str(own.resolve()), "fingerprint": fingerprint})

    def tick(answered: int) -> None:
        run.report(done + len(clips) * answered / max(len(questions), 1), max(total, done + len(clips)))

    log = folder / "blender.log"
    module = "backend.evaluation.truth_worker"
    for name, answer in ask_all(questions, module, 1, log, fresh=False, tick=tick):
        if "error" in answer:
            raise UserError("rendering_failed", f"{name} could not be rendered: {answer['error']}.", f"See {log}.")


def _why_unfit(truth: Truth) -> str:
    """Why a clip is no fair test, as in the paper's curation; empty where it is one."""
    if touches_border(truth.moving):
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


def write_truth_json(folder: Path, fingerprint: str, problem: str = "") -> None:
    """Mark a clip's folder as complete; `problem` says why there are no pictures in it."""
    with atomic_file(folder / "truth.json") as file:
        file.write(json.dumps({"fingerprint": fingerprint, "problem": problem}).encode())


def _read_json(folder: Path) -> dict:
    try:
        return json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _read_truth(clip: ChosenClip, folder: Path) -> tuple[Truth | None, str]:
    """A rendered clip, or why there is none."""
    if problem := _read_json(folder)["problem"]:
        return None, problem
    moving, static = (_read_strip(folder / f"{video}.png") for video in VIDEOS)
    cameras = DatasetView().cameras(RESOLUTION, "moving")
    return Truth(clip, moving, static, cameras, magnitude_of(moving, static)), ""


def _read_strip(path: Path) -> np.ndarray:  # [T, H, W, 4] uint8
    try:
        with Image.open(path) as strip:
            return np.stack(np.split(np.asarray(strip.convert("RGBA")), FRAMES, axis=1))
    except (OSError, ValueError) as error:
        raise BadFileError(f"{path} cannot be read. Remove its folder and try again.") from error


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
