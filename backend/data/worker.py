# SPDX-License-Identifier: GPL-3.0-or-later
"""Child process of `render_dataset`: bakes a model, or renders and curates one shard, as often as it is asked.

Questions:
    {"do": "bake", "file", "clips", "out"}
    {"do": "shard", "renderer", "assets", "entry", "clips": [[number, [view ...]] ...], "resolution", "samples",
     "limits", "file"}
Answers: {"error": text} or what the shard holds.
"""

from pathlib import Path

import numba
import numpy as np
import torch

from backend.data import curation
from backend.data.baked import baked_file
from backend.data.captions import caption
from backend.data.children import answer_questions
from backend.data.shards import RenderedSample, write_shard
from backend.data.views import FRAMES, DatasetView
from backend.models.motion_magnitude import magnitude_of
from backend.progress import UserError
from blender_addon.contract.arrays import BadFileError

BAKE_TOLERANCE = 0.02  # of the longest side
NOT_BAKED = "moves in ways that bones cannot tell, such as shape keys"


def main() -> None:
    """Answer until standard input closes."""
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    answer_questions(answer)


def answer(question: dict) -> dict:
    """Do what is asked; what a person can put right comes back as `error`."""
    try:
        return {"bake": bake, "shard": shard}[question["do"]](question)
    except (UserError, BadFileError, OSError) as error:
        return {"error": " ".join(filter(None, [str(error), getattr(error, "hint", "")]))}


def bake(question: dict) -> dict:
    """Bake one model."""
    from backend.data.bake import bake

    bake(Path(question["file"]), question["clips"], Path(question["out"]))
    return {}


def shard(question: dict) -> dict:
    """Render the views of some clips of one asset, keep what is fit, write the shard."""
    entry, limits = question["entry"], curation.Limits(**question["limits"])
    renderer = open_renderer(question)
    kept, rejected = [], []
    errors = bake_errors(question)
    for clip, views in question["clips"]:
        action = entry["clips"][clip]["action"]
        for number, numbers in enumerate(views):
            view = DatasetView(**numbers)
            if errors[clip] > BAKE_TOLERANCE:
                sample, about = None, {"reason": NOT_BAKED, "error": round(float(errors[clip]), 3)}
            else:
                sample, about = render(renderer, clip, view, limits)
            about = {"asset": entry["id"], "action": action, "view": view.to_json(), **about}
            if sample is None:
                rejected.append(about)
                continue
            info = {
                **about,
                "caption": caption(entry, action),
                **{name: entry.get(name) for name in ("family", "licence", "author", "source_repo")},
                "renderer": question["renderer"],
                "frames": FRAMES,
                "cameras": view.cameras(question["resolution"], "moving").to_json(),
            }
            key = f"{entry['id'].replace('/', '__')}_{clip:03d}_{number}".replace(".", "_")
            kept.append(RenderedSample(key, info, **sample))
    path = Path(question["file"])
    written = {"sha256": write_shard(path, kept), "bytes": path.stat().st_size} if kept else {}
    samples = [
        {"key": one.key, **{name: one.info[name] for name in ("asset", "action", "caption", "magnitude")}}
        for one in kept
    ]
    return {**written, "samples": samples, "rejected": rejected}


def bake_errors(question: dict) -> np.ndarray:  # [clips]
    """How far the bake of each clip is from the model, where that is known."""
    entry = question["entry"]
    if question["renderer"] == "fast":
        with np.load(baked_file(Path(question["assets"]), entry), allow_pickle=False) as arrays:
            if "error" in arrays:
                return arrays["error"]
    return np.zeros(len(entry["clips"]))


def open_renderer(question: dict):
    """The renderer that is asked for, with the asset loaded."""
    assets, entry, resolution = Path(question["assets"]), question["entry"], question["resolution"]
    if question["renderer"] == "cycles":
        from backend.data.blender_renderer import BlenderRenderer

        return BlenderRenderer(assets, entry, resolution, question["samples"])
    from backend.data.fast_renderer import FastRenderer

    return FastRenderer(assets, entry, resolution)


def render(renderer, clip: int, view: DatasetView, limits: curation.Limits) -> tuple[dict | None, dict]:
    """The three videos of a view, or None, and what was measured; `reason` says why there are none."""
    try:
        front = renderer.video(clip, view, "front")
        about: dict = {"ssim": [round(value, 4) for value in curation.front_ssims(front)]}
        reason = curation.why_front_is_unfit(front, limits)
        if reason:
            return None, {**about, "reason": reason}
        moving, static = (renderer.video(clip, view, video) for video in ("moving", "static"))
    except RuntimeError as error:  # the add-on's CaptureError, among what Blender raises
        return None, {"reason": f"cannot be rendered: {str(error).strip()}"}
    about["magnitude"] = round(magnitude_of(moving, static), 4)
    reason = curation.why_orbit_is_unfit(moving, static, limits)
    return (
        (None, {**about, "reason": reason}) if reason else ({"moving": moving, "static": static, "front": front}, about)
    )


if __name__ == "__main__":
    main()
