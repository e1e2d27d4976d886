# SPDX-License-Identifier: GPL-3.0-or-later
"""A subject whose every picture is known, and a video network that knows it: for tests of 4Diffusion's fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from backend.guidance import sds
from backend.guidance.schedules import linear_schedule, prediction_of
from backend.pictures import on_white
from backend.pipelines.fourdiffusion import Anchor
from backend.pipelines.multi_view_video import DISTANCE, FOV, VIEWS, MultiViewVideo
from backend.progress import Run
from backend.splatting.render import render_clip
from backend.video.framing import FOURDIFFUSION
from blender_addon.contract.clip import BasisMotion, Clip
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera

GAUSSIANS = 160


def truth(frames: int = 8) -> Clip:
    """A speckled ball in the middle, and a smaller one that goes up beside it."""
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(GAUSSIANS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    small = np.arange(GAUSSIANS) >= GAUSSIANS * 2 // 3
    means = np.where(small[:, None], 0.1 * directions + [0.28, 0.0, -0.12], 0.18 * directions)
    colors = np.where(small[:, None], [0.9, 0.4, 0.1], [0.15, 0.35, 0.8]) + 0.1 * rng.normal(size=means.shape)
    quats = np.zeros((frames, 4, 4), np.float32)
    quats[..., 0] = 1
    translations = np.zeros((frames, 4, 3), np.float32)
    translations[:, 1, 2] = 0.28 * np.sin(np.linspace(0, np.pi / 2, frames))
    weights = np.zeros((GAUSSIANS, 4), np.float32)
    weights[np.arange(GAUSSIANS), small.astype(int)] = 1
    return Clip(
        means=means.astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (GAUSSIANS, 1)),
        scales=np.full((GAUSSIANS, 3), 0.035, np.float32),
        opacities=np.full(GAUSSIANS, 0.95, np.float32),
        sh=((colors.clip(0.05, 0.95) - 0.5) / 0.28209479177387814).astype(np.float32)[:, None],
        motion=BasisMotion(
            basis_quats=quats,
            basis_translations=translations,
            basis_index=np.tile(np.arange(4, dtype=np.int32), (GAUSSIANS, 1)),
            basis_weights=weights,
        ),
    )


def frozen_and_faded(clip: Clip) -> Clip:
    """The truth without its motion, and grey."""
    motion = replace(clip.motion, basis_translations=np.zeros_like(clip.motion.basis_translations))
    return replace(clip, motion=motion, sh=0.3 * clip.sh)


def standing_cameras(azimuth: float, frames: int, pixels: int, elevation: float = 0.0) -> Cameras:
    """One camera at all times."""
    return Cameras(
        np.repeat(orbit_camera(azimuth, elevation, DISTANCE)[None], frames, 0),
        np.repeat(intrinsics(FOV, pixels, pixels)[None], frames, 0),
        np.linspace(0, 1, frames),
        pixels,
        pixels,
    )


def straight(pictures: Tensor) -> Tensor:
    """Straight alpha of premultiplied."""
    return torch.cat([pictures[..., :3] / pictures[..., 3:].clamp(min=1e-3), pictures[..., 3:]], -1).clamp(0, 1)


def anchor_of(clip: Clip, pixels: int = 24) -> Anchor:
    cameras = standing_cameras(0, clip.frame_count, pixels)
    return Anchor(straight(render_clip(clip, cameras)), cameras)


def views_of(clip: Clip, pixels: int) -> MultiViewVideo:
    """As 4DM should make them."""
    cameras = tuple(standing_cameras(90 * view, clip.frame_count, pixels) for view in range(VIEWS))
    pictures = torch.stack([straight(render_clip(clip, each)) for each in cameras])
    return MultiViewVideo((pictures * 255).round().byte().numpy(), cameras)


def unseen_psnr(clip: Clip, look: Callable[[Cameras], Tensor], pixels: int = 24) -> float:
    """How near the pictures of other cameras than the anchor's are to the truth, on white, at all times."""
    errors = []
    for azimuth, elevation in ((70, 3.0), (160, 0.0), (250, 5.0)):
        cameras = standing_cameras(azimuth, clip.frame_count, pixels, elevation)
        difference = on_white(look(cameras)) - on_white(render_clip(clip, cameras))
        errors.append(float(difference.square().mean()))
    return -10 * float(np.log10(np.mean(errors)))


@dataclass
class Oracle:
    """Predicts the noise that leads to the truth, whatever it is shown. Its latents are pictures on white."""

    clip: Clip
    dtype: torch.dtype = torch.float32
    schedule: DDIMScheduler = field(default_factory=linear_schedule)
    scale: float = sds.GUIDANCE
    rescale: float = sds.RESCALE
    asked: list[dict] = field(default_factory=list)

    def encode(self, pictures: Tensor) -> Tensor:
        assert float(pictures.detach().min()) >= 0
        assert float(pictures.detach().max()) <= 1 + 1e-4
        colors = on_white(pictures, 1) * 2 - 1
        return torch.cat([colors, colors.mean(1, keepdim=True)], 1)

    def branches(self, poses: Tensor, frames: np.ndarray):
        return partial(self._predict, poses.double().numpy(), frames)

    def _predict(self, poses: np.ndarray, frames: np.ndarray, noisy: Tensor, timestep: Tensor) -> list[Tensor]:
        count, pixels = len(frames), noisy.shape[-1]
        self.asked.append({"frames": frames, "rows": len(noisy), "timestep": int(timestep[0]), "pixels": pixels})
        cameras = Cameras(
            np.tile(poses, (count, 1, 1)),
            np.repeat(intrinsics(FOV, pixels, pixels)[None], count * VIEWS, 0),
            np.repeat(frames / (self.clip.frame_count - 1), VIEWS),
            pixels,
            pixels,
        )
        known = self.encode(render_clip(self.clip, cameras).clamp(0, 1).movedim(-1, 1))
        answer = prediction_of(self.schedule, known, noisy, int(timestep[0]))
        return [answer, answer]


class KnowingModel:
    """A video model that knows the truth: its views are renders of it, and so is what it judges by."""

    name = "oracle"

    def __init__(self, clip: Clip, side: int = 48) -> None:
        self.framing, self.side, self.oracle = replace(FOURDIFFUSION, size=side), side, Oracle(clip)
        self.asked: list[dict] = []  # what views were asked for

    def models(self) -> list[dict]:
        return [{"name": self.name, "licence": "CC0-1.0"}]

    def views(self, video: Tensor, prompt: str, **how) -> MultiViewVideo:
        self.asked.append({"video": video, "prompt": prompt, **how})
        how["run"].report(1, 1)
        how["run"].note("The oracle knew it.")
        return views_of(self.oracle.clip, self.side)

    @contextmanager
    def guidance(self, video: Tensor, prompt: str, run: Run) -> Iterator[Oracle]:
        yield self.oracle
