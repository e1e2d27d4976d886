# SPDX-License-Identifier: GPL-3.0-or-later
"""4D-aware score distillation with 4DM of published size: a step by representation and size of the renders.

From the steps follows what the documented number of them takes, and with the views that come before, a whole fit.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from backend.pipelines.fourdiffusion import Anchor, step
from backend.pipelines.fourdiffusion_guidance import Conditions, FourDMGuidance
from backend.pipelines.fourdiffusion_settings import MILESTONES, Settings
from backend.pipelines.fourdiffusion_subjects import FieldSubject, GaussianSubject, Subject
from backend.pipelines.memory_plan import PLANS
from backend.pipelines.multi_view_video import VIEWS, MultiViewVideo, view_poses
from backend.splatting.engine import choose_engine
from backend.splatting.rasterize import warm_up
from benchmarks.gpu.orbit import disc
from benchmarks.gpu.setting import Clock, Setting, attempted, matrix_rate, peak_gib, reset_peak, timed, wait
from benchmarks.report import Figure
from blender_addon.contract.clip import BasisMotion, Clip

REPRESENTATIONS = ("gaussians", "nerf")
SECONDS = 20.0  # that have to be left for a size of the renders
MINUTES = 10.0  # for 4DM's views and the fit of Gaussians
LONG = 15.0  # seconds of steps after which no more are made
SLOW = 5.0  # seconds of a step after which larger renders are not tried


def measure(setting: Setting, clock: Clock) -> Iterator[dict | Figure]:
    """Rows by representation and size; the parts of a step; figures of whole fits."""
    device, loaded = setting.device, setting.networks("vae", "fourdm")
    vae, network = (loaded[name].to(device) for name in ("vae", "fourdm"))
    known = conditions(setting)
    guidance = FourDMGuidance(vae, network, known, PLANS[0], device, setting.dtype)
    rate = matrix_rate(setting.matrix, device, setting.dtype)

    def tried(work: Callable[[], dict], **known: object) -> dict:
        row = attempted(work, setting, **known)
        vae.to(device), network.to(device)  # a failure sends them away
        return row

    denoised = tried(partial(denoising, guidance, setting, rate), what="4DM, both branches")
    yield denoised
    what = "VAE of the renders, and back, as in the steps below"
    yield tried(partial(encoding, guidance, what, setting), what=what)
    before = FourDMGuidance(vae, network, known, PLANS[0], device, torch.float32, keep=False)
    what = "VAE of the renders, and back, in float32 and once more for the gradient"
    yield tried(partial(encoding, before, what, setting), what=what)
    del before
    for representation in REPRESENTATIONS:
        settings = replace(Settings.for_preset("published", representation), **setting.sds_changes)
        steps: list[float] = []
        for index, pixels in enumerate(settings.pixels):
            if steps and steps[-1] > SLOW:
                clock.tell(f"{representation}: renders of {pixels} px and more were not tried, as steps are slow.")
                break
            if not clock.case(f"{representation}, renders of {pixels} px", SECONDS):
                break
            label = {"what": "step of a fit", "representation": representation, "pixels": pixels}
            row = tried(partial(steps_of, representation, guidance, settings, index, setting, clock), **label)
            yield row
            if "failed" in row:
                break
            steps.append(row["s a step"])
        if len(steps) == len(settings.pixels) and "failed" not in denoised:
            views = setting.video_steps * denoised["seconds"]
            seconds = sum(
                (end - begin) * settings.iterations * one
                for one, begin, end in zip(steps, MILESTONES, (*MILESTONES[1:], 1.0), strict=True)
            )
            limit = MINUTES if representation == "gaussians" and device.type == "cuda" else None
            what = (
                f"{representation}, views of 4DM ({setting.video_steps} steps) and {settings.iterations} steps of a fit"
            )
            yield Figure(what, (views + seconds) / 60, "minutes, from the times of single steps", at_most=limit)


def conditions(setting: Setting) -> Conditions:
    """Noise of the right shapes."""
    random = torch.Generator().manual_seed(0)
    features, width = setting.image_features
    frames, side = setting.video_frames, setting.pixels // 8
    return Conditions(
        torch.randn(2, 77, setting.text_width, generator=random).to(setting.device),
        torch.randn(frames, features, width, generator=random),
        torch.randn(frames, 4, side, side, generator=random),
    )


def denoising(guidance: FourDMGuidance, setting: Setting, rate: float) -> dict:
    """What a step asks of 4DM."""
    device, frames = setting.device, setting.video_frames
    poses = torch.from_numpy(view_poses(0.0)).float()
    side = setting.pixels // 8
    latents = torch.randn(frames * VIEWS, 4, side, side, device=device).to(setting.dtype)
    rows = torch.full((len(latents),), 500, device=device)
    with torch.no_grad():
        branches = guidance.branches(poses, np.arange(frames))
        seconds = timed(lambda: branches(latents, rows), device, setting.repeats)
    told = {"what": "4DM, both branches", "seconds": seconds}
    return {**told, "of the matrix rate": setting.operations["fourdm"]() / seconds / rate}


def encoding(guidance: FourDMGuidance, what: str, setting: Setting) -> dict:
    """The way from renders to latents, and the gradient's way back."""
    count, side = setting.video_frames * VIEWS, setting.pixels
    pictures = torch.rand(count, 4, side, side, device=setting.device).requires_grad_()
    reset_peak(setting.device)
    seconds = timed(lambda: guidance.encode(pictures).square().sum().backward(), setting.device, setting.repeats)
    return {"what": what, "seconds": seconds, "GiB": peak_gib(setting.device)}


