# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input of a construction: refused with a sentence, or told of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.progress import Run, UserError
from backend.splatting.inspection import inspect
from backend.splatting.observations import Observations
from backend.splatting.sight import project
from blender_addon.contract.orbit import Cameras, Orbit, further_cameras, joined_cameras, orbit_cameras
from blender_addon.contract.surface import SurfaceSamples
from tests.splatting.scenes import Scene, swinging_arm


@pytest.fixture(scope="module")
def scene() -> Scene:
    return swinging_arm()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def with_cameras(views: Observations, **changes) -> Observations:
    return replace(views, cameras=replace(views.cameras, **changes))


def with_images(views: Observations, change) -> Observations:
    images = views.images.clone()
    change(images)
    return replace(views, images=images)


def refused(run: Run, code: str, moving, static=None, surface=None) -> str:
    with pytest.raises(UserError) as caught:
        inspect(moving, static, surface, run)
    assert caught.value.code == code
    assert caught.value.hint
    return str(caught.value)


def test_good_input_raises_no_doubt(scene: Scene, run: Run) -> None:
    assert inspect(scene.moving, scene.static, scene.surface, run) == (scene.moving, scene.static)
    assert inspect(scene.moving, None, None, run) == (scene.moving, None)
    assert run.notes == []


def test_empty_pictures_are_left_out_and_told_of(scene: Scene, run: Run) -> None:
    emptied = with_images(scene.moving, lambda images: images.index_fill_(0, torch.tensor([2, 5]), 0.0))
    moving, _ = inspect(emptied, scene.static, None, run)
    assert len(moving.images) == len(moving.cameras.times) == 7
    assert moving.images.amax(dim=(1, 2, 3)).gt(0).all()
    (note,) = run.notes
    assert "2 of 9 pictures of the moving orbit show nothing" in note
    assert "2, 5" in note
    nothing = with_images(scene.moving, lambda images: images.zero_())
    assert "show nothing" in refused(run, "orbit_empty", nothing, scene.static)
    assert "static" in refused(run, "orbit_empty", scene.moving, with_images(scene.static, lambda i: i.zero_()))
    only_first = with_images(scene.moving, lambda images: images[1:].zero_())
    assert "except at one time" in refused(run, "orbit_empty", only_first)


def test_one_picture_or_one_time_is_no_motion(scene: Scene, run: Run) -> None:
    assert "one picture" in refused(run, "orbit_without_time", scene.moving.subset(np.array([0])))
    assert "same time" in refused(run, "orbit_without_time", scene.static)


