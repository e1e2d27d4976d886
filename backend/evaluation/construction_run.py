# SPDX-License-Identifier: GPL-3.0-or-later
"""Evaluation of construction: clips from true pictures, and how they look from where nobody has shown them.

A constructor is handed in, so that tests can bring one whose result is known. Cases differ in what it is given:

- `object`: moving orbit, static orbit, points on the surface and their movement, as of an object in the scene;
- `pictures`: the same without the movement, which the pictures alone have to tell: as of a filmed orbit;
- `hull`: the same without surface samples, as of a text or an image;
- `views8`: as `pictures`, with 8 views of every time instead of one.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from backend.evaluation.choice import ChosenClip
from backend.evaluation.construction import evaluate_construction, psnr_by_frame
from backend.evaluation.construction_sheets import Result, clip_sheet, table
from backend.evaluation.construction_truth import RESOLUTION, GridTruth, TruthFolder
from backend.evaluation.constructor import Constructor
from backend.evaluation.networks import Networks
from backend.evaluation.sheets import overview
from backend.evaluation.tables import write_results
from backend.evaluation.truth import none_usable
from backend.progress import Run, UserError
from backend.splatting.observations import Observations
from backend.versions import versions
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.clip import Clip, read_clip, write_clip
from blender_addon.contract.surface import SurfaceSamples

CASES = ("object", "pictures", "hull", "views8")
RENDERING, RENDERING_SEVERAL, CONSTRUCTING = "Rendering the truth", "Rendering more views", "Constructing"
LOWER_IS_BETTER = ("dssim", "lpips", "track_error", "seconds", "cpu_seconds")


def evaluate_constructions(
    assets: Path,
    clips: list[ChosenClip],
    out: Path,
    constructor: Constructor,
    *,
    cases: tuple[str, ...] = ("object", "hull"),
    renderer: str = "cycles",
    limit: int | None = None,
    truths: Path | None = None,
    networks: Networks = Networks(),  # noqa: B008 - frozen
    resolution: int = RESOLUTION,
    run: Run,
) -> dict:
    """Evaluate a constructor; returns the summary, which is written as well.

    Args:
        assets: folder of the manifest that `clips` come from.
        out: gets `summary.json` and `table.md` (after each clip), `sheets/`, and what a later run can use: `clips/`.
        cases: of `CASES`; the first is the one whose figures stand at the top of the summary.
        renderer: of the truth.
        limit: of clips; those that are no fair test are passed over and do not count.
        truths: where true pictures are kept; by default in `out`.
        resolution: of all pictures.

    Raises:
        UserError: no clip can be used, or what `truth.render_usable` raises.
        JobCancelled: by `run`.
    """
    started = time.monotonic()
    several = "views8" in cases
    run.plan({RENDERING: 1.0, **({RENDERING_SEVERAL: 1.0} if several else {}), CONSTRUCTING: 1.5 * len(cases)})
    folder = TruthFolder(assets, (truths or out) / f"truth_{renderer}", renderer, several, resolution)
    usable, left_out = folder.render(clips, limit, run, {"grid": RENDERING, "several": RENDERING_SEVERAL})
    if not usable:
        raise none_usable(left_out)

    run.begin(CONSTRUCTING)
    rows: dict[str, list[dict]] = {case: [] for case in cases}
    failed: dict[str, str] = {}
    sheets = out / "sheets"
    for k, clip in enumerate(usable):
        truth = folder.read(clip)
        results = []
        for j, case in enumerate(cases):
            part = partial(run.part, k * len(cases) + j, len(usable) * len(cases))
            given = _given(truth, case)
            try:
                made = _kept(out / "clips" / case / f"{clip.name}.npz", constructor, given, out / "construction", part)
            except UserError as error:
                failed[f"{case} {clip.name}"] = f"{error} {error.hint}".rstrip()
                continue
            figures = evaluate_construction(made, given[0], truth.unseen, truth.tracks, networks.lpips)
            rows[case].append(_row(truth, made, figures) | {"by_frame": psnr_by_frame(made, truth.unseen)})
            results.append(Result(case, made, rows[case][-1]))
        if results:
            sheets.mkdir(parents=True, exist_ok=True)
            clip_sheet(truth, results).save(sheets / f"{clip.name}.png")
        by_case = {case: _statistics(own) for case, own in rows.items()}
        summary = {
            **by_case[cases[0]],
            "case": cases[0],
            "cases": {case: by_case[case] for case in cases[1:]},
            "preset": constructor.name,
            "renderer": renderer,
            "resolution": resolution,
            "missing": len(usable) - k - 1,  # clips, where the run was stopped
            "left_out": left_out,
            "failed": failed,
            "not_measured": {name: why for name, why in networks.missing().items() if name == "lpips"},
            "constructor": constructor.version,
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_results(out, summary, table(by_case, summary))
    for case, own in rows.items():
        if own:
            ranked = [row["clip"] for row in sorted(own, key=lambda row: -row["psnr_unseen"])]
            overview(sheets, ranked, sheets / f"{case}_overview.png")
    run.finish()
    return summary


def _given(truth: GridTruth, case: str) -> tuple[Observations, Observations, SurfaceSamples | None]:
    """What a construction gets."""
    moving = truth.several if case == "views8" else truth.moving
    surfaces = {"object": truth.surface, "hull": None}
    return moving, truth.static, surfaces.get(case, truth.surface.standing())


def _kept(
    path: Path,
    constructor: Constructor,
    given: tuple[Observations, Observations, SurfaceSamples | None],
    work: Path,
    part: Callable[[Path], Run],
) -> Clip:
    """The clip, constructed if the file is not of these inputs; its provenance tells how long that took."""
    key = _key(constructor, given)
    try:
        clip = read_clip(path)
        if clip.provenance["evaluation"]["key"] == key:
            part(work).finish()
            return clip
    except (FileNotFoundError, BadFileError, KeyError):  # not there, or damaged: it is made again
        pass
    shutil.rmtree(work, ignore_errors=True)  # a checkpoint would make the time that is told too short
    work.mkdir(parents=True)
    run = part(work)
    wall, cpu = time.monotonic(), time.process_time()
    clip = constructor.construct(*given, run)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    told = {"key": key, "seconds": wall, "cpu_seconds": cpu, "warnings": run.notes}
    clip = replace(clip, provenance={**clip.provenance, "evaluation": told})
    write_clip(path, clip)
    shutil.rmtree(work, ignore_errors=True)
    return clip


def _key(constructor: Constructor, given: tuple[Observations, Observations, SurfaceSamples | None]) -> str:
    digest = hashlib.sha256(constructor.version.encode())
    moving, static, surface = given
    for views in (moving, static):
        digest.update(json.dumps(views.cameras.to_json()).encode())
        digest.update(views.images.numpy().tobytes())
    if surface is not None:
        for array in filter(lambda array: array is not None, vars(surface).values()):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _row(truth: GridTruth, clip: Clip, figures: dict[str, float]) -> dict:
    """All figures of one clip."""
    told = clip.provenance["evaluation"]
    return {
        "asset": truth.clip.entry["id"],
        "family": truth.clip.entry["family"],
        "action": truth.clip.action,
        "clip": truth.clip.name,
        "magnitude": truth.magnitude,
        "gaussians": clip.count,
        **figures,
        "seconds": told["seconds"],
        "cpu_seconds": told["cpu_seconds"],
        "warnings": told["warnings"],
    }


def _statistics(rows: list[dict]) -> dict:
    """Mean, median and worst value of each figure over the clips of one case, and the clips; by PSNR the extremes."""
    figures = [name for name, value in rows[0].items() if isinstance(value, float)] if rows else []
    columns = {name: np.array([row[name] for row in rows]) for name in figures}
    ranked = sorted(rows, key=lambda row: row["psnr_unseen"])
    return {
        "mean": {name: float(values.mean()) for name, values in columns.items()},
        "median": {name: float(np.median(values)) for name, values in columns.items()},
        "worst": {
            name: float(values.max() if name.startswith(LOWER_IS_BETTER) else values.min())
            for name, values in columns.items()
            if name != "magnitude"
        },
        "best_clip": ranked[-1]["clip"] if ranked else None,
        "worst_clip": ranked[0]["clip"] if ranked else None,
        "assets": rows,
    }
