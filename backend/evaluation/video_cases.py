# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases in which 4Diffusion is evaluated, and what it makes of a video in each; kept in files.

- `full`: as the product does it;
- `no-sds`: no score distillation; the anchor loss alone. Gaussians still begin from the model's four views;
- `anchor-only`: the same, and the model's views are not seen at all: Gaussians begin from the input video alone;
- `no-anchor`: score distillation alone.

A radiance field begins from nothing in every case, so that of its `no-sds` the model's views are only the anchor: the
one of the four that shows the input's side.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from backend.evaluation.video_truth import cameras
from backend.models.lpips import find_lpips
from backend.models.shipped import CARD
from backend.pictures import straight
from backend.pipelines import clips, fourdiffusion
from backend.pipelines.fourdiffusion_guidance import Guidance
from backend.pipelines.fourdiffusion_settings import Settings
from backend.pipelines.multi_view_video import MultiViewVideo
from backend.pipelines.small_views import SmallVideoModel
from backend.pipelines.video_model import VideoModel, load_video_model, within_memory
from backend.progress import Run, UserError
from backend.splatting.checkpoint import state_key
from backend.versions import code_key
from blender_addon.contract.arrays import BadFileError, read_arrays, write_arrays
from blender_addon.contract.clip import Clip, read_clip, write_clip
from blender_addon.contract.orbit import Cameras

FULL, NO_SDS, ANCHOR_ONLY, NO_ANCHOR = "full", "no-sds", "anchor-only", "no-anchor"
CASES = (FULL, NO_SDS, ANCHOR_ONLY, NO_ANCHOR)
USUAL_CASES = (FULL, NO_SDS, NO_ANCHOR)
CHANGES = {FULL: {}, NO_SDS: {"sds_weight": 0.0}, ANCHOR_ONLY: {"sds_weight": 0.0}, NO_ANCHOR: {"anchor_weight": 0.0}}
ROOMS = ("models", "guidance", "nerf", "splatting", "pipelines")  # whose code decides what comes out


@dataclass(frozen=True)
class Case:
    """One way of making a clip."""

    label: str  # for people and for files
    settings: Settings
    sees_views: bool  # of the video model


@dataclass(frozen=True)
class Maker:
    """What is evaluated."""

    model: VideoModel
    name: str  # for people
    version: str  # differs whenever results may
    generate: Callable[[Tensor, str, VideoModel, Settings, Run], Clip]  # as fourdiffusion.generate; plans its run


@dataclass(frozen=True)
class Made:
    """A clip and what its making took."""

    clip: Clip
    seconds: float  # by the clock, with those of the views
    cpu_seconds: float  # without those of the views
    stage_seconds: dict[str, float]
    warnings: list[str]


@dataclass(frozen=True)
class Views:
    """The model's own views."""

    video: MultiViewVideo
    seconds: float
    notes: list[str]


def cases_of(preset: str, names: list[str] | None, representations: list[str], seed: int, model: str) -> list[Case]:
    """The cases that are asked for, by representation.

    names: of CASES, by default the preset's usual ones; seed: of all that is drawn; model: of `requests.MODELS`.

    Raises:
        UserError: the preset has nothing that a case could leave out.
    """
    fits = Settings.for_preset(preset, seed=seed, model=model).iterations > 0
    wanted = dict.fromkeys(names or (USUAL_CASES if fits else (FULL,)))
    if not fits and not {FULL, ANCHOR_ONLY}.issuperset(wanted):
        raise UserError(
            "no_fit",
            f"The preset {preset} has neither distillation nor anchor loss that a case could leave out.",
            f"Choose another preset, or the cases {FULL} and {ANCHOR_ONLY}.",
        )
    kinds = list(dict.fromkeys(representations))
    if not fits:
        kinds = ["gaussians"]  # there is nothing to optimise, so that all are the same
    return [
        Case(
            label=name if len(kinds) == 1 else f"{kind} {name}",
            settings=replace(Settings.for_preset(preset, kind, seed, model), **CHANGES[name]),
            sees_views=name != ANCHOR_ONLY,
        )
        for kind in kinds
        for name in wanted
    ]


def shipped_maker(name: str, preset: str, weights: Path | None, run: Run, small: Path | None = None) -> Maker:
    """4Diffusion with one of `requests.MODELS`, as a request uses it, on the device of `run`.

    weights: folder of those of the published model and of LPIPS, by default the usual one; small: of the small model,
    by default the one that is shipped.

    Raises:
        UserError: weights are missing, or the device cannot be used.
    """
    clips.engine_of(run)  # kernels are compiled before anything is timed
    if small is None:
        model = load_video_model(name, run, weights=weights)
    else:
        model = SmallVideoModel(device="cpu" if run.device == "cpu" else None, weights=small)

    def generate(video: Tensor, prompt: str, model: VideoModel, settings: Settings, run: Run) -> Clip:
        run.plan(fourdiffusion.stages(settings))
        lpips = fourdiffusion.lpips_of(settings, run, weights)
        return fourdiffusion.generate(video, prompt, model, settings, run, lpips=lpips)

    card = None if small is None else (small / CARD).read_text(encoding="utf-8")
    digest = hashlib.sha256(json.dumps([code_key(*ROOMS), model.models(), card], sort_keys=True).encode())
    lpips = "with" if find_lpips(weights) else "without"
    return Maker(model, preset, f"{model.name}, {lpips} LPIPS, {digest.hexdigest()[:12]}", generate)