def test_pictures_without_a_background_are_refused(scene: Scene, run: Run) -> None:
    refused(run, "orbit_opaque", with_images(scene.moving, lambda images: images[..., 3].fill_(1.0)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(scene: Scene, run: Run, value: float) -> None:
    def spoil(images: torch.Tensor) -> None:
        images[3, 10, 10, 1] = value

    assert "picture 3" in refused(run, "orbit_not_finite", with_images(scene.moving, spoil), scene.static)
    matrices = scene.moving.cameras.camera_to_world.copy()
    matrices[1, 0, 3] = value
    refused(run, "orbit_cameras", with_cameras(scene.moving, camera_to_world=matrices), scene.static)


def test_cameras_that_do_not_fit_the_pictures_are_refused(scene: Scene, run: Run) -> None:
    views, cameras = scene.moving, scene.moving.cameras
    fewer = Observations(views.images[:-1], cameras)
    assert "8 pictures but 9 cameras" in refused(run, "orbit_cameras", fewer)
    assert "48 x 48" in refused(run, "orbit_cameras", with_cameras(views, width=96, height=96))
    mirrored = cameras.camera_to_world @ np.diag([-1.0, 1, 1, 1])
    assert "mirrors" in refused(run, "orbit_cameras", with_cameras(views, camera_to_world=mirrored))
    # OpenCV's axes in place of OpenGL's: all cameras look away.
    opencv = cameras.camera_to_world @ np.diag([1.0, -1, -1, 1])
    assert "do not look at the subject" in refused(run, "orbit_cameras", with_cameras(views, camera_to_world=opencv))


def test_cameras_of_other_pictures_are_noticed(scene: Scene, run: Run) -> None:
    static, cameras = scene.static, scene.static.cameras
    turned = with_cameras(static, camera_to_world=np.roll(cameras.camera_to_world, 3, axis=0))
    inspect(scene.moving, turned, scene.surface, run)
    assert any("surface points" in note for note in run.notes)
    shaken = cameras.camera_to_world.copy()
    shaken[:, 2, 3] += 0.3 * (-1.0) ** np.arange(12)
    shaken = with_cameras(static, camera_to_world=shaken)
    assert "do not fit together" in refused(run, "orbit_inconsistent", scene.moving, shaken)


def test_a_surface_of_another_scale_is_refused(scene: Scene, run: Run) -> None:
    for factor in (0.3, 4.0):
        other = SurfaceSamples((scene.surface.points * factor).astype(np.float32), scene.surface.normals)
        refused(run, "surface_mismatch", scene.moving, scene.static, other)


def test_a_static_orbit_of_another_moment_is_told_of(scene: Scene, run: Run) -> None:
    later = Observations(scene.truth.images, replace(scene.truth.cameras, times=np.zeros(len(scene.truth.images))))
    late = later.subset(np.arange(8, 16))  # when the arm is up
    inspect(scene.moving, late, scene.surface, run)
    assert any("surface points" in note for note in run.notes)
    nearer = scene.static.cameras.camera_to_world * np.array([1.0, 1.0, 1.0, 1 / 3])  # the last row is not divided ...
    nearer[:, 3, 3] = 1.0  # ... so the subject comes out a third as large
    small = with_cameras(scene.static, camera_to_world=nearer)
    assert "do not show the same" in refused(run, "static_mismatch", scene.moving, small)


def test_a_subject_cut_by_the_edge_is_told_of(scene: Scene, run: Run) -> None:
    views = scene.moving
    intrinsics = views.cameras.Ks.copy()
    intrinsics[:, 0, 2] -= 16
    cut = Observations(
        views.images[:, :, 16:].contiguous(),
        Cameras(views.cameras.camera_to_world, intrinsics, views.cameras.times, 32, 48),
    )
    inspect(cut, scene.static, None, run, is_known=True)
    assert not run.notes  # how it goes on is told, and the still pictures show all of it
    inspect(cut, None, None, run, is_known=True)
    inspect(cut, scene.static, None, run)
    inspect(cut, scene.static, None, run, "less motion keeps it in view")
    note, other = run.notes
    assert other.endswith("less motion keeps it in view.")
    assert "the edge" in other
    assert "move the cameras" not in other
    assert "cut off by the edge" in note


@pytest.mark.parametrize("half_sides", [(0.01, 0.01, 0.5), (0.5, 0.5, 0.003), (0.003, 0.5, 0.4)])
def test_spears_and_sheets_fit_their_own_pictures(half_sides: tuple[float, float, float], run: Run) -> None:
    cameras = orbit_cameras(Orbit(frames=6), 64, 64, moving=True)
    moving = box_seen_by(cameras, half_sides)
    around = joined_cameras([replace(cameras, times=np.zeros(6)), further_cameras(Orbit(frames=6), 64, 64)])
    inspect(moving, box_seen_by(around, half_sides), None, run)
    assert not any("fit together" in note or "do not show the same" in note for note in run.notes)


def test_many_small_bits_fit_where_their_surface_is_known(run: Run) -> None:
    """Their hull is nothing: without the surface they are refused."""
    rng = np.random.default_rng(0)
    points = (rng.uniform(-0.4, 0.4, (100, 1, 3)) + rng.normal(size=(100, 40, 3)) * 0.012).reshape(-1, 3)
    moving = dots_seen_by(orbit_cameras(Orbit(frames=6), 128, 128, moving=True), points)
    static = dots_seen_by(orbit_cameras(Orbit(frames=12), 128, 128, moving=False), points)
    normals = np.tile(np.float32([0, 0, 1]), (len(points), 1))
    inspect(moving, static, SurfaceSamples(points.astype(np.float32), normals), run)
    assert not run.notes
    refused(run, "orbit_inconsistent", moving, static)


def dots_seen_by(cameras: Cameras, points: np.ndarray) -> Observations:
    """Points [N, 3], each a pixel."""
    images = torch.zeros(len(cameras.times), cameras.height, cameras.width, 4)
    for image, viewmat, K in zip(images, cameras.viewmats(), cameras.Ks, strict=True):  # noqa: N806
        pixels, _, inside = project(points, viewmat, K, cameras.width, cameras.height)
        image[pixels[inside, 1], pixels[inside, 0]] = 1
    return Observations(images, cameras)


def box_seen_by(cameras: Cameras, half_sides: tuple[float, float, float], finer: int = 6) -> Observations:
    """A box on the origin, by `finer` x `finer` rays through each pixel."""
    views, size, half = len(cameras.times), finer * cameras.width, np.array(half_sides)
    at = (np.arange(size) + 0.5) / finer
    images = np.zeros((views, cameras.height, cameras.width, 4), np.float32)
    for image, pose, (fx, cx, fy, cy) in zip(
        images, cameras.camera_to_world, cameras.Ks[:, [0, 0, 1, 1], [0, 2, 1, 2]], strict=True
    ):
        x, y = np.meshgrid((at - cx) / fx, -(at - cy) / fy)
        rays = np.stack([x, y, -np.ones_like(x)], axis=-1) @ pose[:3, :3].T
        planes = np.stack([(side * half - pose[:3, 3]) / rays for side in (-1, 1)])
        hit = planes.min(axis=0).max(axis=-1) < planes.max(axis=0).min(axis=-1)
        image[..., 3] = hit.reshape(cameras.height, finer, cameras.width, finer).mean(axis=(1, 3))
    images[..., :3] = 0.5 * images[..., 3:]
    return Observations(torch.from_numpy(images), cameras)
