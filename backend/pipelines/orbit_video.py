# SPDX-License-Identifier: GPL-3.0-or-later
"""The way from a moving orbit that exists already to a clip: read, construct, describe. Nothing is generated."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from backend.pipelines import clips
from backend.progress import Run, UserError
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import STAGE_SHARES
from backend.splatting.engine import CPU, expected_engine
from backend.splatting.estimate import estimate
from backend.splatting.observations import Observations, read_observations, read_orbit_folders
from backend.splatting.orbit_folders import find_orbits
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.clip import Clip, travelling
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.surface import read_surface_samples

PIPELINE = "orbit"
READING = "Reading the orbit"


def run_request(request: dict, blob: Callable[[str], Path], run: Run) -> Path:
    """Do a request of kind `orbit` (see `blender_addon.contract.requests`), already checked against its schema.

    `blob` gives the file of a sha256. Returns the path of the clip, `clip.npz` in `run.folder`. The checkpoint stays
    there, as only the caller knows when the clip is safe.

    Raises:
        UserError: the inputs cannot be read, do not fit together, or show nothing.
        JobCancelled: by `run`.
    """
    settings, inputs = request["settings"], request["inputs"]
    run.plan({READING: 0.02, **STAGE_SHARES, clips.WRITING: 0.03})
    run.begin(READING)
    try:
        moving = _observations(inputs["moving"], blob)
        static = _observations(inputs["static"], blob) if inputs["static"] else None
        surface = read_surface_samples(blob(inputs["surface"])) if inputs["surface"] else None
    except BadFileError as error:
        raise UserError("bad_input", str(error), "Render the orbit again.") from error
    clip = clips.construct_clip(moving, static, surface, settings, run)
    if inputs.get("travel"):
        clip = travelling(clip, np.array(inputs["travel"]))
    return clips.finish_clip(request, described(clip, settings, run), run)


def construct_folders(
    moving: Path,
    static: Path | None,
    surface: Path | None,
    *,
    preset: str = "preview",
    gaussians: int | None = None,
    seed: int = 0,
    fps: float = 24.0,
    sh_degree: int = 0,
    color_space: str = "srgb",
    motion_model: str = "bases",
    name: str = "Clip",
    run: Run,
) -> Clip:
    """The clip of orbit folders and a file of surface samples, for command lines. Object space is clip space.

    Of the folders see `splatting.orbit_folders`.

    The checkpoint stays in `run.folder`, as only the caller knows when the clip is safe.

    Raises:
        BadFileError: a folder or file cannot be read.
        UserError: the inputs do not fit together, or show nothing.
        JobCancelled: by `run`.
    """
    run.plan({READING: 0.02, **STAGE_SHARES})
    run.begin(READING)
    observations, still = read_orbit_folders(moving, static)
    samples = read_surface_samples(surface) if surface else None
    settings = {
        "preset": preset,
        "gaussians": gaussians,
        "seed": seed,
        "fps": fps,
        "sh_degree": sh_degree,
        "color_space": color_space,
        "motion_model": motion_model,
    }
    clip = clips.construct_clip(observations, still, samples, settings, run)
    run.finish()
    settings["gaussians"] = clip.count
    return replace(described(clip, settings, run), name=name, fps=float(fps))


def estimate_folders(moving: Path, static: Path | None, preset: str, gaussians: int | None, device: str) -> str:
    """What `construct_folders` will cost, in a sentence; looks at the cameras alone.

    Raises:
        BadFileError: a folder has no usable cameras.
    """
    cameras = [orbit and orbit.cameras for orbit in find_orbits(moving, static)]
    sizes = [views and (len(views.times), views.height, views.width) for views in cameras]
    engine = expected_engine() if device == "auto" else CPU
    on_gpu = engine.is_gpu or device == "cuda"
    config = ConstructConfig.for_preset(preset, gaussians)
    config = config.suited(len(cameras[0].times), len(np.unique(cameras[0].times)), is_guided=False)
    needed = estimate(config, *sizes, on_gpu=on_gpu)
    return f"{needed.sentence('the GPU' if on_gpu else 'the CPU')}."


def described(clip: Clip, settings: dict, run: Run) -> Clip:
    """The clip with its provenance."""
    return replace(clip, provenance={**clips.provenance(PIPELINE, settings, run), **clip.provenance})


def _observations(orbit: dict, blob: Callable[[str], Path]) -> Observations:
    return read_observations([blob(sha256) for sha256 in orbit["frames"]], Cameras.from_json(orbit["cameras"]))
