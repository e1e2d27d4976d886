# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
import torch

from backend.splatting.densify import DEAD_OPACITY, densify, shake, shared
from backend.splatting.fit import Fit
from backend.splatting.gaussians import GaussianParameters, discs
from backend.splatting.render import render


def some(count: int = 40, blur: float = 0.0) -> GaussianParameters:
    rng = np.random.default_rng(2)
    points = rng.normal(size=(count, 3)).astype(np.float32) * 0.2
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    gaussians = discs(points, normals, rng.random((count, 3)), sh_degree=1)
    gaussians.blur = blur
    return gaussians


def stepped(gaussians: GaussianParameters) -> Fit:
    """A fit whose optimiser has a memory."""
    fit = Fit(gaussians)
    fit.set_shape_rates(1.0)
    loss = sum(tensor.square().sum() for tensor in fit.gaussians.tensors().values())
    loss.backward()
    fit.shape_optimizer.step()
    return fit


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_copies_together_look_like_the_one_that_they_replace(copies: int) -> None:
    opacity = torch.tensor([0.7])
    each, factor = shared(opacity, torch.tensor([copies]))
    assert float(1 - (1 - each) ** copies) == pytest.approx(0.7, abs=1e-6)  # the alphas of the middle
    # The integral over the plane of 1 - (1 - alpha(x))^copies is that of the one Gaussian.
    x = torch.linspace(-6, 6, 401)
    square = x[:, None].square() + x.square()
    one = (0.7 * torch.exp(-square / 2)).sum()
    many = (1 - (1 - each * torch.exp(-square / (2 * factor**2))) ** copies).sum()
    line_one, line_many = (
        (0.7 * torch.exp(-x.square() / 2)).sum(),
        1 - (1 - each * torch.exp(-x.square() / (2 * factor**2))) ** copies,
    )
    assert float(line_many.sum()) == pytest.approx(float(line_one), rel=1e-3)  # Eq. 8 matches it along a line
    assert float(many) == pytest.approx(float(one), rel=0.12)


def test_faded_gaussians_move_to_live_ones_and_are_followed() -> None:
    gaussians = some()
    with torch.no_grad():
        gaussians.opacity_logits[:10] = -9.0
    fit = stepped(gaussians)
    before = {name: tensor.detach().clone() for name, tensor in fit.gaussians.tensors().items()}
    rows = densify(fit.gaussians, fit.shape_optimizer, 40, np.random.default_rng(0)).numpy()
    assert len(fit.gaussians.means) == 40
    assert (rows[10:] == np.arange(10, 40)).all()
    assert (rows[:10] >= 10).all()
    assert (fit.gaussians.opacities > DEAD_OPACITY).all()
    torch.testing.assert_close(fit.gaussians.color_logits, before["color_logits"][rows])
    near = (fit.gaussians.means[:10] - before["means"][rows[:10]]).norm(dim=1)
    assert (near > 0).all()
    assert (near < 4 * before["log_scales"][rows[:10]].exp().amax(dim=1)).all()
    # The optimiser forgets those that changed, remembers the others, and goes on with the new tensors.
    memory = fit.shape_optimizer.state[fit.gaussians.means]["exp_avg"]
    kept = np.setdiff1d(np.arange(10, 40), rows[:10])
    assert not memory[:10].any()
    assert memory[kept].abs().sum(dim=1).gt(0).all()
    fit.gaussians.means.square().sum().backward()
    fit.shape_optimizer.step()


def test_growth_comes_to_the_number_and_hardly_changes_the_picture() -> None:
    fit = stepped(some(blur=0.01))
    view = torch.eye(4)
    view[2, 3] = 2.0
    camera = view[None], torch.tensor([[[60.0, 0, 24], [0, 60, 24], [0, 0, 1]]]), 48, 48

    def picture() -> torch.Tensor:
        g = fit.gaussians
        return render(g.means[None], g.quats[None], g.scales, g.opacities, g.colors, *camera).detach()

    before = picture()
    counts = []
    for seed, wanted in enumerate((50, 60, 60, 55)):
        densify(fit.gaussians, fit.shape_optimizer, wanted, np.random.default_rng(seed))
        counts.append(len(fit.gaussians.means))
    assert counts == [50, 60, 60, 60]
    assert float((picture() - before).abs().mean()) < 0.1 * float(before[..., 3].mean())
    assert all(tensor.isfinite().all() for tensor in fit.gaussians.tensors().values())


def test_it_is_the_same_each_time_and_leaves_well_alone() -> None:
    results = []
    for _ in range(2):
        fit = stepped(some())
        densify(fit.gaussians, fit.shape_optimizer, 50, np.random.default_rng(3))
        results.append(fit.to_arrays())
    for name, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][name], err_msg=name)
    fit = stepped(some())
    same = fit.gaussians.means
    densify(fit.gaussians, fit.shape_optimizer, 40, np.random.default_rng(3))
    assert fit.gaussians.means is same


def test_noise_is_for_what_can_hardly_be_seen() -> None:
    gaussians = some()
    gaussians.opacity_logits[:5] = -9.0
    before = gaussians.means.clone()
    shake(gaussians, 100.0, np.random.default_rng(0))
    moved = (gaussians.means - before).norm(dim=1)
    assert (moved[:5] > 1e-3).all()
    assert (moved[5:] < 1e-6).all()
