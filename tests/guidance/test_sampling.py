# SPDX-License-Identifier: GPL-3.0-or-later
"""The sampling loop against runs of the public code, with a formula in the network's place (see the fixtures)."""

from functools import partial

import pytest
import torch
from torch import Tensor

from backend.guidance.classifier_free import guide, guide_plain
from backend.guidance.sampling import Refinement, State, batched, begin, joined, one_by_one, sample, unguided
from backend.guidance.schedules import clean_of, cosine_schedule, linear_schedule, set_timesteps
from backend.progress import JobCancelled
from tests import golden

FOURDM = golden.facts("sampling/fourdm_ddim")["runs"]
VIDEOMV = golden.facts("sampling/videomv_diffusion")["runs"]
PLAIN = [run for run in VIDEOMV if "3daware" not in run]
REFINED = [run for run in VIDEOMV if "3daware" in run]
NO_RANDOM = torch.Generator().get_state()


def formula(latents: Tensor, timestep: Tensor, *, bias: Tensor) -> Tensor:
    """The fixtures' network."""
    rows = (-1, *[1] * (latents.ndim - 1))
    slope = 0.8 * torch.cos(timestep / 400).reshape(rows)
    return slope * latents + 0.2 * torch.tanh(latents) + bias.reshape(rows)


class Steps:
    """What `on_step` was told."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.clean: list[Tensor] = []

    def __call__(self, state: State, clean: Tensor) -> None:
        self.states.append(state)
        self.clean.append(clean)


def assert_same(ours: Tensor, known: Tensor) -> None:
    """Within 5e-5 of the largest value, or of 1 where all are smaller."""
    worst = float((ours - known).abs().max())
    assert worst <= 5e-5 * max(1.0, float(known.abs().max())), worst


def assert_steps(steps: Steps, known: dict[str, Tensor], run: str, kept: list[int]) -> None:
    for row, index in enumerate(kept):
        assert_same(steps.states[index].latents, known[f"{run}.x_prev"][row])
        assert_same(steps.clean[index], known[f"{run}.pred_x0"][row])


def branches_of(known: dict[str, Tensor], run: str, *, together: bool) -> object:
    biases = [known.get(f"{run}.{name}", known.get(name)) for name in ("cond_bias", "uncond_bias")]
    if together:
        return batched(formula, [{"bias": bias} for bias in biases])
    return one_by_one(*(partial(formula, bias=bias) for bias in biases))


@pytest.mark.parametrize("together", [True, False], ids=["batched", "one_by_one"])
@pytest.mark.parametrize("run", [run for run in FOURDM if FOURDM[run]["eta"] == 0])
def test_ddim_of_fourdm(run: str, together: bool) -> None:
    known, facts = golden.tensors("sampling/fourdm_ddim"), FOURDM[run]
    scheduler, steps = linear_schedule(), Steps()
    times = set_timesteps(scheduler, facts["requested_steps"])
    rule = partial(guide_plain, scale=facts["guidance_scale"])
    start = State(known[f"{run}.x_T"], 0, NO_RANDOM)
    last = sample(start, times, scheduler, branches_of(known, run, together=together), rule, on_step=steps)
    assert_steps(steps, known, run, facts["saved_step_indices"])
    assert torch.equal(last, steps.states[-1].latents)
    assert [state.step for state in steps.states] == list(range(1, facts["actual_steps"] + 1))


def test_no_guidance_needs_one_branch_only() -> None:
    run = "s30_eta0_noguid"
    known, scheduler = golden.tensors("sampling/fourdm_ddim"), linear_schedule()
    network = partial(formula, bias=known[f"{run}.cond_bias"])
    start = State(known[f"{run}.x_T"], 0, NO_RANDOM)
    last = sample(start, set_timesteps(scheduler, 30), scheduler, one_by_one(network), unguided)
    assert_same(last, known[f"{run}.x_prev"][-1])


def test_fresh_noise_of_fourdm(monkeypatch: pytest.MonkeyPatch) -> None:
    """eta = 0.5, with the noise that the public code drew."""
    run = "s5_eta05"
    known, facts = golden.tensors("sampling/fourdm_ddim"), FOURDM[run]
    scheduler, steps, noise = linear_schedule(), Steps(), iter(known[f"{run}.noise"])
    monkeypatch.setattr(torch, "randn", lambda *arguments, **named: next(noise))
    sample(
        State(known[f"{run}.x_T"], 0, NO_RANDOM),
        set_timesteps(scheduler, 5),
        scheduler,
        branches_of(known, run, together=True),
        partial(guide_plain, scale=facts["guidance_scale"]),
        eta=0.5,
        on_step=steps,
    )
    assert_steps(steps, known, run, facts["saved_step_indices"])


@pytest.mark.parametrize("run", PLAIN)
def test_ddim_of_videomv(run: str) -> None:
    known, facts = golden.tensors("sampling/videomv_diffusion"), VIDEOMV[run]
    scheduler, steps = linear_schedule() if run[:3] == "t2v" else cosine_schedule(), Steps()
    last = sample(
        State(known[f"{run}.x_T"], 0, NO_RANDOM),
        set_timesteps(scheduler, facts["steps"]),
        scheduler,
        branches_of(known, run, together=True),
        partial(guide_plain, scale=facts["guide_scale"]),
        on_step=steps,
    )
    assert_steps(steps, known, run, facts["saved_step_indices"])
    assert_same(last, known[f"{run}.final"])


@pytest.mark.parametrize("run", REFINED)
def test_refinement_of_videomv(run: str) -> None:
    """At the refined steps the fixture's network answers tanh(x / 2) + bias, which are clean latents."""
    known, facts = golden.tensors("sampling/videomv_diffusion"), VIDEOMV[run]
    scheduler, steps = linear_schedule() if run[:3] == "t2v" else cosine_schedule(), Steps()
    asked: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # what each branch of a step was asked and answered
    refined_at: list[int] = []

    def network(latents: Tensor, timestep: Tensor, *, bias: Tensor) -> Tensor:
        answer = formula(latents, timestep, bias=bias)
        asked.append((latents, timestep, bias, answer))
        return answer

    def refine(clean: Tensor) -> Tensor:
        latents, timestep, bias, answer = asked[-2 + len(refined_at) % 2]  # of the branch that is being refined
        torch.testing.assert_close(clean, clean_of(scheduler, answer, latents, timestep))
        refined_at.append(int(timestep[0]))
        return torch.tanh(0.5 * latents) + bias.reshape(-1, 1, 1, 1, 1)

    last = sample(
        State(known[f"{run}.x_T"], 0, NO_RANDOM),
        set_timesteps(scheduler, facts["steps"]),
        scheduler,
        one_by_one(*(partial(network, bias=known[name]) for name in ("cond_bias", "uncond_bias"))),
        partial(guide_plain, scale=facts["guide_scale"]),
        refinement=Refinement.as_published(refine, facts["steps"]),
        on_step=steps,
    )
    assert refined_at == [t for t in facts["refined_t"] for _ in range(2)]
    assert_steps(steps, known, run, facts["saved_step_indices"])
    assert_same(last, known[f"{run}.final"])


