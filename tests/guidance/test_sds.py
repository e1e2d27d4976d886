# SPDX-License-Identifier: GPL-3.0-or-later
"""Score distillation against the public code's, from what its network answered (8 times x 4 views and the image)."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from backend.guidance import sds
from backend.guidance.schedules import add_noise, linear_schedule
from tests import golden

FACTS = golden.facts("sampling/fourdm_sds")
KNOWN = golden.tensors("sampling/fourdm_sds")
VIEWS = 4


def inputs(run: str) -> tuple[Tensor, dict]:
    """Latents that want a gradient, and what the losses take beside them."""
    timestep = FACTS["runs"][run]["timestep"]
    answers = KNOWN["unet.output" if timestep == 600 else f"unet.output_t{timestep}"]
    rows = answers.unflatten(0, (2, -1, VIEWS + 1))[:, :, :VIEWS].flatten(1, 2)  # (branch, time, view) less the image's
    scheduler, latents = linear_schedule(), KNOWN["latents"].clone().requires_grad_()
    noisy = add_noise(scheduler, KNOWN["latents"], KNOWN["noise"], timestep)
    return latents, {
        "conditional": rows[0],
        "unconditional": rows[1],
        "noisy": noisy,
        "timestep": timestep,
        "scheduler": scheduler,
        "guidance": FACTS["runs"][run]["guidance_scale"],
    }


def assert_as_known(run: str, latents: Tensor, loss: Tensor) -> None:
    loss.backward()
    assert float(loss.detach()) == pytest.approx(FACTS["runs"][run]["loss"], rel=1e-5)
    assert float(latents.grad.norm()) == pytest.approx(FACTS["runs"][run]["grad_norm_autograd"], rel=1e-5)
    if f"{run}.grad" in KNOWN:
        torch.testing.assert_close(latents.grad, KNOWN[f"{run}.grad"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("run", ["recon02", "recon05_g50", "recon0"])
def test_reconstruction(run: str) -> None:
    latents, given = inputs(run)
    target = sds.reconstruction(**given, rescale=FACTS["runs"][run]["recon_std_rescale"])
    assert_as_known(run, latents, sds.reconstruction_loss(latents, target))


def test_defaults_are_those_of_the_paper() -> None:
    _, given = inputs("recon02")
    del given["guidance"]
    target = sds.reconstruction(**given)
    latents = KNOWN["latents"]
    assert float(sds.reconstruction_loss(latents, target)) == pytest.approx(FACTS["runs"]["recon02"]["loss"], rel=1e-5)


def test_no_gradient_through_the_target() -> None:
    latents, given = inputs("recon02")
    given["noisy"] = add_noise(given["scheduler"], latents, KNOWN["noise"], given["timestep"])  # depends on the latents
    assert not sds.reconstruction(**given).requires_grad


def test_time_steps_fall_and_stay() -> None:
    assert sds.timestep_bounds(0) == (980, 980)
    assert sds.timestep_bounds(2500) == (500, 615)
    assert sds.timestep_bounds(5000) == sds.timestep_bounds(35_000) == (20, 250)
    bounds = [sds.timestep_bounds(iteration) for iteration in range(0, 5001, 250)]
    assert all(low <= high for low, high in bounds)
    assert all(later < earlier for earlier, later in pairwise(bounds))
