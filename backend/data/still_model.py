# SPDX-License-Identifier: GPL-3.0-or-later
"""Child process of `object_capture`: a model file as the add-on captures a still object. One step per question."""

from collections.abc import Generator
from pathlib import Path

import bpy

from backend.data.blender_model import open_model
from backend.data.children import answer_questions
from backend.progress import UserError
from blender_addon import clip_space, orbit_render
from blender_addon.contract.orbit import Orbit
from blender_addon.subject import CaptureError


def main() -> None:
    """Answer until standard input closes: the first question is the job, each further one asks for another step."""
    steps: Generator[dict, None, None] | None = None

    def answer(question: dict) -> dict:
        nonlocal steps
        try:
            steps = steps or capture_steps(question)
            return next(steps)
        except (UserError, CaptureError) as error:
            return {"error": str(error)}

    answer_questions(answer)


def capture_steps(job: dict) -> Generator[dict, None, None]:
    """Yields {"stage", "done", "total"}, last {"to_object": 4x4}.

    job: "file" of the model, "folder" that gets `static/` and `surface.npz`, "frames", "resolution", "samples".
    """
    model = open_model(Path(job["file"]))
    model.rest()
    now = bpy.context.scene.frame_current
    space = yield from _told(clip_space.measure_steps(bpy.context, model.root, (now, now)))
    orbit = Orbit(frames=job["frames"])
    settings = {"resolution": job["resolution"], "samples": job["samples"], "fps": 24.0, "engine": "CYCLES"}
    yield from _told(orbit_render.capture_still_steps(space, orbit, Path(job["folder"]), **settings))
    yield {"to_object": space.to_object.tolist()}


def _told(steps: Generator) -> Generator[dict, None, object]:
    """A capture's own steps as answers; returns what it returns."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return end.value
        yield {"stage": progress.stage, "done": progress.done, "total": progress.total}


if __name__ == "__main__":
    main()
