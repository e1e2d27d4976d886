# SPDX-License-Identifier: GPL-3.0-or-later
"""What every way to a clip ends with: construct it, describe it, write it."""

import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from backend.models import scene_flow
from backend.pipelines.scene_flow import observe_scene_flow
from backend.progress import Run, UserError
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import construct, discard_checkpoint
from backend.splatting.engine import Engine, choose_engine
from backend.splatting.estimate import demand_memory, estimate
from backend.splatting.guide import SurfaceMotion, movement_of
from backend.splatting.inspection import MOVE_CAMERAS
from backend.splatting.observations import Observations
from backend.splatting.rasterize import warm_up
from backend.versions import versions
from blender_addon.contract.clip import Clip, write_clip
from blender_addon.contract.surface import SurfaceSamples

WRITING = "Writing the clip"
RESULT_NAME = "clip.npz"


def engine_of(run: Run) -> Engine:
    """What a run's construction works on. Kernels that are yet to be compiled for it are compiled here.

    Raises:
        UserError: the run wants a GPU and nothing else, and there is none that can be used.
        JobCancelled: by `run`.
    """
    engine = choose_engine(run.device, run.say)
    for sentence in engine.notes:
        run.note(sentence)
    if not engine.is_gpu:
        warm_up(run.say)
    return engine


def construct_clip(
    moving: Observations,
    static: Observations | None,
    surface: SurfaceSamples | None,
    settings: dict,
    run: Run,
    changes: dict | None = None,
    told: SurfaceMotion | None = None,
    *,
    guided: bool = True,
    remedy: str = MOVE_CAMERAS,
) -> Clip:
    """The clip of an orbit as `settings` ask for it, on `run.device`.

    `settings` are those of a request: preset, gaussians, seed, and, where they are there,
    sh_degree, color_space and motion_model.
    `changes` are other values for fields of `ConstructConfig`; requests have none. `told`: the movement, where it was
    there before the pictures; that of an object that moves in its scene comes with `surface`. `guided`: whether else
    scene flow guides the motion, where there is its network; several views of each time need none. `remedy`: see
    `construct`.

    Raises:
        UserError: the inputs do not fit together, show nothing, or the fit went astray.
        JobCancelled: by `run`.
    """
    config = ConstructConfig.for_preset(settings["preset"], settings["gaussians"], settings["seed"])
    names = {"sh_degree": "sh_degree", "color_space": "color_space", "motion_model": "motion"}
    wanted = {names[name]: settings[name] for name in names if name in settings}  # older requests lack them
    config = replace(config, **wanted, **changes or {})
    engine = engine_of(run)
    told = told or movement_of(surface)
    in_pieces = surface is not None and surface.pieces is not None and config.motion == "bases"
    is_known = told is not None or in_pieces
    sizes = [views and tuple(views.images.shape[:3]) for views in (moving, static)]
    counts = len(moving.images), len(np.unique(moving.cameras.times))
    needed = estimate(config.suited(*counts, is_known=is_known), *sizes, on_gpu=engine.is_gpu)
    demand_memory(needed, config)
    run.say(needed.sentence(engine.name))
    if not is_known and guided and scene_flow.available():
        told = observe_scene_flow(moving, static, "cpu" if run.device == "cpu" else None, run.check)
    clip = construct(moving, static, surface, config, run, engine, told, remedy=remedy)
    numbers = (clip.means, clip.scales, clip.sh, *(array for array in vars(clip.motion).values() if array is not None))
    if not all(np.isfinite(array).all() for array in numbers):
        discard_checkpoint(run)  # a second attempt must not go on from there
        raise UserError(
            "construction_diverged",
            "The construction went astray and gave no usable clip.",
            "Try again with another seed or another preset.",
        )
    made = {"construction": asdict(config), "engine": engine.name, "guided": is_known or told is not None}
    return replace(clip, provenance={**clip.provenance, **made})


def finish_clip(request: dict, clip: Clip, run: Run) -> Path:
    """Name the clip and put it where the source object is; write it to `run.folder`."""
    run.begin(WRITING)
    to_object = np.array(request["inputs"]["to_object"], np.float64)
    fps = float(request["settings"]["fps"])
    path = run.folder / RESULT_NAME
    write_clip(path, replace(clip, name=request["name"], fps=fps, to_object=to_object))
    run.finish()
    return path


def provenance(pipeline: str, settings: dict, run: Run) -> dict:
    """What a clip tells about its making: only plain JSON."""
    return {
        "pipeline": pipeline,
        "settings": settings,
        "versions": versions(),
        "stage_seconds": {stage: round(seconds, 2) for stage, seconds in run.stage_seconds.items()},
        "warnings": list(run.notes),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
