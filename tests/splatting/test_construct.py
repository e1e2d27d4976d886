# SPDX-License-Identifier: GPL-3.0-or-later
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.evaluation.metrics import psnr, track_error
from backend.pictures import over_white
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.splatting import checkpoint
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import (
    CHECKPOINT_NAME,
    GUIDED,
    STAGE_SHARES,
    STAGES,
    construct,
    discard_checkpoint,
)
from backend.splatting.observations import Observations, read_orbit_folder
from backend.splatting.render import render_clip
from backend.splatting.scene import is_loop
from blender_addon.contract.clip import Clip, check_clip
from blender_addon.contract.orbit import Cameras, orbit_camera
from blender_addon.contract.surface import read_surface_samples
from tests.splatting.scenes import Scene, swinging_arm

FOX = Path(__file__).parent.parent / "data" / "fox_orbit"
TINY = ConstructConfig(
    gaussians=300,
    control_points=24,
    shape_steps=12,
    coarse_steps=14,  # for each hypothesis
    hypotheses=("free", "jointed"),
    mirrors=(0.0,),
    fine_steps=10,
    coarse_pixels=24,
    fine_pixels=48,
    coarse_gaussians=150,
)
STEPS = 12 + 3 * 14 + 10


@pytest.fixture(scope="module")
def scene() -> Scene:
    return swinging_arm()


@pytest.fixture(scope="module")
def whole(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, Path]:
    """What an undisturbed fit makes of the scene, and the folder that it leaves behind."""
    folder = tmp_path_factory.mktemp("whole")
    return construct(scene.moving, scene.static, scene.surface, TINY, planned(folder)), folder


def planned(folder: Path, **options) -> Run:
    run = Run(folder, **options)
    run.plan(STAGE_SHARES)
    return run


def arrays_of(clip: Clip) -> dict[str, np.ndarray]:
    return {
        **{name: getattr(clip, name) for name in ("means", "quats", "scales", "opacities", "sh")},
        **vars(clip.motion),
    }


def cancel_after(reports: int):
    """An `is_cancelled` that says yes from a certain call on."""
    calls = iter(range(10**9))
    return lambda: next(calls) >= reports


def with_times(views: Observations, times: np.ndarray) -> Observations:
    return replace(views, cameras=replace(views.cameras, times=times))


def mean_psnr(clip: Clip, views: Observations, frozen: bool = False) -> float:
    drawn = render_clip(clip, views.cameras, frozen=frozen)
    return float(psnr(over_white(drawn), over_white(views.images)).mean())


def test_a_moving_scene_is_recovered_from_views_that_nobody_showed(scene: Scene, tmp_path: Path) -> None:
    config = ConstructConfig(
        gaussians=500, control_points=48, shape_steps=50, coarse_steps=60, fine_steps=40, coarse_pixels=32
    )
    clip = construct(scene.moving, scene.static, scene.surface, config, planned(tmp_path))
    check_clip(clip)
    assert clip.frame_count == 9
    assert clip.count == 500
    assert mean_psnr(clip, scene.moving) > 24
    assert mean_psnr(clip, scene.truth) > mean_psnr(clip, scene.truth, frozen=True) + 3
    assert track_error(clip.frames().means, scene.tracks) < 0.6


def test_frame_0_is_the_canonical_shape_and_a_loop_closes(whole: tuple[Clip, Path]) -> None:
    clip, _ = whole
    np.testing.assert_allclose(clip.frame(0).means, clip.means, atol=1e-6)
    np.testing.assert_array_equal(clip.motion.basis_quats[0], np.tile([1, 0, 0, 0], (24, 1)))
    np.testing.assert_allclose(clip.frame(8).means, clip.means, atol=1e-5)
    assert np.abs(clip.frame(4).means - clip.means).max() > 1e-3


def test_the_same_inputs_give_the_same_clip(scene: Scene, whole: tuple[Clip, Path], tmp_path: Path) -> None:
    one = arrays_of(whole[0])
    two, other = (
        arrays_of(construct(scene.moving, scene.static, scene.surface, config, planned(tmp_path / name)))
        for name, config in (("b", TINY), ("c", replace(TINY, seed=1)))
    )
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])
    assert not np.array_equal(one["means"], other["means"])


