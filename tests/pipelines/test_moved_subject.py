# SPDX-License-Identifier: GPL-3.0-or-later
"""A still subject that is moved: it looks as it did where nothing moves, and as it should where the truth is known."""

import numpy as np
import pytest
import torch

from backend.pipelines import moved_subject
from backend.pipelines.moved_subject import MovedSubject, make_moved_subject
from backend.progress import JobCancelled
from backend.splatting.gaussians import discs
from backend.splatting.motion import blend
from backend.splatting.observations import Observations
from backend.splatting.render import render
from backend.splatting.surface_motion import poses
from blender_addon.contract.orbit import Orbit, further_orbits, joined_cameras, orbit_cameras
from blender_addon.contract.surface import SurfaceSamples
from tests.splatting.scenes import Scene, swinging_arm


@pytest.fixture(scope="module")
def scene() -> Scene:
    return swinging_arm(frames=24, pixels=64, static_views=24, closed=False)


@pytest.fixture(scope="module")
def subject(scene: Scene) -> MovedSubject:
    return make_moved_subject(scene.static, np.linspace(0, 1, 24), scene.surface, lambda: None, loop=False)


def shifts_of(subject: MovedSubject, scene: Scene) -> torch.Tensor:  # [24, B, 3]
    """Control points go where the nearest points of the truth do."""
    control, rest = subject.surface.control.points, torch.from_numpy(scene.tracks[0])
    nearest = torch.cdist(control, rest).argmin(1)
    return torch.from_numpy(scene.tracks[:, nearest.numpy()]) - rest[nearest]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_what_does_not_move_looks_as_it_was_given(scene: Scene, subject: MovedSubject) -> None:
    still = torch.zeros(24, *subject.surface.control.points.shape)
    pictures = subject.pictures(still)
    torch.testing.assert_close(pictures, scene.static.images.permute(0, 3, 1, 2), atol=1e-4, rtol=0)


def test_what_moves_is_seen_where_it_has_come(scene: Scene, subject: MovedSubject) -> None:
    """The arm swings up through 55 degrees; static and moving pictures are from the same cameras."""
    np.testing.assert_allclose(scene.static.viewmats, scene.moving.viewmats, atol=1e-6)
    shifts = shifts_of(subject, scene)
    pictures = subject.pictures(shifts)
    true, static = (views.images.permute(0, 3, 1, 2) for views in (scene.moving, scene.static))
    swung = slice(9, 15)  # far out
    assert psnr(pictures[swung], true[swung]) > psnr(static[swung], true[swung]) + 8
    assert (pictures[:, :3] <= pictures[:, 3:]).all()


def test_a_sketch_is_small_and_shows_the_same(scene: Scene, subject: MovedSubject, monkeypatch) -> None:
    shifts, frames = shifts_of(subject, scene), torch.tensor([0, 12, 20])
    pictures = subject.pictures(shifts)[frames]
    assert psnr(subject.sketch(shifts, frames), pictures) > 25
    monkeypatch.setattr("backend.pipelines.moved_subject.SHAPE_PIXELS", 32)
    sketch = subject.sketch(shifts, frames)
    assert sketch.shape == (3, 4, 32, 32)
    assert psnr(sketch, torch.nn.functional.avg_pool2d(pictures, 2)) > 25


def test_the_movement_is_that_of_the_surface(scene: Scene, subject: MovedSubject) -> None:
    movement = subject.movement(shifts_of(subject, scene))
    nearest = torch.cdist(subject.surface.points, torch.from_numpy(scene.tracks[0])).argmin(1)
    true = torch.from_numpy(scene.tracks[:, nearest.numpy()]) - torch.from_numpy(scene.tracks[0])[nearest]
    assert (movement - true).norm(dim=-1).mean() < 0.15 * true.norm(dim=-1).mean()
    assert not movement[0].abs().max() > 1e-5


