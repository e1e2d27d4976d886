# SPDX-License-Identifier: GPL-3.0-or-later
"""Child process of `truth`: renders clips of one asset, as often as it is asked.

Question: {"renderer", "assets", "entry", "resolution", "samples", "clips": [{"index", "folder", "fingerprint"} ...]}
Answer: {}. Each clip's folder gets `moving.png` and `static.png` (the frames side by side) and, last, `truth.json`.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from backend.data.children import answer_questions
from backend.data.views import DatasetView
from backend.data.worker import open_renderer
from backend.evaluation.truth import VIDEOS, write_truth_json
from backend.progress import UserError
from blender_addon.contract.arrays import BadFileError, atomic_file


def answer(question: dict) -> dict:
    """Render; why a clip cannot be rendered is noted in its `truth.json`."""
    unusable: tuple[type[Exception], ...] = (UserError,)
    if question["renderer"] == "cycles":
        from blender_addon.subject import CaptureError  # needs Blender's module, as the other renderer does not

        unusable += (CaptureError,)
    try:
        renderer, problem = open_renderer(question), ""
    except (UserError, BadFileError, OSError) as error:
        renderer, problem = None, str(error)
    for clip in question["clips"]:
        folder, reason = Path(clip["folder"]), problem
        if renderer is not None:
            try:
                for video in VIDEOS:
                    frames = renderer.video(clip["index"], DatasetView(), video)
                    with atomic_file(folder / f"{video}.png") as file:
                        Image.fromarray(np.concatenate(list(frames), axis=1)).save(file, format="PNG")
            except unusable as error:
                reason = str(error)
        write_truth_json(folder, clip["fingerprint"], reason)
    return {}


if __name__ == "__main__":
    answer_questions(answer)
