# SPDX-License-Identifier: GPL-3.0-or-later
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.splatting import motion_torch
from backend.splatting.control_points import make_control_points
from backend.splatting.losses import RIGIDITY_LENGTH, rigidity
from backend.splatting.motion import (
    TimeBasis,
    blend,
    effective_coefficients,
    no_motion,
    offsets_at,
    poses_of,
    refined,
    to_basis_motion,
)
from blender_addon.contract.clip import Clip


def poses_at(effective, basis, times, control):
    return poses_of(offsets_at(effective, basis, times), control)


BASES = (TimeBasis(loop=True, harmonics=3), TimeBasis(loop=False, harmonics=3))


@pytest.fixture
def subject():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(60, 3)).astype(np.float32) * 0.2
    quats = rng.normal(size=(60, 4)).astype(np.float32)
    return make_control_points(means, 12), torch.from_numpy(means), torch.from_numpy(quats)


@pytest.mark.parametrize("basis", BASES)
def test_basis_is_exactly_zero_at_time_0(basis: TimeBasis) -> None:
    assert torch.equal(basis(torch.zeros(1)), torch.zeros(len(basis.frequencies), 1))
    assert basis(torch.tensor([0.3])).abs().min() > 0.01
    assert len(basis.frequencies) == (6 if basis.loop else 7)
    assert (basis.frequencies.diff() >= 0).all()


def test_a_loop_ends_where_it_began_and_another_motion_need_not() -> None:
    loop, other = (basis(torch.tensor([0.0, 1.0, 0.9999, 0.0001])) for basis in BASES)
    torch.testing.assert_close(loop[:, 1], loop[:, 0], atol=1e-5, rtol=0)
    # no kink either: the slope at the end is that at the beginning
    torch.testing.assert_close(loop[:, 1] - loop[:, 2], loop[:, 3] - loop[:, 0], atol=1e-5, rtol=0)
    assert other[:, 1].abs().max() > 1.9