def test_a_turn_is_a_turn(subject: MovedSubject) -> None:
    """Control points that are turned as a whole take Gaussians along, and turn these."""
    c, s = np.cos(0.7), np.sin(0.7)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]]).float()
    points = subject.surface.control.points
    turned = poses(subject.surface, (points @ turn.T - points)[None])
    means, quats = blend(turned, points, torch.tensor([[1.0, 0, 0, 0]]).expand(len(points), 4).contiguous(),
                         torch.arange(len(points), dtype=torch.int32)[:, None].expand(-1, 4).contiguous(),
                         torch.full((len(points), 4), 0.25))  # fmt: skip
    torch.testing.assert_close(means[0], points @ turn.T, atol=1e-3, rtol=0)
    expected = torch.tensor([np.cos(0.35), 0, 0, np.sin(0.35)]).float()
    assert (quats[0] - expected).norm(dim=-1).median() < 0.05


def test_fitting_the_shape_can_be_cancelled(scene: Scene) -> None:
    def cancel() -> None:
        raise JobCancelled

    with pytest.raises(JobCancelled):
        make_moved_subject(scene.static, np.linspace(0, 1, 24), None, cancel, loop=False)


ACROSS = np.linspace(-0.4, 0.4, 40, dtype=np.float32)
PLATE = np.stack([*(axis.ravel() for axis in np.meshgrid(ACROSS, ACROSS)), np.zeros(1600, np.float32)], 1)
UP = np.tile(np.float32([0, 0, 1]), (1600, 1))
ANGLE = 1.2  # radians about X, by which it turns its face to the first camera
TURN = torch.tensor([[1, 0, 0], [0, np.cos(ANGLE), -np.sin(ANGLE)], [0, np.sin(ANGLE), np.cos(ANGLE)]]).float()


def plate_seen(colors: np.ndarray, orbits: list[Orbit], turned: bool = False) -> Observations:
    """A square plate that lies flat, or turned towards the first camera."""
    plate = discs(PLATE, UP, colors)
    plate.opacity_logits.fill_(4.0)
    cameras = joined_cameras([orbit_cameras(orbit, 64, 64, moving=False) for orbit in orbits])
    count = len(cameras.times)
    viewmats, intrinsics = (torch.from_numpy(array).float() for array in (cameras.viewmats(), cameras.Ks))
    half = torch.tensor([np.cos(ANGLE / 2), np.sin(ANGLE / 2), 0, 0]).float().expand(1600, -1)  # wxyz
    means, quats = (plate.means @ TURN.T, half) if turned else (plate.means, plate.quats)
    looks = plate.scales, plate.opacities, plate.colors
    means, quats = means.expand(count, -1, -1), quats.expand(count, -1, -1)
    return Observations(render(means, quats, *looks, viewmats, intrinsics, 64, 64), cameras)


def plate_turned(static: Observations, further: Observations | None = None) -> torch.Tensor:  # [4, 64, 64]
    """What the first camera is shown of it when it turns."""
    surface = SurfaceSamples(PLATE, UP)
    subject = make_moved_subject(static, np.linspace(0, 1, 24), surface, lambda: None, loop=False, further=further)
    control = subject.surface.control.points
    return subject.pictures((control @ TURN.T - control).expand(24, -1, -1))[0]


@pytest.mark.slow
def test_a_plate_that_was_seen_edge_on_has_a_face(monkeypatch: pytest.MonkeyPatch) -> None:
    colors = np.tile([0.8, 0.3, 0.1], (1600, 1))
    static = plate_seen(colors, [Orbit()])
    true = plate_seen(colors, [Orbit()], turned=True).images[0, ..., 3] > 0.5

    def covered() -> float:
        found = plate_turned(static)[3] > 0.5
        return float((found & true).sum() / (found | true).sum())

    assert covered() > 0.8
    monkeypatch.setattr(moved_subject, "_with_edge_on", lambda gaussians, surface, static: gaussians)
    assert covered() < 0.6


@pytest.mark.slow
def test_views_from_above_show_what_lies_flat() -> None:
    """The plate is green within an orange rim, which is all that cameras at its height see of it."""
    within = np.abs(PLATE[:, :2]).max(1) < 0.25
    colors = np.where(within[:, None], [0.1, 0.7, 0.2], [0.8, 0.3, 0.1])
    static, further = plate_seen(colors, [Orbit()]), plate_seen(colors, further_orbits(Orbit()))
    true = plate_seen(colors, [Orbit()], turned=True).images[0].permute(2, 0, 1)
    assert psnr(plate_turned(static, further), true) > psnr(plate_turned(static), true) + 5
