# SPDX-License-Identifier: GPL-3.0-or-later
"""The way from a moving orbit that exists already to a clip: read, construct, describe. Nothing is generated."""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numba
import numpy as np
import torch

from backend import __version__
from backend.progress import Run, UserError
from backend.splatting.construct import STAGE_SHARES, ConstructConfig, construct, discard_checkpoint
from backend.splatting.observations import Observations, read_observations, read_orbit_folder
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.clip import Clip, write_clip
from blender_addon.contract.orbit import Cameras, SurfaceSamples, read_surface_samples

PIPELINE = "orbit"
READING, WRITING = "Reading the orbit", "Writing the clip"
RESULT_NAME = "clip.npz"


def run_request(request: dict, blob: Callable[[str], Path], run: Run) -> Path:
    """Do a request of kind `orbit` (see `blender_addon.contract.requests`), already checked against its schema.

    `blob` gives the file of a sha256. Returns the path of the clip, `clip.npz` in `run.folder`. The checkpoint stays
    there, as only the caller knows when the clip is safe.

    Raises:
        UserError: the inputs cannot be read, do not fit together, or show nothing.
        JobCancelled: by `run`.
    """
    settings, inputs = request["settings"], request["inputs"]
    run.plan({READING: 0.02, **STAGE_SHARES, WRITING: 0.03})
    run.begin(READING)
    try:
        moving = _observations(inputs["moving"], blob)
        static = _observations(inputs["static"], blob) if inputs["static"] else None
        surface = read_surface_samples(blob(inputs["surface"])) if inputs["surface"] else None
    except BadFileError as error:
        raise UserError("bad_input", str(error), "Render the orbit again.") from error
    config = ConstructConfig.for_preset(settings["preset"], settings["gaussians"], settings["seed"])
    clip = _construct(moving, static, surface, config, run)
    run.begin(WRITING)
    clip = replace(
        clip,
        name=request["name"],
        fps=float(settings["fps"]),
        to_object=np.array(inputs["to_object"], np.float64),
        provenance=_provenance(settings, config, run),
    )
    path = run.folder / RESULT_NAME
    write_clip(path, clip)
    run.finish()
    return path


def construct_folders(
    moving: Path,
    static: Path | None,
    surface: Path | None,
    *,
    preset: str = "preview",
    gaussians: int | None = None,
    seed: int = 0,
    fps: float = 24.0,
    name: str = "Clip",
    run: Run,
) -> Clip:
    """The clip of orbit folders and a file of surface samples, for command lines. Object space is clip space.

    The checkpoint stays in `run.folder`, as only the caller knows when the clip is safe.

    Raises:
        BadFileError: a folder or file cannot be read.
        UserError: the inputs do not fit together, or show nothing.
        JobCancelled: by `run`.
    """
    run.plan({READING: 0.02, **STAGE_SHARES})
    run.begin(READING)
    observations = read_orbit_folder(moving)
    still = read_orbit_folder(static) if static else None
    samples = read_surface_samples(surface) if surface else None
    config = ConstructConfig.for_preset(preset, gaussians, seed)
    clip = _construct(observations, still, samples, config, run)
    run.finish()
    settings = {"preset": preset, "gaussians": clip.count, "seed": seed, "fps": fps}
    return replace(clip, name=name, fps=float(fps), provenance=_provenance(settings, config, run))


def _observations(orbit: dict, blob: Callable[[str], Path]) -> Observations:
    return read_observations([blob(sha256) for sha256 in orbit["frames"]], Cameras.from_json(orbit["cameras"]))


def _construct(
    moving: Observations,
    static: Observations | None,
    surface: SurfaceSamples | None,
    config: ConstructConfig,
    run: Run,
) -> Clip:
    clip = construct(moving, static, surface, config, run)
    numbers = (clip.means, clip.scales, clip.sh, clip.motion.basis_translations)
    if not all(np.isfinite(array).all() for array in numbers):
        discard_checkpoint(run)  # a second attempt must not go on from there
        raise UserError(
            "construction_diverged",
            "The construction went astray and gave no usable clip.",
            "Try again with another seed or another preset.",
        )
    return clip


def _provenance(settings: dict, config: ConstructConfig, run: Run) -> dict:
    """What a clip tells about its making: only plain JSON."""
    return {
        "pipeline": PIPELINE,
        "settings": settings,
        "construction": asdict(config),
        "versions": {
            "kinesplat": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "numba": numba.__version__,
        },
        "stage_seconds": {stage: round(seconds, 2) for stage, seconds in run.stage_seconds.items()},
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