def test_no_motion_keeps_gaussians_where_they_are(subject) -> None:
    control, means, quats = subject
    effective = effective_coefficients(no_motion(12, BASES[0]), BASES[0])
    poses = poses_at(effective, BASES[0], torch.tensor([0.0, 0.4]), control)
    moved, turned = blend(poses, means, quats, control.index, control.weights)
    torch.testing.assert_close(moved, means.expand(2, -1, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned, quats.expand(2, -1, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("basis", BASES)
def test_time_0_is_the_canonical_shape_whatever_the_motion(subject, basis: TimeBasis) -> None:
    control, means, quats = subject
    poses = poses_at(torch.randn(12, 6, len(basis.frequencies)), basis, torch.zeros(1), control)
    moved, _ = blend(poses, means, quats, control.index, control.weights)
    torch.testing.assert_close(moved[0], means, atol=1e-6, rtol=0)


def test_a_turn_of_all_control_points_turns_gaussians_about_their_own_point(subject) -> None:
    control, _, _ = subject
    effective = torch.zeros(12, 6, 6)
    effective[:, 5, 0] = 0.4  # rho about z, times the basis -2 at its peak
    poses = poses_at(effective, BASES[0], torch.tensor([0.5]), control)
    angle = 2 * np.arctan(-0.4)
    expected = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    np.testing.assert_allclose(poses[0, 3, :9].numpy().reshape(3, 3), expected, atol=1e-6)
    fixed = poses[0, :, :9].numpy().reshape(-1, 3, 3) @ control.points.numpy()[:, :, None]
    np.testing.assert_allclose(fixed[..., 0] + poses[0, :, 9:12].numpy(), control.points.numpy(), atol=1e-6)


def plain_motion(effective, basis, times, control, means, quats, weights):
    """The same in plain float64 torch, from the definitions."""
    offsets = (effective @ basis(times).double()).permute(2, 0, 1)
    points = control.points.double()
    q = torch.cat([torch.ones_like(offsets[..., :1]), offsets[..., 3:] / 2], dim=-1)
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    turn = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    shift = points + offsets[..., :3] - (turn @ points[..., None])[..., 0]
    index = control.index.long()
    each = (turn[:, index] @ means[:, None, :, None])[..., 0] + shift[:, index]  # [T, N, 4, 3]
    moved = (weights[..., None] * each).sum(dim=2)
    bq = torch.stack([w, x, y, z], dim=-1)[:, index]
    side = torch.where((bq * bq[:, :, :1]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    aw, ax, ay, az = (weights[..., None] * side * bq).sum(dim=2).unbind(-1)
    bw, bx, by, bz = quats.unbind(-1)
    product = [
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ]
    return moved, torch.stack(product, dim=-1)


def test_values_and_gradients_against_plain_torch(subject) -> None:
    control, means, quats = subject
    torch.manual_seed(1)
    effective = torch.randn(12, 6, 6) * torch.tensor([0.1, 0.1, 0.1, 2.0, 2.0, 2.0])[:, None]  # turns beyond 90 degrees
    times = torch.tensor([0.17, 0.5, 0.83])
    upstream = torch.randn(3, 60, 3), torch.randn(3, 60, 4)

    inputs = [tensor.clone().requires_grad_() for tensor in (effective, means, quats, control.weights)]
    poses = poses_at(inputs[0], BASES[0], times, control)
    values = blend(poses, inputs[1], inputs[2], control.index, inputs[3])
    torch.autograd.backward(values, upstream)

    exact_inputs = [tensor.double().requires_grad_() for tensor in (effective, means, quats, control.weights)]
    exact = plain_motion(exact_inputs[0], BASES[0], times, control, *exact_inputs[1:])
    torch.autograd.backward(exact, [gradient.double() for gradient in upstream])

    for value, truth in zip(values, exact, strict=True):
        torch.testing.assert_close(value.double(), truth, atol=2e-6, rtol=1e-5)
    for got, wanted in zip(inputs, exact_inputs, strict=True):
        error = (got.grad.double() - wanted.grad).abs().max() / wanted.grad.abs().max()
        assert error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_functions_for_gpus_give_what_the_kernels_give(subject, dtype: torch.dtype) -> None:
    """Poses, blend and rigidity of `motion_torch`, values and gradients, in float64 as the truth about both."""
    control, means, quats = subject
    index = control.index.clone()
    index[:5, 2] = index[:5, 0]  # clips may name a basis twice: those of fewer bases than four have to
    control = replace(control, index=index)
    torch.manual_seed(3)
    effective = torch.randn(12, 6, 7) * torch.tensor([0.1, 0.1, 0.1, 2.0, 2.0, 2.0])[:, None]  # turns beyond 90 degrees
    times = torch.tensor([0.0, 0.17, 0.83])
    upstream = torch.randn(3, 60, 3), torch.randn(3, 60, 4)

    def kernels(effective, means, quats, weights):
        poses = poses_at(effective, BASES[1], times, control)
        energy = rigidity(poses, control, 5.0, 0.7)
        return energy, *blend(poses, means, quats, control.index, weights)

    def plain(effective, means, quats, weights):
        offsets = (effective @ BASES[1](times).to(dtype)).permute(2, 0, 1)
        points, edge_weights = (tensor.to(dtype) for tensor in (control.points, control.edge_weights))
        poses = motion_torch.poses(offsets, points)
        terms = 3 * len(control.edges)
        factors = 5.0 * RIGIDITY_LENGTH / control.mean_square_edge / terms, 0.7 / terms
        energy = motion_torch.rigidity(poses, points, control.edges.long(), edge_weights, *factors)
        return energy, *motion_torch.blend(poses, means, quats, control.index.long(), weights)

    results = []
    for function, kind in ((kernels, torch.float32), (plain, dtype)):
        inputs = [tensor.to(kind).clone().requires_grad_() for tensor in (effective, means, quats, control.weights)]
        energy, *moved = function(*inputs)
        gradients = [gradient.to(kind) for gradient in upstream]
        torch.autograd.backward([energy, *moved], [torch.ones_like(energy), *gradients])
        results.append([energy, *moved, *(tensor.grad for tensor in inputs)])
    for mine, theirs in zip(*results, strict=True):
        assert (mine.double() - theirs.double()).abs().max() / theirs.abs().max() < 1e-5
    torch.testing.assert_close(results[1][1][0].float(), means, atol=1e-6, rtol=0)  # time 0 is the canonical shape


def test_offsets_refine_weights(subject) -> None:
    weights = subject[0].weights
    torch.testing.assert_close(refined(weights, torch.zeros_like(weights)), weights)
    offsets = torch.zeros_like(weights)
    offsets[:, 1] = np.log(3)
    changed = refined(weights, offsets)
    torch.testing.assert_close(changed.sum(dim=1), torch.ones(len(weights)))
    torch.testing.assert_close(changed[:, 1] / changed[:, 0], 3 * weights[:, 1] / weights[:, 0])


def test_a_clip_moves_like_the_fit(subject) -> None:
    control, means, quats = subject
    torch.manual_seed(2)
    effective = torch.randn(12, 6, 7) * torch.tensor([0.1, 0.1, 0.1, 1.5, 1.5, 1.5])[:, None]
    times = torch.linspace(0, 1, 5)
    moved, turned = blend(poses_at(effective, BASES[1], times, control), means, quats, control.index, control.weights)
    turned = torch.nn.functional.normalize(turned, dim=-1)
    clip = Clip(
        means=means.numpy(),
        quats=torch.nn.functional.normalize(quats, dim=-1).numpy(),
        scales=np.full((60, 3), 0.01, np.float32),
        opacities=np.full(60, 0.5, np.float32),
        sh=np.zeros((60, 1, 3), np.float32),
        motion=to_basis_motion(poses_at(effective, BASES[1], times, control), control),
    )
    for t in range(5):
        moment = clip.frame(t)
        np.testing.assert_allclose(moment.means, moved[t].numpy(), atol=1e-5)
        likeness = np.abs((moment.quats * turned[t].numpy()).sum(axis=-1))  # q and -q are one rotation
        np.testing.assert_allclose(likeness, 1, atol=1e-5)