@pytest.mark.parametrize("reports", [6, *(pytest.param(at, marks=pytest.mark.slow) for at in (13, 20, 45)), 33, 60])
def test_a_killed_fit_goes_on_to_the_same_result(
    scene: Scene, whole: tuple[Clip, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: int
) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "MOST_TIME", math.inf)
    run = planned(tmp_path / "killed", is_cancelled=cancel_after(reports))
    with pytest.raises(JobCancelled):
        construct(scene.moving, scene.static, scene.surface, TINY, run)
    steps: list[Progress] = []
    resumed = planned(tmp_path / "killed", on_progress=steps.append)
    clip = arrays_of(construct(scene.moving, scene.static, scene.surface, TINY, resumed))
    assert len(steps) < STEPS - reports + 12  # it did not begin again
    for name, array in arrays_of(whole[0]).items():
        np.testing.assert_array_equal(array, clip[name], err_msg=name)


def test_a_finished_fit_is_not_done_again_unless_discarded(
    scene: Scene, whole: tuple[Clip, Path], tmp_path: Path
) -> None:
    first, folder = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    steps: list[Progress] = []
    run = planned(tmp_path, on_progress=steps.append)
    again = construct(scene.moving, scene.static, scene.surface, TINY, run)
    np.testing.assert_array_equal(first.motion.basis_translations, again.motion.basis_translations)
    assert steps == []
    discard_checkpoint(run)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_checkpoints_of_other_inputs_or_damaged_ones_are_ignored(
    scene: Scene, whole: tuple[Clip, Path], tmp_path: Path
) -> None:
    path = tmp_path / CHECKPOINT_NAME
    left_behind = (whole[1] / CHECKPOINT_NAME).read_bytes()
    changed = replace(scene.moving, images=scene.moving.images * 0.9)
    for moving, config, content in (
        (changed, TINY, left_behind),
        (scene.moving, replace(TINY, fine_steps=9), left_behind),
        (scene.moving, TINY, left_behind[: len(left_behind) // 2]),
    ):
        path.write_bytes(content)
        steps: list[Progress] = []
        construct(moving, scene.static, scene.surface, config, planned(tmp_path, on_progress=steps.append))
        assert {step.stage for step in steps} == set(STAGES) - {GUIDED}


def test_progress_never_falls_and_shows_pictures(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.progress.PREVIEW_INTERVAL", 0.0)
    steps: list[Progress] = []
    construct(scene.moving, scene.static, scene.surface, TINY, planned(tmp_path, on_progress=steps.append))
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    stages = [stage for stage in STAGES if stage != GUIDED]  # there is none here
    assert [stage for stage in STAGES if any(step.stage == stage for step in steps)] == stages
    for stage in stages:
        preview = next(step.preview for step in reversed(steps) if step.stage == stage)
        assert preview.dtype == np.uint8
        assert preview.shape[2] == 3
        assert sorted(preview.shape[:2])[1] <= 96
        first, second = np.array_split(preview, 2, axis=int(preview.shape[1] > preview.shape[0]))
        assert first.std() > 10
        assert second.std() > 10


def test_a_faint_subject_has_previews(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ghost, or smoke: nowhere more than one part in sixty is there."""
    monkeypatch.setattr("backend.progress.PREVIEW_INTERVAL", 0.0)
    moving, static = (replace(views, images=views.images / 60) for views in (scene.moving, scene.static))
    few = {"shape_steps": 2, "coarse_steps": 2, "fine_steps": 2, "hypotheses": ("free",), "mirrors": ()}
    steps: list[Progress] = []
    run = planned(tmp_path, on_progress=steps.append)
    construct(moving, static, scene.surface, replace(TINY, **few), run)
    seen = [step.preview.shape for step in steps if step.preview is not None]
    assert seen
    assert all(min(shape[:2]) < TINY.fine_pixels for shape in seen)  # cut to where it is


def test_cancelling_ends_it_at_the_next_step(scene: Scene, tmp_path: Path) -> None:
    steps: list[Progress] = []
    run = planned(tmp_path, on_progress=steps.append, is_cancelled=cancel_after(20))
    with pytest.raises(JobCancelled):
        construct(scene.moving, scene.static, scene.surface, TINY, run)
    assert len(steps) == 20


def test_threads_of_torch_are_given_back(scene: Scene, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(JobCancelled):
            construct(scene.moving, scene.static, None, TINY, planned(tmp_path, is_cancelled=cancel_after(3)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_surface_samples_the_visual_hull_serves(scene: Scene, tmp_path: Path) -> None:
    config = replace(TINY, shape_steps=60, gaussians=600)
    clip = construct(scene.moving, scene.static, None, config, planned(tmp_path))
    assert clip.count == 600
    assert mean_psnr(clip, scene.static) > 22


@pytest.mark.slow
def test_without_a_static_orbit_the_moving_one_serves(scene: Scene, tmp_path: Path) -> None:
    config = replace(TINY, shape_steps=60, coarse_steps=80, fine_steps=60, gaussians=600)
    clip = construct(scene.moving, None, None, config, planned(tmp_path))
    check_clip(clip)
    assert mean_psnr(clip, scene.moving) > 21
    assert mean_psnr(clip, scene.moving) > mean_psnr(clip, scene.moving, frozen=True) + 1


@pytest.mark.slow
def test_cameras_may_stand_anywhere_and_pictures_have_any_size(tmp_path: Path) -> None:
    scene = swinging_arm(frames=8, pixels=50, loop=False, closed=False)
    # cut to 50 x 37, and turned about the vertical axis of the world as a whole
    height = 37
    turn = orbit_camera(77, 0, 0)
    cut = {}
    for name in ("moving", "static"):
        views = getattr(scene, name)
        k = views.cameras.Ks.copy()
        k[:, 1, 2] -= 6
        cameras = Cameras(turn @ views.cameras.camera_to_world, k, views.cameras.times, 50, height)
        cut[name] = Observations(views.images[:, 6 : 6 + height].contiguous(), cameras)
    upright = np.diag([1.0, 1.0, 1.0, 1.0])
    upright[:3, :3] = turn[:3, :3]
    surface = replace(
        scene.surface,
        points=(scene.surface.points @ turn[:3, :3].T).astype(np.float32),
        normals=(scene.surface.normals @ turn[:3, :3].T).astype(np.float32),
    )
    config = replace(TINY, shape_steps=40, coarse_steps=60, fine_steps=40)
    clip = construct(cut["moving"], cut["static"], surface, config, planned(tmp_path))
    assert clip.frame_count == 8
    assert mean_psnr(clip, cut["moving"]) > mean_psnr(clip, cut["moving"], frozen=True) + 2


def test_several_views_per_time_are_used(scene: Scene, tmp_path: Path) -> None:
    both = Observations(
        torch.cat([scene.moving.images, scene.truth.images]),
        Cameras(
            *(
                np.concatenate([getattr(views.cameras, name) for views in (scene.moving, scene.truth)])
                for name in ("camera_to_world", "Ks", "times")
            ),
            width=48,
            height=48,
        ),
    )
    clip = construct(both, scene.static, scene.surface, TINY, planned(tmp_path))
    assert clip.frame_count == 9


@pytest.mark.parametrize("frames", [8, pytest.param(96, marks=pytest.mark.slow)])
def test_any_number_of_frames_and_uneven_times(tmp_path: Path, frames: int) -> None:
    scene = swinging_arm(frames=frames, pixels=32, loop=False, closed=False)
    times = scene.moving.cameras.times**1.5  # denser at the beginning
    uneven = with_times(scene.moving, times)
    config = replace(TINY, shape_steps=10, coarse_steps=20, fine_steps=10, gaussians=200, coarse_pixels=24)
    clip = construct(uneven, scene.static, scene.surface, config, planned(tmp_path))
    check_clip(clip)
    assert clip.frame_count == frames
    assert mean_psnr(clip, uneven) > mean_psnr(clip, uneven, frozen=True)


def test_left_out_pictures_leave_the_number_of_frames(scene: Scene, tmp_path: Path) -> None:
    images = scene.moving.images.clone()
    images[4] = 0
    run = planned(tmp_path)
    clip = construct(replace(scene.moving, images=images), scene.static, scene.surface, TINY, run)
    assert clip.frame_count == 9
    assert "1 of 9 pictures" in run.notes[0]


@pytest.mark.slow
def test_linear_light_fits_as_well_and_is_told(scene: Scene, tmp_path: Path) -> None:
    config = replace(TINY, shape_steps=60)
    srgb, linear = (
        construct(scene.moving, scene.static, scene.surface, replace(config, color_space=space), planned(tmp_path))
        for space in ("srgb", "linear")
    )
    assert linear.color_space == "linear"
    assert linear.sh.mean() < srgb.sh.mean() - 0.1  # the same grey is a smaller number in linear light
    # The pictures were blended in sRGB: edges and seams of linear light differ a little.
    assert mean_psnr(linear, scene.static) > mean_psnr(srgb, scene.static) - 3


@pytest.mark.slow
def test_colors_that_depend_on_the_view_need_harmonics(scene: Scene, tmp_path: Path) -> None:
    def lit(views: Observations) -> Observations:
        """Brighter for cameras on the side of +X."""
        side = torch.from_numpy(views.cameras.camera_to_world[:, 0, 3] / 2).float()[:, None, None, None]
        return replace(views, images=torch.cat([views.images[..., :3] * (0.7 + 0.3 * side), views.images[..., 3:]], -1))

    found = []
    for degree in (0, 2):
        config = replace(TINY, shape_steps=60, sh_degree=degree)
        clip = construct(lit(scene.moving), lit(scene.static), scene.surface, config, planned(tmp_path))
        check_clip(clip)
        assert clip.sh_degree == degree
        found.append(mean_psnr(clip, lit(scene.static)))
    assert found[1] > found[0] + 1


def test_a_loop_is_told_by_pictures_from_the_same_camera() -> None:
    loop, other = swinging_arm(), swinging_arm(loop=False)
    assert is_loop(loop.moving)
    assert not is_loop(other.moving)
    open_loop = swinging_arm(frames=12, closed=False)  # last camera differs from the first ...
    assert not is_loop(open_loop.moving)
    assert is_loop(open_loop.moving, open_loop.static)  # ... but the static orbit has it
    open_other = swinging_arm(frames=12, closed=False, loop=False)
    assert not is_loop(open_other.moving, open_other.static)


def test_first_and_last_moment_alone_are_no_loop(scene: Scene, tmp_path: Path) -> None:
    images = scene.moving.images.clone()
    images[1:-1] = 0  # seen from the same camera, and alike
    clip = construct(replace(scene.moving, images=images), scene.static, scene.surface, TINY, planned(tmp_path))
    assert clip.frame_count == len(scene.tracks)


def test_pictures_that_show_nothing_are_refused_with_a_sentence(scene: Scene, tmp_path: Path) -> None:
    nothing = replace(scene.moving, images=torch.zeros_like(scene.moving.images))
    for moving, static in ((nothing, scene.static), (scene.moving, nothing), (nothing, None)):
        with pytest.raises(UserError, match="show nothing") as caught:
            construct(moving, static, scene.surface, TINY, planned(tmp_path))
        assert caught.value.code == "orbit_empty"
        assert caught.value.hint


def test_pictures_of_one_time_are_refused_with_a_sentence(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="same time"):
        construct(scene.static, None, scene.surface, TINY, planned(tmp_path))


def test_presets() -> None:
    draft, preview, final = (ConstructConfig.for_preset(name) for name in ("draft", "preview", "final"))
    assert (draft.gaussians, preview.gaussians, final.gaussians) == (2_000, 5_000, 20_000)
    assert draft.coarse_steps < preview.coarse_steps < final.coarse_steps
    assert ConstructConfig.for_preset("final", 700, 3).gaussians == 700
    assert ConstructConfig.for_preset("final", 700, 3).seed == 3
    with pytest.raises(ValueError, match="no preset"):
        ConstructConfig.for_preset("best")


@pytest.mark.slow
def test_a_walking_fox_from_all_sides(tmp_path: Path) -> None:
    """The figures that matter, on a real animated model: unseen views against the clip frozen at time 0."""
    moving, static, truth = (read_orbit_folder(FOX / name) for name in ("moving", "static", "truth"))
    surface = read_surface_samples(FOX / "surface.npz")
    clip = construct(moving, static, surface, ConstructConfig.for_preset("draft"), planned(tmp_path))
    assert mean_psnr(clip, moving) > 30
    assert mean_psnr(clip, truth) > mean_psnr(clip, truth, frozen=True) + 5
    assert enlarged_psnr(clip, moving, 4) > mean_psnr(clip, moving) - 1.5


def enlarged_psnr(clip: Clip, views: Observations, factor: int) -> float:
    """PSNR of pictures that are `factor` times as large as the given ones, made as small as those."""
    cameras = views.cameras
    larger = replace(
        cameras,
        width=factor * cameras.width,
        height=factor * cameras.height,
        Ks=cameras.Ks * np.array([factor, factor, 1.0])[:, None],
    )
    pictures = torch.nn.functional.avg_pool2d(render_clip(clip, larger).permute(0, 3, 1, 2), factor)
    return float(psnr(over_white(pictures.permute(0, 2, 3, 1)), over_white(views.images)).mean())
