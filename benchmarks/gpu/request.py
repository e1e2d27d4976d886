# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests of published size end to end: a text, an image and an object become clips.

Everything is done that a request does, but for reading weights from disk. Networks of noise paint nothing that could be
constructed: the VAE's decoder does its work, and its pictures are then exchanged for those of a disc.
"""

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backend.pipelines import diffusion4d
from backend.pipelines.diffusion4d_published import needed
from backend.pipelines.videomv_orbit import static_cameras
from backend.progress import Run
from backend.splatting.rasterize import warm_up
from benchmarks.gpu.orbit import disc
from benchmarks.gpu.setting import Clock, Setting, attempted, peak_gib, reset_peak, wait
from benchmarks.report import Figure
from blender_addon.contract.requests import PUBLISHED, generation_request

MOTION, GUIDANCE = 5.0, {"guidance_motion": 7.0, "guidance_static": 0.5}
SECONDS = 60.0  # that a request may take, and that have to be left for it


def measure(setting: Setting, clock: Clock) -> Iterator[dict | Figure]:
    """A row by kind of request, with the seconds of each stage."""
    warm_up(print)  # compiled once per computer
    for kind in setting.kinds:
        if not clock.case(f"a request of an {kind}" if kind != "text" else "a request of a text", SECONDS):
            continue
        row = attempted(partial(measured, kind, setting, clock), setting, kind=kind)
        yield row
        if "failed" in row:
            continue
        limit = SECONDS if setting.device.type == "cuda" else None
        yield Figure(f"{kind}, end to end", row["seconds"], "s", at_most=limit)


def measured(kind: str, setting: Setting, clock: Clock) -> dict:
    """One request, from its files to its clip."""
    loaded = setting.networks(*needed(kind != "object", kind == "image", MOTION, GUIDANCE["guidance_static"], False))
    with tempfile.TemporaryDirectory() as folder, showing(loaded["vae"]):
        files: dict[str, Path] = {}
        request = request_of(kind, setting, Path(folder), files)
        run = Run(Path(folder) / "work", device=setting.device.type)
        run.folder.mkdir()
        if setting.device.type == "cuda":
            run.device = "auto"  # construction may have to do without gsplat
        reset_peak(setting.device)
        start = time.perf_counter()
        diffusion4d.run_request(request, files.__getitem__, run, loaders=lambda dtype: loaders(loaded))
        wait(setting.device)
        seconds = time.perf_counter() - start
    for sentence in run.notes:
        clock.tell(f"{kind}: {sentence}")
    stages = {f"{stage} s": round(spent, 2) for stage, spent in run.stage_seconds.items()}
    return {"kind": kind, "preset": setting.preset, "seconds": seconds, "GiB": peak_gib(setting.device), **stages}


def loaders(loaded: dict[str, nn.Module]) -> dict[str, Callable[[], nn.Module]]:
    """Networks that are there already."""
    return {name: lambda network=network: network for name, network in loaded.items()}


def request_of(kind: str, setting: Setting, folder: Path, files: dict[str, Path]) -> dict:
    """A request; its pictures lie in `folder`, and in `files` by their hash."""

    def blob(picture: np.ndarray, name: str) -> str:
        path = folder / name
        Image.fromarray(picture).save(path)
        sha256 = hashlib.sha256(path.read_bytes() + name.encode()).hexdigest()  # frames that are equal are two files
        files[sha256] = path
        return sha256

    inputs: dict = {}
    if kind == "object":
        cameras = dataclasses.replace(static_cameras("text", setting.frames), times=np.zeros(setting.frames))
        pictures = disc(setting.frames, setting.pixels)
        frames = [blob(picture, f"{index}.png") for index, picture in enumerate(pictures)]
        inputs["static"] = {"frames": frames, "cameras": cameras.to_json()}
    elif kind == "image":
        inputs["image"] = blob(disc(1, setting.pixels)[0], "image.png")
    settings = {"motion": MOTION, "steps": setting.steps, "preset": setting.preset, "model": PUBLISHED, **GUIDANCE}
    return generation_request(kind, "benchmark", np.eye(4).tolist(), prompt="a ball bounces", **inputs, **settings)


@contextmanager
def showing(vae: nn.Module) -> Iterator[None]:
    """The VAE decodes a disc on white, whatever it is given, after the work that what it is given costs."""
    plain = vae.decode

    def decode(latents: Tensor, *given: object, **named: object) -> object:
        found = plain(latents, *given, **named)
        painted = disc(1, found.sample.shape[-1])[0]
        straight = torch.from_numpy(painted).to(found.sample.device).float() / 255
        on_white = straight[..., :3] * straight[..., 3:] + 1 - straight[..., 3:]
        shown = (on_white.permute(2, 0, 1) * 2 - 1).to(found.sample.dtype).expand_as(found.sample)
        return dataclasses.replace(found, sample=shown)

    vae.decode = decode
    try:
        yield
    finally:
        del vae.decode
