# SPDX-License-Identifier: GPL-3.0-or-later
"""Child process of `truth`: renders clips of one model in Blender's Python module, by the add-on's own code.

Reads a job from standard input: {"file", "clips": [{"action", "time_range", "recentre", "folder", "fingerprint"}]}.
Each clip's folder gets `moving` and `static` (orbit folders) and, last, `truth.json`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np

from backend.data.blender_model import FPS, BlenderModel, open_model
from backend.evaluation.truth import FRAMES, RESOLUTION, SAMPLES, write_truth_json
from backend.progress import UserError
from blender_addon import orbit_render
from blender_addon.contract.orbit import Orbit
from blender_addon.subject import CaptureError


def main() -> None:
    """Do the job on standard input. What cannot be rendered is noted in its clip's `truth.json`."""
    job = json.load(sys.stdin)
    model, problem = None, ""
    try:
        model = open_model(Path(job["file"]))
    except UserError as error:
        problem = str(error)
    for clip in job["clips"]:
        folder = Path(clip["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        reason = problem
        if model is not None:
            try:
                render(model, clip["action"], clip["time_range"], clip["recentre"], folder)
            except (UserError, CaptureError) as error:
                reason = str(error)
        write_truth_json(folder, clip["fingerprint"], reason)


def render(model: BlenderModel, action: str, time_range: list[float], recentre: bool, folder: Path) -> None:
    """Moving and static orbit of one action, in the clip space of its first moment as if the model were a still one.

    With `recentre` the middle of the bounding box stays where it is at first: training takes travel out in this way.
    """
    model.play(action)
    model.stay()
    start, end = (FPS * seconds for seconds in time_range)
    if recentre:
        frames = np.linspace(start, end, FRAMES)
        middles = np.stack([_space(model, frame).to_world[:3, 3] for frame in frames])
        model.drift(middles[0] - middles, frames)
    space = replace(_space(model, start), frame_range=(start, end))
    for moving, name in ((True, "moving"), (False, "static")):
        steps = orbit_render.render_orbit_steps(
            space, Orbit(FRAMES), folder / name, resolution=RESOLUTION, moving=moving, samples=SAMPLES, engine="CYCLES"
        )
        for _ in steps:
            pass


def _space(model: BlenderModel, frame: float) -> orbit_render.ClipSpace:
    return orbit_render.measure(bpy.context, model.root, (frame, frame))


if __name__ == "__main__":
    main()