def test_refined_steps_keep_their_share_of_the_way() -> None:
    assert Refinement.as_published(torch.sin, 50).steps == {20, 30, 40}
    assert Refinement.as_published(torch.sin, 25).steps == {10, 15, 20}


def test_three_branches_of_two_networks() -> None:
    """Diffusion4D's Eq. 3: two branches of the moving network in one batch, then the static one."""
    calls = []

    def network(latents: Tensor, timestep: Tensor, *, bias: Tensor, frames: int) -> Tensor:
        calls.append((len(latents), len(timestep), frames))
        return formula(latents, timestep, bias=bias)

    conditional, unconditional, static = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    groups = joined(
        batched(network, [{"bias": conditional, "frames": 3}, {"bias": unconditional, "frames": 3}]),
        one_by_one(partial(formula, bias=static)),
    )
    scheduler = cosine_schedule()
    start = begin((2, 4, 3, 2, 2), seed=4)
    times = set_timesteps(scheduler, 4)
    ours = sample(start, times, scheduler, groups, partial(guide, w1=7.0, w2=0.5))
    bias = 8.5 * conditional - 7 * unconditional - 0.5 * static  # as the formula is linear in it
    known = sample(start, times, scheduler, one_by_one(partial(formula, bias=bias)))
    torch.testing.assert_close(ours, known, atol=1e-4, rtol=1e-4)
    assert calls == [(4, 4, 3)] * len(times)


def run_with(start: State, on_step: object, seed: int = 0) -> Tensor:
    scheduler = linear_schedule()
    bias = torch.linspace(-1, 1, 3)
    network = one_by_one(partial(formula, bias=bias), partial(formula, bias=-bias))
    rule = partial(guide_plain, scale=3.0)
    return sample(start, set_timesteps(scheduler, 12), scheduler, network, rule, eta=0.7, on_step=on_step)


def test_going_on_after_a_break_changes_nothing() -> None:
    kept: list[dict[str, Tensor]] = []

    def stop(state: State, clean: Tensor) -> None:
        kept.append(state.tensors())
        if state.step == 5:
            raise JobCancelled

    whole = Steps()
    uninterrupted = run_with(begin((3, 4, 5, 5), seed=7), whole)
    with pytest.raises(JobCancelled):
        run_with(begin((3, 4, 5, 5), seed=7), stop)
    rest = Steps()
    resumed = run_with(State.from_tensors(kept[-1]), rest)
    assert torch.equal(resumed, uninterrupted)
    assert len(rest.states) == len(whole.states) - 5


def test_the_seed_decides() -> None:
    first, same, other = (run_with(begin((3, 4, 5, 5), seed), None) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_temperature_scales_the_noise_alone() -> None:
    warm, cool = begin((3, 4, 5, 5), seed=1), begin((3, 4, 5, 5), seed=1, temperature=0.25)
    torch.testing.assert_close(cool.latents, 0.25 * warm.latents)
    assert torch.equal(cool.random, warm.random)


def test_networks_may_be_in_half_precision() -> None:
    """They get and give bf16; the scheduler stays in float32, so that only the predictions are coarse."""
    seen = set()

    def coarse(latents: Tensor, timestep: Tensor) -> Tensor:
        seen.add(latents.dtype)
        return torch.tanh(latents)

    scheduler, start, results = linear_schedule(), begin((2, 4, 8, 8), seed=0), []
    for dtype in (torch.float32, torch.bfloat16):
        times = set_timesteps(scheduler, 50)
        results.append(sample(start, times, scheduler, one_by_one(coarse), dtype=dtype))
    assert seen == {torch.float32, torch.bfloat16}
    assert results[1].dtype == torch.float32
    difference = (results[1] - results[0]).abs().max() / results[0].abs().max()
    assert 0 < difference < 2**-7


def test_branches_that_cannot_be_joined_are_refused() -> None:
    one = {"bias": torch.zeros(2)}
    with pytest.raises(ValueError, match="different conditions"):
        batched(formula, [one, {"bias": torch.zeros(2), "more": torch.zeros(2)}])
    with pytest.raises(ValueError, match="bias"):
        batched(formula, [one, {"bias": None}])
    with pytest.raises(ValueError, match="frames"):
        batched(formula, [{"frames": 3}, {"frames": 4}])
