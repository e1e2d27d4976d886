# SPDX-License-Identifier: GPL-3.0-or-later
"""Evaluation runs of constructions whose quality is known, on true pictures of the small assets."""

import errno
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.__main__ import main
from backend.data.fast_renderer import FastRenderer
from backend.data.surface_points import follow_surface, sample_triangles
from backend.data.views import FRAMES
from backend.evaluation import construction_truth, truth, truth_worker
from backend.evaluation.choice import ChosenClip, chosen_clips, named_clips
from backend.evaluation.construction_run import evaluate_constructions
from backend.evaluation.construction_truth import GridTruth, TruthFolder, several_cameras, unseen_cameras
from backend.evaluation.constructor import Constructor, parse_change
from backend.progress import JobCancelled, Run, UserError
from backend.splatting.observations import Observations
from blender_addon.contract.clip import Clip, FrameMotion
from blender_addon.contract.orbit import Orbit
from blender_addon.contract.requests import STILL_FRAMES

PIXELS = 48
COLOR_GAIN = 0.28209479177387814


@pytest.fixture
def assets(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath / "tests" / "data" / "assets"


@pytest.fixture
def lever(assets: Path) -> ChosenClip:
    return named_clips(assets, ["quaternius_platformer_game_pack/lever:Lever_Off"])[0]


@pytest.fixture
def few_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(construction_truth, "UNSEEN_FRAMES", (8, 15))


@pytest.fixture
def in_processes() -> None:
    """Truths are rendered as they are outside of tests."""


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the fast renderer needs a process of its own."""
    if "in_processes" not in request.fixturenames:
        monkeypatch.setattr(
            truth,
            "ask_all",
            lambda questions, *_, **__: [(name, truth_worker.answer(one)) for name, one in questions.items()],
        )


def grey_clip(points: np.ndarray) -> Clip:  # [T, N, 3]
    count = points.shape[1]
    identity = np.tile(np.array([1, 0, 0, 0], np.float32), (len(points), count, 1))
    return Clip(
        means=points[0],
        quats=identity[0],
        scales=np.full((count, 3), 0.025, np.float32),
        opacities=np.full(count, 0.95, np.float32),
        sh=np.full((count, 1, 3), (0.4 - 0.5) / COLOR_GAIN, np.float32),
        motion=FrameMotion(points, identity),
    )


class Known:
    """A construction that knows the true motion, or that knows of none."""

    def __init__(self, assets: Path, moves: bool = True) -> None:
        self.assets, self.moves = assets, moves
        self.given: list[tuple] = []
        self.clip: ChosenClip | None = None

    def __call__(self, moving: Observations, static: Observations, surface, run: Run) -> Clip:
        self.given.append((moving, static, surface))
        run.plan({"Knowing": 1.0})
        run.begin("Knowing")
        triangles = FastRenderer(self.assets, self.clip.entry, PIXELS).triangles(self.clip.index)
        points = follow_surface(triangles, 800, seed=5)
        run.finish()
        return grey_clip(points if self.moves else np.repeat(points[:1], FRAMES, axis=0))


def evaluate(known: Callable, clip: ChosenClip, out: Path, **options) -> dict:
    known.clip = clip
    made = Constructor(known, "known", options.pop("version", "1"))
    options = {"cases": ("object",), "run": Run(out), "renderer": "fast", "resolution": PIXELS, **options}
    return evaluate_constructions(known.assets, [clip], out, made, **options)


def test_unseen_views_are_none_that_any_case_is_given() -> None:
    unseen, several = unseen_cameras(), several_cameras()
    assert len(np.unique(unseen.times)) == 12
    assert 0 < unseen.times.min() < unseen.times.max() < 1
    assert 160 < len(unseen.times) < 192
    back = unseen.camera_to_world[:, :3, 2]
    assert set(np.degrees(np.arcsin(back[:, 2])).round()) == {0, 20}
    shown = Orbit(FRAMES).camera_to_world()[(unseen.times * (FRAMES - 1)).round().astype(int), :3, 2]
    flat = back[:, :2] / np.linalg.norm(back[:, :2], axis=1, keepdims=True)
    assert np.degrees(np.arccos((flat * shown[:, :2]).sum(axis=1).clip(-1, 1))).min() >= 15 - 1e-6
    for moment in np.unique(unseen.times):
        given = several.camera_to_world[np.isclose(several.times, moment), :3, 2]
        assert len(given) == 8
        assert np.degrees(np.arccos((back[unseen.times == moment] @ given.T).max())) > 10


@pytest.mark.slow
@pytest.mark.usefixtures("few_views")
def test_the_true_motion_is_told_from_none(assets: Path, lever: ChosenClip, tmp_path: Path) -> None:
    known, truths = Known(assets), tmp_path / "truths"
    cases = ("object", "pictures", "hull", "views8")
    summary = evaluate(known, lever, tmp_path / "true", cases=cases, truths=truths)
    (row,) = summary["assets"]
    assert row["track_error"] < 0.15
    assert row["psnr_gain"] == pytest.approx(row["psnr_unseen"] - row["psnr_unseen_frozen"])
    assert row["psnr_gain"] > 1
    assert row["iou_unseen"] > row["iou_unseen_frozen"] + 0.05
    assert row["psnr_unseen_worst"] < row["psnr_unseen"]
    assert row["dssim_unseen"] == pytest.approx((1 - row["ssim_unseen"]) / 2)
    assert set(row["by_frame"]) == {"8", "15"}
    assert summary["mean"] == summary["median"] != {}
    assert summary["cases"]["hull"]["mean"]["psnr_unseen"] == row["psnr_unseen"]  # it knows all the same
    assert {"versions", "preset", "seconds"} <= set(summary)
    assert "lpips" in summary["not_measured"]
    assert json.loads((tmp_path / "true" / "summary.json").read_text()) == summary

    (moving, static, surface), (_, _, standing), (_, _, no_surface), (several, _, standing_too) = known.given
    assert surface.movement.shape == (FRAMES, *surface.points.shape)
    assert standing.movement is None
    assert standing_too.movement is None
    np.testing.assert_array_equal(standing.points, surface.points)
    assert len(moving.images) == FRAMES
    assert len(static.images) == STILL_FRAMES
    assert (static.times == 0).all()
    assert len(several.images) == 8 * FRAMES
    assert no_surface is None
    assert np.abs(surface.points).max() <= 0.5 + 1e-3
    assert len(list((tmp_path / "true" / "sheets").glob("*.png"))) == 5  # of the clip, and one of each case
    assert re.search(r"\| hull, median +\|", (tmp_path / "true" / "table.md").read_text())

    (still,) = evaluate(Known(assets, moves=False), lever, tmp_path / "still")["assets"]
    assert still["track_error"] == pytest.approx(1)
    assert still["psnr_gain"] == 0
    assert still["psnr_unseen"] == still["psnr_unseen_frozen"] < row["psnr_unseen"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_views")
def test_a_second_run_takes_what_the_first_has_made(assets: Path, lever: ChosenClip, tmp_path: Path) -> None:
    known = Known(assets)
    options = {"cases": ("object", "hull"), "truths": tmp_path / "truths"}
    cancelled = Run(tmp_path, is_cancelled=lambda: len(known.given) > 1)
    with pytest.raises(JobCancelled):
        evaluate(known, lever, tmp_path, run=cancelled, **options)
    (picture,) = (path.stat().st_mtime_ns for path in (tmp_path / "truths").rglob("unseen.png"))
    first = evaluate(known, lever, tmp_path, **options)
    assert len(known.given) == 3  # the one that was cancelled is made again
    again = evaluate(known, lever, tmp_path, **options)
    assert len(known.given) == 3
    assert again["assets"] == first["assets"]
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("unseen.png")] == [picture]
    evaluate(known, lever, tmp_path, version="2", truths=tmp_path / "truths")
    assert len(known.given) == 4


@pytest.mark.usefixtures("few_views")
def test_a_construction_that_fails_is_named(assets: Path, lever: ChosenClip, tmp_path: Path) -> None:
    known = Known(assets)
    known_call = known.__call__

    def sometimes(moving: Observations, static: Observations, surface, run: Run) -> Clip:
        if surface is None:
            raise UserError("construction_diverged", "It went astray.", "Try again.")
        return known_call(moving, static, surface, run)

    sometimes.assets = assets
    known.clip = lever
    summary = evaluate(sometimes, lever, tmp_path, cases=("object", "hull"))
    assert summary["failed"] == {f"hull {lever.name}": "It went astray. Try again."}
    assert summary["cases"]["hull"]["assets"] == []
    assert "It went astray" in (tmp_path / "table.md").read_text()


def test_what_is_no_fair_test_is_left_out(
    assets: Path, lever: ChosenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_worker, "why_unfit", lambda moving, static: "it hardly moves")
    with pytest.raises(UserError, match="None of the clips") as caught:
        evaluate(Known(assets), lever, tmp_path)
    assert "it hardly moves" in caught.value.hint
    assert not list(tmp_path.rglob("unseen.png"))  # the costly part is spared


def test_clips_are_asked_for_by_name_family_and_action(assets: Path) -> None:
    names = [clip.name for clip in chosen_clips(assets, "train", 2, actions=["off", "bounce"])]
    assert [name.split("__")[-1] for name in names] == ["Bouncer_Bounce", "Lever_Off"]
    assert {clip.entry["family"] for clip in chosen_clips(assets, None, 1, families=["fish_pack"])} == {"fish_pack"}
    (fish,) = named_clips(assets, ["quaternius_fish_pack/fish2:Swim.001"])
    assert fish.action == "Armature|Swim.001"
    for wrong, hint in (("quaternius_fish_pack/fish2:Fly", "Armature|Swim.001"), ("fish:Swim", "manifest")):
        with pytest.raises(UserError) as caught:
            named_clips(assets, [wrong])
        assert hint in caught.value.hint
    with pytest.raises(UserError, match="no family birds"):
        chosen_clips(assets, None, 1, families=["birds"])
    with pytest.raises(UserError, match="No clip fits"):
        chosen_clips(assets, "val", 1, actions=["fly"])


@pytest.mark.parametrize(
    ("error", "kept"),
    [(UserError("x", "No such action."), "No such action."), (OSError(errno.ENOSPC, "No space left on device"), None)],
)
def test_a_full_disk_is_no_fault_of_the_clip(tmp_path: Path, monkeypatch, error: Exception, kept: str | None) -> None:
    """What is wrong with a clip is kept, as it will not change; what is wrong with the computer may."""

    def fail(question: dict) -> str:
        raise error

    monkeypatch.setattr(truth_worker, "_render", fail)
    answer = truth_worker.answer({"renderer": "fast", "folder": str(tmp_path), "fingerprint": "0"})
    assert ("error" in answer) == (kept is None)
    written = tmp_path / "truth.json"
    assert (json.loads(written.read_text())["problem"] if written.exists() else None) == kept


def test_settings_of_the_fit_are_read_by_their_kind() -> None:
    assert parse_change("harmonics=4") == ("harmonics", 4)
    assert parse_change("spectral_weight=4") == ("spectral_weight", 4.0)
    assert parse_change("color_space=linear") == ("color_space", "linear")
    assert parse_change("hypotheses=free,jointed") == ("hypotheses", ("free", "jointed"))
    assert parse_change("mirrors=0,0.5") == ("mirrors", (0.0, 0.5))
    assert parse_change("mirrors=") == ("mirrors", ())
    for wrong in ("harmonic=4", "harmonics=four", "harmonics", "motion=planes", "hypotheses=joints", "hexplane=3"):
        with pytest.raises(UserError):
            parse_change(wrong)


def test_points_are_even_on_the_surface_and_stay_on_it() -> None:
    corners = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 1], [3, 0, 1], [0, 1, 1]]], float)
    chosen, weights = sample_triangles(corners, 400, seed=0)
    assert (chosen == 0).sum() == 100  # a quarter of the area
    assert weights.min() >= 0
    assert np.allclose(weights.sum(axis=1), 1)
    turned = corners @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    points = follow_surface(np.stack([corners, turned]), 50)
    assert np.allclose(points[1], np.stack([-points[0, :, 1], points[0, :, 0], points[0, :, 2]], axis=1), atol=1e-6)


def share_on_the_subject(found: GridTruth) -> float:
    """Share of the tracked points that the unseen views, drawn at the same times, show within the outline."""
    views = found.unseen
    frames = (views.cameras.times * (FRAMES - 1)).round().astype(int)
    points = np.concatenate([found.tracks, np.ones((*found.tracks.shape[:2], 1))], axis=2)[frames]
    seen = np.einsum("vij,vmj->vmi", views.cameras.viewmats(), points)[..., :3]
    pixels = np.einsum("vij,vmj->vmi", views.cameras.Ks, seen)
    columns, rows = np.floor(pixels[..., :2] / pixels[..., 2:]).astype(int).clip(0, PIXELS - 1).transpose(2, 0, 1)
    return float((views.images[np.arange(len(frames))[:, None], rows, columns, 3] > 0).float().mean())


def rendered(assets: Path, folder: Path, clip: ChosenClip, renderer: str) -> GridTruth:
    truths = TruthFolder(assets, folder, renderer, several=False, resolution=PIXELS)
    run = Run(folder)
    run.plan({"": 1.0})
    (usable,), _ = truths.render([clip], None, run, {"grid": ""})
    return truths.read(usable)


def test_pictures_cameras_times_and_tracks_agree(assets: Path, lever: ChosenClip, tmp_path: Path) -> None:
    found = rendered(assets, tmp_path, lever, "fast")
    reached = share_on_the_subject(found)
    assert reached > 0.9  # its end leaves some of the pictures
    for wrong in (found.tracks[::-1], 1.1 * found.tracks, found.tracks[..., [1, 0, 2]]):
        assert share_on_the_subject(replace(found, tracks=wrong)) < reached - 0.02


@pytest.mark.slow
@pytest.mark.blender
@pytest.mark.usefixtures("few_views", "in_processes")
def test_blender_renders_inputs_and_truth_in_one_space(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    pytest.importorskip("bpy")
    walk = {"action": "Walk", "motion": 0.05, "loop": True, "recentre": False, "time_range": [0.0, 0.7083]}
    fox = {"id": "pets/fox", "family": "pets", "split": "val", "file": "fox.glb", "clips": [walk]}
    found = rendered(pytestconfig.rootpath / "examples", tmp_path, ChosenClip(fox, 0), "cycles")
    assert (found.moving.images[0] == found.static.images[0]).all()
    assert found.tracks.shape == (FRAMES, truth.TRACKED_POINTS, 3)
    for points in (found.tracks[0], found.surface.points):
        assert np.ptp(points, axis=0).max() == pytest.approx(1, abs=0.02)
        assert np.abs(points.max(axis=0) + points.min(axis=0)).max() < 0.02
    assert share_on_the_subject(found) > 0.98


@pytest.mark.slow
@pytest.mark.usefixtures("in_processes")
def test_the_command_measures_the_construction_of_the_product(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--assets", str(assets), "--clips", "quaternius_platformer_game_pack/lever:Lever_Off"]
    arguments += ["--renderer", "fast", "--preset", "draft", "--gaussians", "1000", "--case", "object"]
    assert main(["evaluate", "construction", *arguments, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["median"]["psnr_shown"] > 25
    assert summary["median"]["psnr_gain"] > 1
    assert summary["median"]["cpu_seconds"] > 0.5
    assert "psnr_unseen" in capsys.readouterr().out
