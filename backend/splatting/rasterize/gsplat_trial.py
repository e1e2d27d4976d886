# SPDX-License-Identifier: GPL-3.0-or-later
"""The child process of `gsplat_kernels`: compile gsplat's kernels, draw with them, compare with the CPU kernels.

    python -m backend.splatting.rasterize.gsplat_trial RESULT.json PARENT_PID

Everything else that it and the compilers say goes to its output, which the parent keeps as a log.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

from backend.splatting.rasterize import rasterize
from backend.splatting.rasterize.gsplat_kernels import first_error

MOST_DIFFERENCE = 1e-3  # mean absolute, relative to the mean; CUDA's fast math flips single contributions
PIXELS = 48


def main(result: str, parent: str) -> int:
    """Write what works to `result`; always 0, as a failure is a finding."""
    threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
    found = judged(torch.device("cuda"))
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    return 0


def judged(device: torch.device, compiled: Callable[[], bool] | None = None) -> dict:
    """`works`, `reason`, `difference` of the kernels for `device`."""
    try:
        if not (compiled or _compile)():
            return {"works": False, "reason": "gsplat found no CUDA toolkit to compile with.", "difference": None}
        difference = largest_difference(device)
    except Exception as error:
        traceback.print_exc()
        error = cause(error)
        return {"works": False, "reason": first_error(str(error) or type(error).__name__), "difference": None}
    works = difference <= MOST_DIFFERENCE
    reason = "" if works else f"gsplat's CUDA kernels draw wrongly (difference {difference:.1%})."
    return {"works": works, "reason": reason, "difference": difference}


def cause(error: BaseException) -> BaseException:
    """What went wrong first: after some errors of the build gsplat goes on, and fails to import what was not built."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    return next((one for one in chain if isinstance(one, RuntimeError | OSError)), error)


def largest_difference(device: torch.device) -> float:
    """Of a small moving scene here and on the CPU: pictures, alphas and all gradients, each relative to its mean."""
    here, there = (_drawn(torch.device("cpu")), _drawn(device))
    return max(float((a - b).abs().mean() / a.abs().mean()) for a, b in zip(here, there, strict=True))


def _drawn(device: torch.device) -> list[Tensor]:
    """Two moments of 200 Gaussians with a camera each, and the gradients of all inputs."""
    random = torch.Generator().manual_seed(0)
    moments, count = 2, 200
    scene = [
        torch.randn(moments, count, 3, generator=random) * 0.4,
        torch.randn(moments, count, 4, generator=random),
        torch.rand(count, 3, generator=random) * 0.1 + 0.03,
        torch.rand(count, generator=random) * 0.8 + 0.1,
        torch.rand(count, 3, generator=random),
    ]
    scene = [tensor.to(device).requires_grad_() for tensor in scene]
    viewmats = torch.eye(4).repeat(moments, 1, 1, 1)
    viewmats[:, 0, 2, 3] = 2.5
    focal = 1.2 * PIXELS
    intrinsics = torch.tensor([[focal, 0, PIXELS / 2], [0, focal, PIXELS / 2], [0, 0, 1]])
    cameras = (tensor.to(device) for tensor in (viewmats, intrinsics.expand(moments, 1, 3, 3)))
    colors, alphas, _ = rasterize(*scene, *cameras, PIXELS, PIXELS)
    (colors.square().sum() + alphas.sin().sum()).backward()
    return [tensor.detach().cpu() for tensor in (colors, alphas, *(tensor.grad for tensor in scene))]


def _compile() -> bool:
    """The import that compiles."""
    from gsplat.cuda._backend import _C

    return _C is not None


def _follow(parent: int) -> None:
    """End with the parent, compilers included, should it be killed."""
    while psutil.pid_exists(parent):
        time.sleep(1.0)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
