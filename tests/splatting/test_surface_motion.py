# SPDX-License-Identifier: GPL-3.0-or-later
"""The one movement behind flows of all pictures: found from its own flow, through noise, and through a torn picture."""

import numpy as np
import pytest
import torch

from backend.splatting.control_points import make_control_points
from backend.splatting.surface_motion import Surface, flow_of, grown, kept_in_view, lift, make_surface, unstretched
from tests.splatting.scenes import swinging_arm


@pytest.fixture(scope="module")
def surface() -> Surface:
    scene = swinging_arm(pixels=64, static_views=24)
    return make_surface(scene.surface, scene.static, np.linspace(0, 1, len(scene.static.images)))


def test_known_samples_are_the_surface() -> None:
    scene = swinging_arm(pixels=64, static_views=24)
    surface = make_surface(scene.surface, scene.static, np.linspace(0, 1, 24))
    known = {point.tobytes() for point in scene.surface.points}
    assert sum(point.numpy().tobytes() in known for point in surface.points) >= min(len(known), len(surface.points)) - 1


def sway(surface: Surface) -> torch.Tensor:  # [T, B, 3]
    """The upper half bends to the side and back."""
    points = surface.control.points
    height = (points[:, 2] - points[:, 2].min()).clamp_min(0)
    time = torch.linspace(0, 1, len(surface.viewmats))
    swing = 0.3 * torch.sin(2 * torch.pi * time)[:, None] * height
    return torch.stack([swing, 0 * swing, 0 * swing], -1)


def error(surface: Surface, found: torch.Tensor, true: torch.Tensor) -> float:
    """Mean distance of the points from where they should be, relative to their movement."""
    found, true = surface.moved(found), surface.moved(true)
    return float((found - true).norm(dim=-1).mean() / true.norm(dim=-1).mean())


def pictures(surface: Surface, shifts: torch.Tensor) -> torch.Tensor:
    """Flow that is known everywhere: between the points that of the whole picture's mean."""
    told, coverage = flow_of(surface, shifts, 32)
    mean = told.sum((2, 3), keepdim=True) / coverage.sum((2, 3), keepdim=True)
    return told + (1 - coverage) * mean


def test_a_movement_is_found_from_its_flow(surface: Surface) -> None:
    true = sway(surface)
    found = lift(surface, pictures(surface, true), rounds=5)
    assert error(surface, found, true) < 0.3
    assert found[0].abs().max() < 1e-6  # nothing has moved at time 0


def test_a_torn_picture_is_overruled_by_the_others(surface: Surface) -> None:
    true = sway(surface)
    flow = pictures(surface, true)
    torn = flow.clone()
    torn[len(torn) // 2] += 0.5
    whole, mended = (lift(surface, one, rounds=5) for one in (flow, torn))
    assert error(surface, mended, whole) < 0.2


@pytest.mark.slow
def test_a_loop_ends_as_it_began() -> None:
    scene = swinging_arm(pixels=64, static_views=24)
    times = np.linspace(0, 1, len(scene.static.images))
    ends = []
    for loop in (False, True):
        surface = make_surface(scene.surface, scene.static, times, loop=loop)
        drift = torch.linspace(0, 1, len(times))[:, None, None] * torch.tensor([0.2, 0.0, 0.0])
        found = lift(surface, pictures(surface, sway(surface) + drift), rounds=5)
        ends.append(float(found[-1].norm(dim=-1).mean()))
    assert ends[0] > 0.1
    assert ends[1] < 1e-4


def test_no_flow_moves_nothing(surface: Surface) -> None:
    flow = torch.zeros(len(surface.viewmats), 3, 16, 16)
    assert lift(surface, flow).abs().max() < 1e-5


def test_what_stays_in_view_moves_as_it_did(surface: Surface) -> None:
    shifts = sway(surface)
    torch.testing.assert_close(kept_in_view(surface, shifts), shifts)


def test_who_would_leave_the_pictures_travels_less(surface: Surface) -> None:
    away = torch.linspace(0, 2, len(surface.viewmats))[:, None, None] * torch.tensor([0.0, 0, 1])
    shifts = sway(surface)
    kept = kept_in_view(surface, shifts + away)
    assert float(kept[-1, :, 2].mean()) < 0.55
    own = kept - kept.mean(1, keepdim=True)
    torch.testing.assert_close(own, shifts - shifts.mean(1, keepdim=True))  # its own movement is what it was


def test_who_would_leave_them_at_the_side_rises_as_it_did(surface: Surface) -> None:
    away = torch.linspace(0, 1, len(surface.viewmats))[:, None, None] * torch.tensor([2.0, 0, -0.05])
    shifts = sway(surface) + away
    kept = kept_in_view(surface, shifts)
    assert float(kept[-1, :, 0].mean()) < 0.55
    torch.testing.assert_close(kept[..., 2], shifts[..., 2])


def test_who_would_still_leave_them_moves_less(surface: Surface) -> None:
    wild = 6 * sway(surface)
    kept = kept_in_view(surface, wild)
    assert 0.05 < float(kept.norm() / wild.norm()) < 0.8


@pytest.fixture(scope="module")
def rod() -> tuple:
    """Control points of a rod along X that is held at one end, and their shifts where it turns up by half a radian."""
    points = np.random.default_rng(0).uniform(-1, 1, (400, 3)) * (0.5, 0.03, 0.03) + (0.5, 0, 0)
    control = make_control_points(np.float32(points), 32)
    angle = 0.5 * torch.linspace(0, 1, 5)
    x, y, z = control.points.T
    turned = [x * angle.cos()[:, None] - z * angle.sin()[:, None], y.expand(5, -1)]
    turned.append(x * angle.sin()[:, None] + z * angle.cos()[:, None])
    return control, torch.stack(turned, -1) - control.points


def length(control, shifts: torch.Tensor) -> float:
    """Of the rod at the last time, relative to that at rest."""
    ends = control.points[:, 0].argmin(), control.points[:, 0].argmax()
    at_rest, moved = (
        (points[ends[1]] - points[ends[0]]).norm() for points in (control.points, control.points + shifts[-1])
    )
    return float(moved / at_rest)


def test_what_is_stretched_is_stretched_less(rod) -> None:
    control, turn = rod
    pulled = turn + 0.4 * control.points[:, :1] * torch.tensor([1.0, 0, 0]) * torch.linspace(0, 1, 5)[:, None, None]
    assert 1 < length(control, unstretched(control, pulled)) < 0.2 + 0.8 * length(control, pulled)
    torch.testing.assert_close(unstretched(control, turn), turn, atol=1e-2, rtol=0)


def test_what_grows_does_not_become_as_much_longer(rod) -> None:
    control, turn = rod
    larger = grown(control, turn, 2.5)
    assert length(control, larger) < 0.3 + 0.7 * length(control, 2.5 * turn)
    assert larger.norm() > 2 * turn.norm()


def test_growing_makes_no_jumps(rod) -> None:
    control, turn = rod
    torch.testing.assert_close(grown(control, turn, 0.3), 0.3 * turn)
    for size in (1.0, 1.25, 1.25**2):
        below, above = (grown(control, turn, size * change) for change in (1 - 1e-5, 1 + 1e-5))
        torch.testing.assert_close(below, above, atol=1e-3, rtol=0)