def kept_views(path: Path, maker: Maker, video: Tensor, prompt: str, settings: Settings, run: Run) -> Views:
    """The model's views of a video [F, 4, S, S] in a file, made if the file is not of these inputs.

    A making that was stopped begins anew, so that its time is the whole one; so the folder of `run`, which is for
    this alone, is emptied before and after.

    Raises:
        UserError: by the model.
        JobCancelled: by `run`.
    """
    asked = {"seed": settings.seed, "steps": settings.steps, "elevation": settings.elevation}
    key = state_key({"version": maker.version, "prompt": prompt, **asked}, video)
    try:
        arrays = read_arrays(path)
        meta = json.loads(arrays["meta"].tobytes())
        if meta["key"] == key:
            views = tuple(Cameras.from_json(one) for one in meta["cameras"])
            return Views(MultiViewVideo(arrays["pictures"], views), meta["seconds"], meta["notes"])
    except (FileNotFoundError, BadFileError, KeyError, ValueError):
        pass  # not there, or damaged: they are made again
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    run.plan({fourdiffusion.VIEWING: 1.0})
    run.begin(fourdiffusion.VIEWING)
    start = time.monotonic()
    views = within_memory(maker.model, lambda: maker.model.views(video, prompt, **asked, run=run), run)
    made = Views(views, time.monotonic() - start, list(run.notes))
    run.finish()
    told = {
        "key": key,
        "seconds": made.seconds,
        "notes": made.notes,
        "cameras": [one.to_json() for one in views.cameras],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, {"meta": np.frombuffer(json.dumps(told).encode(), np.uint8), "pictures": views.pictures})
    shutil.rmtree(run.folder, ignore_errors=True)
    return made


def kept_clip(
    path: Path, maker: Maker, case: Case, video: Tensor, prompt: str, views: Views | None, part: Callable[[], Run]
) -> Made:
    """The clip of a video [F, 4, S, S] in a file, made if the file is not of these inputs.

    A making that was stopped begins anew, as that of views; these have been kept.

    Args:
        views: the model's, where the case sees them.
        part: a new run in a folder of its own, which is emptied before and after.

    Raises:
        UserError: by the pipeline.
        JobCancelled: by the run.
    """
    settings, seen = asdict(case.settings), None if views is None else views.video.pictures
    key = state_key({"version": maker.version, "prompt": prompt, **settings}, video, *([] if seen is None else [seen]))
    run = part()
    try:
        clip = read_clip(path)
        if clip.provenance["evaluation"]["key"] == key:
            run.finish()
            return _told(clip)
    except (FileNotFoundError, BadFileError, KeyError):
        pass  # not there, or damaged: it is made again
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    given = GivenViews(maker.model, _input_alone(video) if views is None else views.video)
    wall, cpu = time.monotonic(), time.process_time()
    clip = within_memory(maker.model, lambda: maker.generate(video, prompt, given, case.settings, run), run)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    run.finish()
    stages = {fourdiffusion.VIEWING: 0.0, **run.stage_seconds}
    before = 0.0 if views is None else views.seconds
    stages[fourdiffusion.VIEWING] += before
    told = {
        "key": key,
        "seconds": wall + before,
        "cpu_seconds": cpu,
        "stage_seconds": {stage: round(seconds, 2) for stage, seconds in stages.items()},
        "warnings": [*([] if views is None else views.notes), *run.notes],
    }
    clip = replace(clip, provenance={**clip.provenance, "evaluation": told})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, clip)
    shutil.rmtree(run.folder, ignore_errors=True)
    return _told(clip)


class GivenViews:
    """A `VideoModel` whose views are known already; all else is the model's."""

    def __init__(self, model: VideoModel, known: MultiViewVideo) -> None:
        self._model, self._known = model, known
        self.name, self.framing = model.name, model.framing

    def models(self) -> list[dict]:
        """See `VideoModel`."""
        return self._model.models()

    def views(self, video: Tensor, prompt: str, *, seed: int, steps: int, elevation: float, run: Run) -> MultiViewVideo:
        """What is known."""
        return self._known

    def guidance(self, video: Tensor, prompt: str, run: Run) -> AbstractContextManager[Guidance]:
        """See `VideoModel`."""
        return self._model.guidance(video, prompt, run)


def _input_alone(video: Tensor) -> MultiViewVideo:
    """The input video as the only view."""
    pictures = straight(video.movedim(1, -1).numpy())
    return MultiViewVideo(pictures[None], (cameras(len(video), video.shape[-1], (0.0,)),))


def _told(clip: Clip) -> Made:
    told = clip.provenance["evaluation"]
    return Made(clip, told["seconds"], told["cpu_seconds"], told["stage_seconds"], told["warnings"])
