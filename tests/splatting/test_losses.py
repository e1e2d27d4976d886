# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
import torch

from backend.splatting.control_points import make_control_points
from backend.splatting.losses import DEPTH_STEP, depth_smoothness, image_loss, rigidity, spectral_prior
from backend.splatting.motion import TimeBasis, offsets_at, poses_of

BASIS = TimeBasis(loop=True, harmonics=2)


@pytest.fixture
def control():
    return make_control_points(np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) * 0.2, 10)


def test_image_loss_is_zero_for_the_same_picture_and_grows_with_smaller_coverage() -> None:
    picture = torch.rand(2, 8, 8, 4)
    other = torch.rand(2, 8, 8, 4)
    assert image_loss(picture, picture, 0.1) == 0
    torch.testing.assert_close(image_loss(picture, other, 0.05), 2 * image_loss(picture, other, 0.1))


def test_image_loss_compares_over_white_over_black_and_alpha() -> None:
    nothing = torch.zeros(1, 1, 1, 4)
    white = torch.ones(1, 1, 1, 4)  # cannot be told from nothing over white
    black = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)  # cannot be told from nothing over black
    assert image_loss(nothing, white, 1.0) == pytest.approx(0.5 * 1 + 0.5)
    assert image_loss(nothing, black, 1.0) == pytest.approx(0.5 * 1 + 0.5)
    assert image_loss(black, white, 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("colored", [None, torch.tensor([True, False, True])])
def test_gradient_of_the_image_loss_against_plain_torch(colored: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    rendered, target = torch.rand(2, 3, 5, 7, 4)
    target[0, 2] = rendered[0, 2]  # no error has no direction
    rendered.requires_grad_()
    image_loss(rendered, target, 0.2, colored).backward()
    found, rendered.grad = rendered.grad, None
    over_black, alpha = (rendered - target)[..., :3], (rendered - target)[..., 3:]
    colors = (over_black.abs() + (over_black - alpha).abs()) * (1 if colored is None else colored[:, None, None, None])
    expected = (0.5 * colors.mean() + 0.5 * alpha.abs().mean()) / 0.2
    torch.testing.assert_close(image_loss(rendered, target, 0.2, colored), expected)
    expected.backward()
    torch.testing.assert_close(found, rendered.grad)


def test_spectral_prior_leaves_one_cycle_free_and_punishes_faster_ones() -> None:
    basis = TimeBasis(loop=True, harmonics=3)
    costs = []
    for term in (0, 2, 4):  # one, two, three cycles
        effective = torch.zeros(5, 6, 6)
        effective[:, 0, term] = 0.1
        costs.append(float(spectral_prior(effective, basis)))
    assert costs == pytest.approx([0, 0.01 * (2**4 - 1), 0.01 * (3**4 - 1)])
    half = TimeBasis(loop=False, harmonics=2)
    assert spectral_prior(torch.ones(5, 6, 5) * torch.tensor([1.0, 1, 1, 0, 0]), half) == 0  # the drift, and one cycle


def test_rigidity_is_zero_for_a_rigid_motion(control) -> None:
    effective = torch.zeros(10, 6, 4)
    effective[:, :3, 0] = 0.3
    poses = poses_of(offsets_at(effective, BASIS, torch.tensor([0.2, 0.6])), control)
    assert rigidity(poses, control, 5.0, 1.0) == pytest.approx(0, abs=1e-9)
    # The same turn of all about one centre: each point turns, and moves as the turn about the centre takes it.
    angle = 0.8
    turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    rigid = torch.zeros(1, 10, 16)
    rigid[..., :9] = turn.flatten()
    rigid[..., 12], rigid[..., 15] = np.cos(angle / 2), np.sin(angle / 2)
    assert rigidity(rigid, control, 5.0, 1.0) == pytest.approx(0, abs=1e-9)


def test_rigidity_counts_stretch_relative_to_the_edges(control) -> None:
    stretched = torch.zeros(1, 10, 16)
    stretched[..., [0, 4, 8]] = 1.0
    stretched[..., 12] = 1.0
    stretched[..., 9:12] = 0.2 * control.points  # all edges 20 % longer
    weights = control.edge_weights
    edges = control.points[control.edges.long()]
    expected = (
        5.0
        * 0.1
        / control.mean_square_edge
        * (weights * (0.2 * (edges[:, 1] - edges[:, 0])).square().sum(dim=1)).mean()
    )
    assert rigidity(stretched, control, 5.0, 1.0) == pytest.approx(float(expected), rel=1e-4)


def test_gradient_of_rigidity_against_plain_torch(control) -> None:
    torch.manual_seed(0)
    poses = torch.randn(3, 10, 16).requires_grad_()
    rigidity(poses, control, 5.0, 0.7).backward()

    exact = poses.detach().double().requires_grad_()
    points = control.points.double()
    i, j = control.edges.long().unbind(1)
    turn = exact[..., :9].unflatten(-1, (3, 3))
    moved = (turn @ points[..., None])[..., 0] + exact[..., 9:12]
    stretch = moved[:, j] - moved[:, i] - (turn[:, i] @ (points[j] - points[i])[..., None])[..., 0]
    length = 5.0 * 0.1 / control.mean_square_edge * stretch.square().sum(-1)
    turning = 0.7 * (exact[:, i, 12:] - exact[:, j, 12:]).square().sum(-1)
    (control.edge_weights * (length + turning)).mean().backward()
    error = (poses.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
    assert error < 1e-5


def test_depth_is_smooth_on_slopes_steps_cost_less_at_edges_and_outside_nothing() -> None:
    target = torch.ones(1, 8, 8, 4)
    target[..., :3] = 0.5
    slope = torch.arange(8.0).expand(8, 8)[None] * 0.01
    assert float(depth_smoothness(slope, target, pixel=0.01)) == pytest.approx(1.0, abs=1e-5)
    step = torch.zeros(1, 8, 8)
    step[..., 4:] = 1.0
    plain = float(depth_smoothness(step, target, pixel=0.01))
    assert plain == pytest.approx(DEPTH_STEP / 7, abs=1e-5)
    edge = target.clone()
    edge[..., 4:, :3] = 1.0
    assert float(depth_smoothness(step, edge, pixel=0.01)) < 0.1 * plain
    hidden = target.clone()
    hidden[..., 3] = 0.0
    assert float(depth_smoothness(step, hidden, pixel=0.01)) == 0.0
