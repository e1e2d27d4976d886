# SPDX-License-Identifier: GPL-3.0-or-later
"""Child process of `truth`: renders one clip of an asset, as often as it is asked.

Question: {"renderer", "assets", "entry", "clip", "folder", "fingerprint", "resolution", "samples",
    "shots": {name: {"cameras", "samples"}}, "tracked": number of points or 0}
Answer: {}, or {"error": text}. The folder gets one `NAME.png` per shot, `surface.npz` and `tracks.npz` if wanted, and
last `truth.json`.
"""

from pathlib import Path

import numpy as np

from backend.data.children import answer_questions
from backend.data.surface_points import follow_surface
from backend.data.worker import open_renderer
from backend.evaluation.truth import (
    MOVING,
    STATIC,
    surface_path,
    tracks_path,
    why_unfit,
    write_pictures,
    write_truth_json,
)
from backend.progress import UserError
from blender_addon.contract.arrays import BadFileError, write_arrays
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.surface import write_surface_samples


def answer(question: dict) -> dict:
    """Render; why a clip cannot be rendered is noted in its `truth.json`. What else goes wrong is the answer."""
    unusable: tuple[type[Exception], ...] = (UserError, BadFileError)
    if question["renderer"] == "cycles":
        from blender_addon.subject import CaptureError  # needs Blender's module, as the other renderer does not

        unusable += (CaptureError,)
    try:
        try:
            problem = _render(question)
        except unusable as error:
            problem = str(error)
        write_truth_json(Path(question["folder"]), question["fingerprint"], problem)
    except OSError as error:  # such as a full disk: another time it may work
        return {"error": str(error)}
    return {}


def _render(question: dict) -> str:
    """Why the clip is no fair test, as soon as that is known; empty where it is rendered."""
    folder, clip = Path(question["folder"]), question["clip"]
    renderer = open_renderer(question)
    shown: dict[str, np.ndarray] = {}
    for name, shots in question["shots"].items():
        pictures = renderer.pictures(clip, Cameras.from_json(shots["cameras"]), samples=shots["samples"])
        write_pictures(folder, name, pictures)
        shown[name] = pictures
        if shown.keys() == {MOVING, STATIC} and (problem := why_unfit(shown[MOVING], shown[STATIC])):
            return problem
    if question["tracked"]:
        write_surface_samples(surface_path(folder), renderer.surface(clip))
        write_arrays(tracks_path(folder), {"points": follow_surface(renderer.triangles(clip), question["tracked"])})
    return ""


if __name__ == "__main__":
    answer_questions(answer)
