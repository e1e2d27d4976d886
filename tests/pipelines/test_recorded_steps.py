# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded denoising steps: what is replayed, what happens where recording fails. On a CPU an actor plays the GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.guidance.sampling import begin, sample
from backend.guidance.schedules import cosine_schedule, set_timesteps
from backend.pipelines.memory_plan import ON_CPU, PLANS
from backend.pipelines.recorded_steps import Recording, Replayed, difference, recorded
from backend.progress import JobCancelled, Run


class Actor:
    """Does what a CUDA graph does: the same work on the same places, and nothing else."""

    def __init__(self, branches, latents: Tensor, timestep: Tensor) -> None:
        self.given = latents.clone(), timestep.clone()
        self.branches, self.found = branches, [torch.zeros_like(part) for part in branches(*self.given)]
        self.replays = 0

    def replay(self, latents: Tensor, timestep: Tensor) -> list[Tensor]:
        self.replays += 1
        for place, value in zip(self.given, (latents, timestep), strict=True):
            place.copy_(value)
        for place, value in zip(self.found, self.branches(*self.given), strict=True):
            place.copy_(value)
        return [part.clone() for part in self.found]


def network(latents: Tensor, timestep: Tensor) -> list[Tensor]:
    wave = torch.sin(3 * latents + timestep.reshape(-1, 1, 1) / 100)
    return [wave, 0.5 * wave]


def guide(conditional: Tensor, unconditional: Tensor) -> Tensor:
    return 3 * conditional - 2 * unconditional


def sampled(branches) -> Tensor:
    schedule = cosine_schedule()
    return sample(begin((2, 3, 4), 0), set_timesteps(schedule, 5), schedule, branches, guide)


def test_sampling_with_a_recording_is_sampling(tmp_path: Path) -> None:
    made = []

    def record(*given: object) -> Actor:
        made.append(Actor(*given))
        return made[0]

    run = Run(tmp_path)
    replayed = Replayed(network, run, record)
    assert torch.equal(sampled(replayed), sampled(network))
    assert len(made) == 1
    assert made[0].replays == 5  # one of them to prove it
    assert run.notes == []


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("out of memory")])
def test_without_a_recording_it_goes_on_and_says_so(tmp_path: Path, error: RuntimeError) -> None:
    def record(*_: object) -> Actor:
        raise error

    run = Run(tmp_path)
    assert torch.equal(sampled(Replayed(network, run, record)), sampled(network))
    assert len(run.notes) == 1
    assert str(error) in run.notes[0]


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_a_recording_that_says_something_else_is_not_used(tmp_path: Path, wrong: float) -> None:
    class Wrong(Actor):
        def replay(self, latents: Tensor, timestep: Tensor) -> list[Tensor]:
            return [wrong * part for part in super().replay(latents, timestep)]

    run = Run(tmp_path)
    assert torch.equal(sampled(Replayed(network, run, Wrong)), sampled(network))
    assert "something else" in run.notes[0]


def test_a_cancelled_run_ends_although_nothing_of_it_runs_in_python(tmp_path: Path) -> None:
    cancelled = []
    replayed = Replayed(network, Run(tmp_path, is_cancelled=lambda: bool(cancelled)), Actor)
    given = torch.zeros(2, 3, 4), torch.tensor([1, 1])
    replayed(*given)
    replayed(*given)
    cancelled.append(True)
    with pytest.raises(JobCancelled):
        replayed(*given)


def test_it_is_for_gpus_whose_memory_takes_everything(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert [plan.recorded for plan in PLANS] == [True, False, False, False]
    assert not ON_CPU.recorded
    for plan, device in ((PLANS[0], "cpu"), (PLANS[1], "cuda")):
        with recorded(network, plan, torch.device(device), run) as branches:
            assert branches is network


def test_differences_are_relative() -> None:
    assert difference(torch.full((3,), 1.1), torch.ones(3)) == pytest.approx(0.1)
    assert difference(torch.tensor([torch.nan]), torch.ones(1)) == float("inf")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_on_a_gpu(tmp_path: Path) -> None:
    device, run = torch.device("cuda"), Run(tmp_path)
    layer = torch.nn.Linear(64, 64, device=device)
    branches = lambda latents, timestep: [layer(latents) + timestep[:, None], layer(latents)]  # noqa: E731
    with torch.no_grad(), recorded(branches, PLANS[0], device, run) as replayed:
        for number in range(3):
            given = torch.randn(5, 64, device=device), torch.full((5,), number, device=device)
            for found, wanted in zip(replayed(*given), branches(*given), strict=True):
                torch.testing.assert_close(found, wanted)
        assert isinstance(replayed._recording, Recording)
    assert run.notes == []
