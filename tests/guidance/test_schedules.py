# SPDX-License-Identifier: GPL-3.0-or-later
"""Noise schedules against those of the public code."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from backend.guidance import schedules
from backend.guidance.schedules import cosine_schedule, linear_schedule, set_timesteps
from tests import golden

DDIM = golden.facts("sampling/fourdm_ddim")["runs"]
VIDEOMV = golden.facts("sampling/videomv_diffusion")["runs"]
CLOSE = {"atol": 5e-5, "rtol": 5e-5}


def test_betas_are_those_of_fourdm() -> None:
    known, ours = golden.tensors("sampling/fourdm_schedule"), linear_schedule()
    torch.testing.assert_close(ours.betas, known["betas"], atol=0, rtol=1e-6)
    torch.testing.assert_close(ours.alphas_cumprod, known["alphas_cumprod"], atol=0, rtol=2e-6)


@pytest.mark.parametrize(("name", "make"), [("t2v", linear_schedule), ("i2v", cosine_schedule)])
def test_alphas_are_those_of_videomv(name: str, make: type) -> None:
    known = golden.tensors("sampling/videomv_diffusion")[f"{name}.alphas_cumprod"]
    torch.testing.assert_close(make().alphas_cumprod, known.float(), atol=0, rtol=2e-6)
    assert (make().alphas_cumprod[-1] == 0) == (name == "i2v")  # zero terminal SNR


@pytest.mark.parametrize("run", DDIM)
def test_time_steps_of_fourdm(run: str) -> None:
    known = golden.tensors("sampling/fourdm_ddim")
    scheduler = linear_schedule()
    times = set_timesteps(scheduler, DDIM[run]["requested_steps"])
    assert len(times) == DDIM[run]["actual_steps"]  # 31 where 30 were asked for
    assert times == known[f"{run}.timesteps_descending"].tolist()
    alphas = scheduler.alphas_cumprod
    stride = 1000 // scheduler.num_inference_steps  # by which diffusers goes back
    previous = torch.stack([alphas[t - stride] if t >= stride else scheduler.final_alpha_cumprod for t in times])
    torch.testing.assert_close(alphas[times], known[f"{run}.alphas"], **CLOSE)
    torch.testing.assert_close(previous, known[f"{run}.alphas_prev"], **CLOSE)


@pytest.mark.parametrize("run", VIDEOMV)
def test_time_steps_of_videomv(run: str) -> None:
    known = golden.tensors("sampling/videomv_diffusion")[f"{run}.timesteps_descending"]
    assert set_timesteps(cosine_schedule(), VIDEOMV[run]["steps"]) == known.tolist()


@pytest.mark.parametrize("steps", [1, 7, 27, 30, 999, 1000])
def test_time_steps_stay_in_the_schedule(steps: int) -> None:
    times = set_timesteps(linear_schedule(), steps)
    assert 0 < times[-1] <= times[0] <= 999
    assert all(later < earlier or earlier == 999 for earlier, later in pairwise(times))


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        set_timesteps(linear_schedule(), steps)


@pytest.mark.parametrize("name", ["t2v", "i2v"])
def test_forward_noising_of_videomv(name: str) -> None:
    known = golden.tensors("sampling/videomv_diffusion")
    scheduler = linear_schedule() if name == "t2v" else cosine_schedule()
    clean, noise, noisy, t = (known[f"{name}.q.{part}"] for part in ("x0", "noise", "x_t", "t"))
    torch.testing.assert_close(schedules.add_noise(scheduler, clean, noise, t), noisy, **CLOSE)


def test_noising_velocity_and_inversions_of_fourdm() -> None:
    known = {name[2:]: part for name, part in golden.tensors("sampling/fourdm_ddim").items() if name[:2] == "q."}
    clean, noise, noisy, t = known["x0"], known["noise"], known["x_t"], known["t"]
    epsilon = linear_schedule()
    of_v = DDIMScheduler.from_config({**epsilon.config, "prediction_type": "v_prediction"})
    torch.testing.assert_close(schedules.add_noise(epsilon, clean, noise, t), noisy, **CLOSE)
    torch.testing.assert_close(schedules.velocity(epsilon, clean, noise, t), known["v"], **CLOSE)
    torch.testing.assert_close(schedules.clean_of(epsilon, noise, noisy, t), known["x0_from_eps"], **CLOSE)
    torch.testing.assert_close(schedules.clean_of(of_v, known["v"], noisy, t), known["x0_from_v"], **CLOSE)


@pytest.mark.parametrize("make", [linear_schedule, cosine_schedule])
def test_prediction_and_clean_latents_are_inverses(make: type) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, noisy = torch.randn(2, 6, 4, 3, generator=generator)
    t = torch.tensor([1, 20, 181, 381, 581, 901])
    clean = schedules.clean_of(make(), prediction, noisy, t)
    again = schedules.prediction_of(make(), clean, noisy, t)
    torch.testing.assert_close(again, prediction, atol=1e-4, rtol=1e-4)


def test_v_is_usable_where_nothing_is_left_of_the_signal() -> None:
    noisy, prediction = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    scheduler = cosine_schedule()
    torch.testing.assert_close(schedules.clean_of(scheduler, prediction, noisy, 999), -prediction)


def test_half_precision_latents_are_noised_in_full_precision() -> None:
    clean, noise = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    t = torch.tensor([5, 500, 995])
    exact = schedules.add_noise(linear_schedule(), clean.float(), noise.float(), t)
    assert torch.equal(schedules.add_noise(linear_schedule(), clean, noise, t), exact)


def test_other_kinds_of_prediction_are_refused() -> None:
    with pytest.raises(ValueError, match="flow"):
        schedules.predicts(DDIMScheduler(prediction_type="flow"))


def test_clean_predictions_are_taken_as_they_are() -> None:
    scheduler = DDIMScheduler(prediction_type="sample")
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy = schedules.add_noise(scheduler, clean, noise, 300)
    assert schedules.clean_of(scheduler, clean, noisy, 300) is clean
    assert schedules.prediction_of(scheduler, clean, noisy, 300) is clean
