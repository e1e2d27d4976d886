# SPDX-License-Identifier: GPL-3.0-or-later
"""Denoising steps that a GPU does by itself: what a step asks of the networks is recorded once (a CUDA graph), then
replayed.

A pass of a video network is some 1,600 small pieces of work, which Python hands to the GPU one by one; a replay hands
over all of them at once. A recording is used only once it has said the same as the networks themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from backend.guidance.sampling import Branches
from backend.pipelines.memory_plan import MemoryPlan
from backend.progress import Run

MOST_DIFFERENCE = 1e-2  # mean absolute, relative to the mean: kernels of another choice may sum in another order


class Recording:
    """Branches of guidance as one CUDA graph. Memory that they need between input and output stays taken."""

    def __init__(self, branches: Branches, latents: Tensor, timestep: Tensor) -> None:
        """Record `branches` as they are for inputs of this shape; they have to have run before."""
        self._given = latents.clone(), timestep.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # other threads may use the GPU
            self._found = list(branches(*self._given))

    def replay(self, latents: Tensor, timestep: Tensor) -> list[Tensor]:
        """What the branches say to these inputs."""
        for place, value in zip(self._given, (latents, timestep), strict=True):
            place.copy_(value)
        self._graph.replay()
        return [part.clone() for part in self._found]  # the next replay writes to the same places


class Replayed:
    """Branches that are recorded at their first call; where that does not work a note says so, and they run plainly."""

    def __init__(
        self, branches: Branches, run: Run, record: Callable[[Branches, Tensor, Tensor], Recording] = Recording
    ) -> None:
        self._branches, self._run, self._record = branches, run, record
        self._recording: Recording | None = None
        self._tried = False

    def __call__(self, latents: Tensor, timestep: Tensor) -> Sequence[Tensor]:
        """See `backend.guidance.sampling.Branches`."""
        if self._recording is not None:
            self._run.check()  # a replay asks nobody
            return self._recording.replay(latents, timestep)
        found = self._branches(latents, timestep)
        if not self._tried:
            self._tried = True
            self._recording = self._proved(found, latents, timestep)
        return found

    def _proved(self, found: Sequence[Tensor], latents: Tensor, timestep: Tensor) -> Recording | None:
        try:
            recording = self._record(self._branches, latents, timestep)
            again = recording.replay(latents, timestep)
        except RuntimeError as error:  # too little memory among them
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._run.note(f"Denoising steps could not be recorded, and ran without, slower: {first}")
            return None
        if max(map(difference, again, found)) <= MOST_DIFFERENCE:
            return recording
        self._run.note("A recorded denoising step said something else than the networks: steps ran without, slower.")
        return None


@contextmanager
def recorded(branches: Branches, plan: MemoryPlan, device: torch.device, run: Run) -> Iterator[Branches]:
    """`branches`, recorded where the plan wants it and there is a GPU; the recording's memory is free afterwards.

    What they are told has to stay the same within the context, but for latents and time step.
    """
    if not plan.recorded or device.type != "cuda":
        yield branches
        return
    replayed = Replayed(branches, run)
    try:
        yield replayed
    finally:
        replayed._recording = None
        torch.cuda.empty_cache()


def difference(one: Tensor, other: Tensor) -> float:
    """Mean absolute, relative to the mean; infinite where something is not a number."""
    found = float((one.float() - other.float()).abs().mean() / other.float().abs().mean().clamp_min(1e-12))
    return found if found == found else float("inf")
