# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipelines for window tests: what is generated sways, and a video becomes a cardboard figure of its subject, in place
of networks; everything else is the product's own.
"""

import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from backend.models.motion_magnitude import magnitude_of
from backend.pictures import on_white
from backend.pipelines import diffusion4d, orbit_video
from backend.pipelines.orbit_pictures import Views
from backend.progress import Run
from backend.splatting.config import ConstructConfig
from backend.video.intake import STAGE_SHARES, take_in
from backend.video.reading import Span
from blender_addon.contract.clip import Clip, FrameMotion, write_clip
from blender_addon.contract.frames import GeneratedFrames
from blender_addon.contract.surface import SurfaceSamples


def generate(
    static: Views,
    further: Views | None,
    image: np.ndarray | None,
    surface: SurfaceSamples | None,
    settings: dict,
    run: Run,
) -> GeneratedFrames:
    """The static orbit with its upper part swaying from side to side, once or more often as the seed says.

    Where the prompt says that it stumbles, it fails.
    """
    run.begin(diffusion4d.MOVING)
    if "stumbles" in settings["prompt"]:
        raise ZeroDivisionError("as the prompt asks")
    pictures, cameras = static
    count, height = pictures.shape[:2]
    moving = np.empty_like(pictures)
    for frame in range(count):
        swing = np.sin(2 * np.pi * (1 + settings["seed"] % 3) * frame / (count - 1))
        for row in range(height):
            shift = round(0.04 * settings["motion"] / 3 * height * swing * (1 - row / height))
            moving[frame, row] = np.roll(pictures[frame, row], shift, axis=0)
        run.report(frame + 1, count, lambda frame=frame: moving[frame, ..., :3].copy())
    measured = magnitude_of(moving, pictures)
    return GeneratedFrames(
        moving, pictures, cameras, settings["prompt"], settings["motion"], measured, settings["seed"],
        {"warnings": ["The model does not know: wonderfully."] if "wonderfully" in settings["prompt"] else []},
    )  # fmt: skip


def run_request(request: dict, blob, run: Run) -> Path:
    """As the product's, with frames that need no network, and few steps to construct them."""
    few = {"shape_steps": 60, "coarse_steps": 60, "fine_steps": 30}
    for_preset = ConstructConfig.for_preset
    shorter = lambda *given: replace(for_preset(*given), **few)  # noqa: E731
    with patch.object(diffusion4d, "generate", generate), patch.object(ConstructConfig, "for_preset", shorter):
        return diffusion4d.run_request(request, blob, run)


CORRECTING = "Correcting all sides"
CARDBOARD = 600  # Gaussians at most


def run_video(request: dict, blob, run: Run) -> Path:
    """The subject as the first frame shows it, flat and upright, moving as its middle does in the frames."""
    settings, inputs = request["settings"], request["inputs"]
    run.plan({**STAGE_SHARES, CORRECTING: 2.0})
    span = Span(inputs["start"], inputs["end"])
    seen = take_in(blob(inputs["video"]), run, count=settings["frames"], span=span, method=settings["cutout"])
    run.begin(CORRECTING)
    picture = np.rint(255 * on_white(torch.from_numpy(seen.frames[0])).numpy()).astype(np.uint8)
    for step in range(25):
        time.sleep(0.2)  # for a window on a busy computer to see some of it
        run.report(step, 25, lambda: picture, detail=f"distillation {0.3 - step / 100:.2f}, anchor {9 - step / 5:.1f}")
    side = seen.frames.shape[1]
    middles = [np.argwhere(frame[..., 3] > 0.5).mean(axis=0) / side for frame in seen.frames]
    pixels = np.argwhere(seen.frames[0, ..., 3] > 0.9)
    pixels = pixels[:: -(-len(pixels) // CARDBOARD)]
    count = len(pixels)
    means = np.zeros((count, 3), np.float32)
    means[:, 0], means[:, 2] = pixels[:, 1] / side - 0.5, 0.5 - pixels[:, 0] / side
    moved = np.array([(right, 0, -down) for down, right in np.subtract(middles, middles[0])], np.float32)
    quats = np.tile(np.float32((1, 0, 0, 0)), (count, 1))
    colors = seen.frames[0][tuple(pixels.T)][:, :3]
    clip = Clip(
        means, quats, np.full((count, 3), 0.02, np.float32), np.ones(count, np.float32),
        ((colors - 0.5) / 0.28209)[:, None].astype(np.float32),
        FrameMotion(means + moved[:, None], np.tile(quats, (len(moved), 1, 1))),
        name=request["name"], fps=settings["fps"], to_object=np.array(inputs["to_object"]),
    )  # fmt: skip
    run.finish()
    write_clip(run.folder / "clip.npz", clip)
    return run.folder / "clip.npz"


PIPELINES = {"orbit": orbit_video.run_request, "object": run_request, "text": run_request, "video": run_video}
