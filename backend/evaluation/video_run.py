# SPDX-License-Identifier: GPL-3.0-or-later
"""Evaluation of 4Diffusion: clips of videos whose other sides are known, and of videos of which nobody knows them.

The paper's protocol (section 4.1): four orthogonal true views, one of which is the input's. The video model and the
pipeline are handed in, so that tests can bring a model that knows the truth.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from backend.evaluation.choice import ChosenClip
from backend.evaluation.networks import Networks
from backend.evaluation.sheets import overview
from backend.evaluation.tables import write_results
from backend.evaluation.truth import none_usable
from backend.evaluation.video_cases import Case, Made, Maker, Views, kept_clip, kept_views
from backend.evaluation.video_figures import (
    NOVEL,
    VideoSets,
    drawn_from_all_sides,
    figures_of,
    figures_of_views,
    figures_without_truth,
    not_measured,
    views_of,
)
from backend.evaluation.video_sheets import clip_sheet, table, title_of
from backend.evaluation.video_truth import ORTHOGONAL, RESOLUTION, VideoTruth, VideoTruthFolder, resized
from backend.progress import Run, UserError
from backend.versions import versions

RENDERING, MAKING = "Rendering the truth", "Making clips"


@dataclass(frozen=True)
class Film:
    """A video of which no other side is known."""

    name: str  # for files and tables
    prompt: str
    video: Tensor  # [F, 4, side, side] float32 0..1, premultiplied: framed as `framing.FOURDIFFUSION` wants it
    notes: tuple[str, ...] = ()  # what was doubtful when it was read


@dataclass(frozen=True)
class _Input:
    """What is evaluated next."""

    name: str
    about: dict  # of the row
    prompt: str
    video: Tensor  # [F, 4, side, side]
    true: Tensor | None  # [8, F, H, W, 4], colour multiplied by alpha
    notes: tuple[str, ...] = ()


def evaluate_videos(
    assets: Path,
    clips: list[ChosenClip],
    out: Path,
    maker: Maker,
    cases: list[Case],
    *,
    frames: int = 8,
    renderer: str = "cycles",
    limit: int | None = None,
    truths: Path | None = None,
    networks: Networks = Networks(),  # noqa: B008 - frozen
    resolution: int = RESOLUTION,
    run: Run,
) -> dict:
    """Evaluate against true views; returns the summary, which is written as well.

    Args:
        assets: folder of the manifest that `clips` come from.
        out: gets `summary.json` and `table.md` (after each clip), `sheets/`, and what a later run can use: `views/`,
            `clips/`.
        cases: the first is the one whose figures stand at the top of the summary.
        frames: of each video, `video_truth.LEAST_FRAMES` to `MOST_FRAMES`.
        renderer: of the truth.
        limit: of clips; those that are no fair test are passed over and do not count.
        truths: where true pictures are kept; by default in `out`.
        resolution: of all pictures that are compared.

    Raises:
        UserError: no clip can be used, or what `truth.render_usable` raises.
        JobCancelled: by `run`.
    """
    run.plan({RENDERING: 0.2, MAKING: 1.0})
    folder = VideoTruthFolder(assets, (truths or out) / f"truth_{renderer}", renderer, frames, resolution)
    run.begin(RENDERING)
    usable, left_out = folder.render(clips, limit, run)
    if not usable:
        raise none_usable(left_out)
    inputs = (_input_of(folder.read(clip), maker.model.framing.size) for clip in usable)
    told = {"renderer": renderer, "frames": frames, "resolution": resolution, "left_out": left_out}
    return _evaluate(inputs, len(usable), out, maker, cases, networks, told, run)


def evaluate_films(
    films: list[Film],
    out: Path,
    maker: Maker,
    cases: list[Case],
    *,
    networks: Networks = Networks(),  # noqa: B008 - frozen
    resolution: int = RESOLUTION,
    run: Run,
) -> dict:
    """As `evaluate_videos`, of videos without a truth: sheets, and the figures that need none.

    All films have the same number of frames.

    Raises:
        JobCancelled: by `run`.
    """
    run.plan({MAKING: 1.0})
    inputs = (_Input(film.name, {"asset": film.name}, film.prompt, film.video, None, film.notes) for film in films)
    told = {"renderer": None, "frames": len(films[0].video), "resolution": resolution, "left_out": {}}
    return _evaluate(inputs, len(films), out, maker, cases, networks, told, run)


def _input_of(truth: VideoTruth, side: int) -> _Input:
    clip = truth.clip
    about = {"asset": clip.entry["id"], "family": clip.entry["family"], "action": clip.action}
    about |= {"magnitude": truth.magnitude, "size": truth.size}
    return _Input(clip.name, about, clip.prompt, truth.video(side), truth.seen())


def _evaluate(
    inputs: Iterator[_Input],
    count: int,
    out: Path,
    maker: Maker,
    cases: list[Case],
    networks: Networks,
    told: dict,
    run: Run,
) -> dict:
    """Make and measure all cases of each input in turn; `told` is what else the summary says."""
    started = time.monotonic()
    run.begin(MAKING)
    rows: dict[str, list[dict]] = {case.label: [] for case in cases}
    sets = {case.label: VideoSets(networks) for case in cases}
    failed: dict[str, str] = {}
    steps = len(cases) + 1  # the views, and each case
    summary: dict = {}
    for k, given in enumerate(inputs):
        part = partial(run.part, total=count * steps, folder=out / "work")
        views = None
        try:
            if any(case.sees_views for case in cases):
                at = out / "views" / f"{given.name}.npz"
                part_run = part(done=k * steps)
                views = kept_views(at, maker, given.video, given.prompt, cases[0].settings, part_run)
        except UserError as error:
            failed[f"views of {given.name}"] = f"{error} {error.hint}".rstrip()
        shown = _shown(given, views, told["resolution"])
        by_case = {}
        for j, case in enumerate(cases):
            if case.sees_views and views is None:
                continue
            seen = views if case.sees_views else None
            path = out / "clips" / case.label.replace(" ", "_") / f"{given.name}.npz"
            try:
                one = partial(part, done=k * steps + j + 1)
                made = kept_clip(path, maker, case, given.video, given.prompt, seen, one)
            except UserError as error:
                failed[f"{case.label} {given.name}"] = f"{error} {error.hint}".rstrip()
                continue
            by_case[case.label], shown[case.label] = _measured(given, made, seen, networks, told["resolution"])
            rows[case.label].append(by_case[case.label])
            if given.true is not None:
                sets[case.label].add(shown[case.label][NOVEL], given.true[NOVEL])
        if by_case:
            (out / "sheets").mkdir(parents=True, exist_ok=True)
            clip_sheet(title_of(given.name, by_case), shown).save(out / "sheets" / f"{given.name}.png")
        statistics_of = {case: statistics(own, sets[case]) for case, own in rows.items()}
        first, *others = statistics_of
        summary = {
            **statistics_of[first],
            "case": first,
            "cases": {case: statistics_of[case] for case in others},
            "preset": maker.name,
            "model": maker.model.name,
            "models": maker.model.models(),
            "seed": cases[0].settings.seed,
            **told,
            "missing": count - k - 1,  # clips, where the run was stopped
            "failed": failed,
            "not_measured": not_measured(networks, len(rows[first]), told["frames"], given.true is not None),
            "maker": maker.version,
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_results(out, summary, table(statistics_of, summary))
    ranked = sorted(rows[cases[0].label], key=lambda row: -row.get("psnr_novel", row["psnr_input"]))
    if ranked:
        overview(out / "sheets", [row["clip"] for row in ranked], out / "sheets" / "overview.png")
    run.finish()
    return summary


def _shown(given: _Input, views: Views | None, pixels: int) -> dict[str, Tensor]:
    """First rows of the sheet, each [4 or more, F, H, W, 4]."""
    if given.true is None:
        video = resized(given.video.movedim(1, -1), pixels)
        shown = {"input": video.expand(len(ORTHOGONAL), *video.shape)}
    else:
        shown = {"truth": given.true}
    return shown if views is None else {**shown, "model's views": views_of(views.video, pixels)}


def _measured(
    given: _Input, made: Made, views: Views | None, networks: Networks, pixels: int
) -> tuple[dict, Tensor]:  # the row; [8, F, H, W, 4]
    """The figures of one clip, and its pictures."""
    frames = len(given.video)
    drawn = drawn_from_all_sides(made.clip, frames, pixels)
    own = None if views is None else views_of(views.video, pixels)
    if given.true is None:
        figures = figures_without_truth(drawn, resized(given.video.movedim(1, -1), pixels), own, networks)
    else:
        still = drawn_from_all_sides(made.clip, frames, pixels, frozen=True)
        figures = figures_of(drawn, still, given.true, networks)
        figures |= {} if own is None else figures_of_views(own, given.true, networks)
    row = {
        **given.about,
        "clip": given.name,
        "prompt": given.prompt,
        "gaussians": made.clip.count,
        **figures,
        "seconds": made.seconds,
        "cpu_seconds": made.cpu_seconds,
        "stage_seconds": made.stage_seconds,
        "warnings": [*given.notes, *made.warnings],
    }
    return row, drawn


def statistics(rows: list[dict], sets: VideoSets) -> dict:
    """Mean and median of each figure over the clips of one case, mean seconds of each stage, and the clips."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)] if rows else []
    stages = dict.fromkeys(stage for row in rows for stage in row["stage_seconds"])

    def over_clips(how: Callable[[list[float]], np.ndarray]) -> dict[str, float]:
        return {name: float(how([row[name] for row in rows])) for name in names}

    return {
        "mean": over_clips(np.mean) | sets.distances(),
        "median": over_clips(np.median),
        "stage_seconds": {
            stage: float(np.mean([row["stage_seconds"].get(stage, 0.0) for row in rows])) for stage in stages
        },
        "assets": rows,
    }
