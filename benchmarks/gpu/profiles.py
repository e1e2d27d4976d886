# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the time of a pass goes: the kinds of work of the moving network (two branches) and of 4DM (both), by time.

Work is told apart by torch's names; what is copied belongs to whatever wants another layout in memory.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from backend.models.fused import fuse
from backend.pipelines.diffusion4d_published import with_kernels
from backend.pipelines.fourdiffusion_guidance import FourDMGuidance
from backend.pipelines.memory_plan import PLANS
from backend.pipelines.multi_view_video import VIEWS, view_poses
from backend.progress import Run
from benchmarks.gpu.sds import conditions
from benchmarks.gpu.setting import ROOT, Clock, Setting, attempted, wait
from benchmarks.report import Figure

SHOWN = 12  # kinds of work; the rest is one row
REPEATS = 3
SECONDS = 15.0  # that have to be left for a network


@torch.no_grad()
def measure(setting: Setting, clock: Clock) -> Iterator[dict | Figure]:
    """Rows by network and kind of work: calls and milliseconds of a pass, share of all of it."""
    for compiled in (False, True):
        if not clock.case("profile of the moving network", SECONDS):
            return
        network = setting.networks("moving")["moving"].to(setting.device)
        if compiled:
            run = Run(ROOT)  # for its notes alone
            with_kernels(
                {"moving": lambda network=network: network}, setting.device, setting.dtype, run, setting.kernels
            )["moving"]()
            for sentence in run.notes:
                clock.tell(sentence)
        name = "moving network, compiled" if compiled else "moving network"
        try:
            yield from attempted_kinds(name, moving(network, setting), setting)
        finally:
            fuse(network, None)
    setting.free()
    if clock.case("profile of 4DM", SECONDS):
        loaded = setting.networks("vae", "fourdm")
        vae, video = (loaded[name].to(setting.device) for name in ("vae", "fourdm"))
        guidance = FourDMGuidance(vae, video, conditions(setting), PLANS[0], setting.device, setting.dtype)
        yield from attempted_kinds("4DM", fourdm(guidance, setting), setting)


def attempted_kinds(name: str, work: Callable[[], object], setting: Setting) -> list[dict]:
    """The rows of `kinds`, or one that says why there are none; the next network is still looked at."""
    found = attempted(lambda: {"rows": list(kinds(name, work, setting))}, setting, network=name)
    return found.get("rows", [found])


def moving(network: nn.Module, setting: Setting) -> Callable[[], Tensor]:
    """A pass of the moving network for two branches."""
    device, frames, side = setting.device, setting.frames, setting.pixels // 8
    width = network.base.config.context_width
    latents = torch.randn(2, frames, 4, side, side, device=device).to(setting.dtype)
    given = {
        "magnitude": torch.ones(2, device=device),
        "static_latents": latents,
        "image": torch.randn(2, width, device=device),
        "image_latents": latents[:, 0],
    }
    poses = torch.eye(4, device=device).expand(2, frames, 4, 4)
    text, timestep = torch.randn(2, 77, width, device=device), torch.full((2,), 500, device=device)
    return lambda: network(latents, timestep, poses, text, **given)


def fourdm(guidance: FourDMGuidance, setting: Setting) -> Callable[[], object]:
    """A pass of 4DM for both branches."""
    frames, side = setting.video_frames, setting.pixels // 8
    latents = torch.randn(frames * VIEWS, 4, side, side, device=setting.device).to(setting.dtype)
    rows = torch.full((len(latents),), 500, device=setting.device)
    branches = guidance.branches(torch.from_numpy(view_poses(0.0)).float(), np.arange(frames))
    return lambda: branches(latents, rows)


def kinds(name: str, work: Callable[[], object], setting: Setting) -> Iterator[dict]:
    """Rows of one network, the longest first."""
    work()
    on_gpu = setting.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        for _ in range(REPEATS):
            work()
        wait(setting.device)
    times, kernels = [], 0.0
    for kind in found.key_averages():
        spent = (kind.self_device_time_total if on_gpu else kind.self_cpu_time_total) / 1000 / REPEATS
        if on_gpu and kind.device_type.name != "CPU":  # a kernel: its time is that of the work that it belongs to
            kernels += spent
        elif spent > 0:
            times.append((spent, kind.count // REPEATS, kind.key))
    known = sum(time for time, _, _ in times)
    if kernels > known:
        times.append((kernels - known, 0, "kernels that belong to no work with a name"))
    times.sort(reverse=True)
    whole = sum(time for time, _, _ in times)
    rest = [(sum(time for time, _, _ in times[SHOWN:]), sum(count for _, count, _ in times[SHOWN:]), "all else")]
    for time, count, kind in times[:SHOWN] + rest:
        yield {"network": name, "work": kind, "calls": count, "ms": time, "share": time / whole}