def subject_of(representation: str, settings: Settings, setting: Setting, clock: Clock) -> Subject:
    """What is optimised: a ball of Gaussians, or a field as it begins."""
    if representation == "nerf":
        return FieldSubject(settings.grid, settings.quality, 0, setting.device)
    warm_up(print)  # compiled once per computer
    engine = choose_engine("auto" if setting.device.type == "cuda" else "cpu", print)
    for sentence in engine.notes:
        clock.tell(sentence)
    return GaussianSubject(ball(setting.sds_gaussians, setting.video_frames), engine.device)


def steps_of(
    representation: str, guidance: FourDMGuidance, settings: Settings, index: int, setting: Setting, clock: Clock
) -> dict:
    """Steps at the size of the renders that comes `index`-th: the median."""
    subject = subject_of(representation, settings, setting, clock)
    pictures = np.repeat(disc(setting.video_frames, setting.pixels)[None], VIEWS, 0)
    anchor = Anchor.of(MultiViewVideo.standing(pictures, np.linspace(0, 1, setting.video_frames), 0.0))
    first = int(np.ceil(MILESTONES[index] * settings.iterations))
    reset_peak(setting.device)
    times, warm = [], setting.sds_steps[0]
    for iteration in range(first, first + sum(setting.sds_steps)):
        wait(setting.device)
        start = time.perf_counter()
        step(subject, guidance, anchor, settings, iteration)
        wait(setting.device)
        times.append(time.perf_counter() - start)
        if len(times) > 1 and (sum(times) > LONG or not clock.allows(times[-1])):
            break
    return {
        "what": "step of a fit",
        "representation": representation,
        "pixels": settings.pixels[index],
        "s a step": statistics.median(times[warm:] or times[-1:]),
        "GiB": peak_gib(setting.device),
    }


def ball(count: int, frames: int) -> Clip:
    """A clip of Gaussians on a sphere, which stand still."""
    directions = np.random.default_rng(0).normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    quats = np.zeros((frames, 64, 4), np.float32)
    quats[..., 0] = 1
    weights = np.zeros((count, 4), np.float32)
    weights[:, 0] = 1
    index = np.random.default_rng(1).integers(0, 64, (count, 4)).astype(np.int32)
    return Clip(
        means=(0.35 * directions).astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        scales=np.full((count, 3), 1.5 / count**0.5, np.float32),
        opacities=np.full(count, 0.9, np.float32),
        sh=(0.5 * directions).astype(np.float32)[:, None],
        motion=BasisMotion(quats, np.zeros((frames, 64, 3), np.float32), index, weights),
    )
