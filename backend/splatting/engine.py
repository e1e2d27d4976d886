# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processor splatting runs on: the GPU where gsplat works, the CPU kernels everywhere else.

What works is found by trying it (`rasterize.gsplat_kernels`); where it does not, the engine's notes say why.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from backend.progress import DEVICES, UserError
from backend.splatting.rasterize import gsplat_kernels


@dataclass(frozen=True)
class Engine:
    """A device and what people should know about it."""

    device: torch.device
    name: str  # for people and for the provenance of clips
    notes: tuple[str, ...] = ()  # sentences: why it is not the GPU, where there is one

    @property
    def is_gpu(self) -> bool:
        """Whether this is a GPU, where whole batches cost little more than single pictures."""
        return self.device.type == "cuda"


CPU = Engine(torch.device("cpu"), "CPU")


def choose_engine(
    wanted: str = "auto", on_message: Callable[[str], None] | None = None, *, retry: bool = False
) -> Engine:
    """The engine for `wanted`: "auto", "cpu" or "cuda".

    On a computer with a CUDA device the first call may compile gsplat's kernels for some minutes.

    Args:
        wanted: "auto" takes the GPU if it can be used, else the CPU with a note that says why; "cuda" takes nothing
            but the GPU.
        on_message: hears what is being compiled; what it raises cancels that.
        retry: compile again although it has failed before.

    Raises:
        UserError: "cuda" was wanted and cannot be used; says why.
        ValueError: there is no such device.
    """
    if wanted not in DEVICES:
        raise ValueError(f"There is no device {wanted!r}; there are {', '.join(DEVICES)}.")
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return CPU
    try:
        gsplat_kernels.load_kernels(on_message, retry=retry)
    except UserError as error:
        if wanted == "cuda":
            raise
        return Engine(CPU.device, CPU.name, (f"Splatting ran on the CPU, not on the GPU. {error}",))
    return _gpu(gsplat_kernels.surroundings())


def expected_engine(wanted: str = "auto") -> Engine:
    """What `wanted` comes to here as far as that is known without compiling; the notes say what is not known."""
    if wanted == "cpu":
        return CPU
    here = gsplat_kernels.surroundings()
    if here.gpu is None:
        return Engine(CPU.device, CPU.name, (here.problem,))
    verdict = None if here.problem else gsplat_kernels.known_verdict(here)
    if verdict is None and not here.problem:
        note = "gsplat's CUDA kernels have not been tried yet: the first job, or 'python -m backend warm-up', does it."
        return Engine(_gpu(here).device, _gpu(here).name, (note,))
    if verdict is not None and verdict.works:
        return _gpu(here)
    return Engine(CPU.device, CPU.name, (f"{here.gpu} is not used. {here.problem or verdict.reason}",))


def _gpu(here: gsplat_kernels.Surroundings) -> Engine:
    return Engine(torch.device("cuda"), f"{here.gpu}, gsplat {here.gsplat}")
