# SPDX-License-Identifier: GPL-3.0-or-later
"""The one loop by which the published networks sample: DDIM, guided, resumable, with 3D-aware refinement as an option.

    scheduler = cosine_schedule()
    times = set_timesteps(scheduler, 50)
    branches = batched(network, [conditions, negative_conditions])
    start = State.from_tensors(kept) if kept else begin(shape, seed, device)

    def on_step(state, clean):
        keep(state.tensors())
        run.report(state.step, len(times), preview=lambda: picture(clean))

    latents = sample(start, times, scheduler, branches, partial(guide_plain, scale=6.0), on_step=on_step)

A network is any callable (noisy latents [B, ...], timestep [B] int64, **conditions) -> prediction [B, ...].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from backend.guidance.schedules import clean_of, prediction_of

Network = Callable[..., Tensor]
Branches = Callable[[Tensor, Tensor], Sequence[Tensor]]  # (noisy latents, timestep) -> one prediction per branch
REFINED = (0.4, 0.6, 0.8)  # of the way through the steps: 20, 30 and 40 of 50 (VideoMV)


@dataclass(frozen=True, eq=False)
class State:
    """Where sampling is: enough to go on after a break, to the last bit, if a refinement draws nothing of its own."""

    latents: Tensor  # [B, ...] float32, noisy as before step `step`
    step: int  # number of steps done
    random: Tensor = field(repr=False)  # [K] uint8: state of the generator of the noise that eta > 0 adds

    def tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds it."""
        return {"latents": self.latents.cpu(), "step": torch.tensor(self.step), "random": self.random}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> "State":
        """What `tensors` has said."""
        return cls(tensors["latents"].to(device), int(tensors["step"]), tensors["random"].cpu())


@dataclass(frozen=True)
class Refinement:
    """VideoMV's 3D-aware denoising: at some steps, each branch's clean latents are made into views of one 3D object.

    Guidance then acts on these clean latents instead of on predictions, and DDIM goes on with the noise that they
    leave. See `backend.pipelines.refine3d` for what refines.
    """

    refine: Callable[[Tensor], Tensor]  # clean latents of one branch -> clean latents, same shape
    steps: frozenset[int]  # indices of the refined steps

    @classmethod
    def as_published(cls, refine: Callable[[Tensor], Tensor], count: int) -> "Refinement":
        """At the published share of the way: for 50 steps those with the indices 20, 30 and 40."""
        return cls(refine, frozenset(round(share * count) for share in REFINED))


def begin(shape: Sequence[int], seed: int, device: torch.device | str = "cpu", temperature: float = 1.0) -> State:
    """Pure noise of this shape. The same on every device: it is drawn on the CPU.

    temperature: standard deviation of the noise; below 1, samples come closer to what is most likely.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = temperature * torch.randn(*shape, generator=generator)
    return State(noise.to(device), 0, generator.get_state())


def one_by_one(*networks: Network) -> Branches:
    """One pass for each branch: needs the memory of one.

    Each network comes with its conditions: `one_by_one(partial(net, **given), partial(net, **negative), ...)`.
    """
    return lambda latents, timestep: [network(latents, timestep) for network in networks]


def batched(network: Network, conditions: Sequence[Mapping[str, object]]) -> Branches:
    """One pass for all branches of a network: fastest where there is the memory.

    Branches lie one after another in the batch. Tensors among the conditions are batches, and joined; whatever else
    has to be the same in all branches.

    Raises:
        ValueError: the branches differ in what cannot be joined.
    """
    first = conditions[0]
    for other in conditions[1:]:
        if other.keys() != first.keys():
            raise ValueError(f"branches name different conditions: {sorted(first)}, {sorted(other)}")
    together = {name: _joined(name, [branch[name] for branch in conditions]) for name in first}
    count = len(conditions)

    def predict(latents: Tensor, timestep: Tensor) -> Sequence[Tensor]:
        repeated = latents.repeat(count, *[1] * (latents.ndim - 1))
        return network(repeated, timestep.repeat(count), **together).chunk(count)

    return predict


def joined(*groups: Branches) -> Branches:
    """The branches of all groups, in order: such as two of a network in one batch, then those of another network."""
    return lambda latents, timestep: [part for group in groups for part in group(latents, timestep)]


def unguided(conditional: Tensor) -> Tensor:
    """The rule for one branch."""
    return conditional


@torch.no_grad()
def sample(
    start: State,
    timesteps: Sequence[int],
    scheduler: DDIMScheduler,
    branches: Branches,
    guide: Callable[..., Tensor] = unguided,
    *,
    eta: float = 0.0,
    dtype: torch.dtype = torch.float32,
    refinement: Refinement | None = None,
    on_step: Callable[[State, Tensor], None] | None = None,
) -> Tensor:  # [B, ...] float32
    """Denoise, from noise or from where a former attempt was stopped.

    Args:
        start: from `begin`, or the last `State` that `on_step` was given.
        timesteps: all of them, also when going on: what `set_timesteps` returned for this scheduler.
        scheduler: one of `backend.guidance.schedules`.
        branches: predictions for guidance, in the order that `guide` takes them.
        guide: the rule, such as `partial(guide_plain, scale=9.0)`; of clean latents where they are refined.
        eta: 0 for DDIM, 1 for DDPM; how much fresh noise there is in each step.
        dtype: in which the networks get the latents. Everything else is float32.
        refinement: 3D-aware denoising.
        on_step: gets the state after each step and the clean latents as that step saw them, to report, to show and to
            keep; what it raises (such as `JobCancelled`) ends the sampling.

    Returns:
        The latents after the last step: at t = 0, where a_0 is still a little below 1, as in the public code.
    """
    latents = start.latents.float()
    generator = torch.Generator()
    generator.set_state(start.random)
    for index in range(start.step, len(timesteps)):
        time = timesteps[index]
        rows = torch.full((len(latents),), time, device=latents.device)
        predictions = [part.float() for part in branches(latents.to(dtype), rows)]
        if refinement is not None and index in refinement.steps:
            views = [refinement.refine(clean_of(scheduler, part, latents, time)).float() for part in predictions]
            prediction = prediction_of(scheduler, guide(*views), latents, time)
        else:
            prediction = guide(*predictions)
        fresh = torch.randn(latents.shape, generator=generator).to(latents.device) if eta > 0 else None
        stepped = scheduler.step(prediction, time, latents, eta=eta, variance_noise=fresh)
        latents = stepped.prev_sample
        if on_step is not None:
            on_step(State(latents, index + 1, generator.get_state()), stepped.pred_original_sample)
    return latents


def _joined(name: str, values: list[object]) -> object:
    if all(isinstance(value, Tensor) for value in values):
        return torch.cat(values)
    if any(isinstance(value, Tensor) for value in values) or any(value != values[0] for value in values):
        raise ValueError(f"the condition {name!r} differs between branches and is no batch: run them one by one")
    return values[0]
