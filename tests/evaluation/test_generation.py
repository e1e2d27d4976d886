# SPDX-License-Identifier: GPL-3.0-or-later
"""Evaluation runs with generators whose score is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backend.data.views import FRAMES
from backend.evaluation import generation_truth
from backend.evaluation.choice import ChosenClip, choose_clips, chosen_clips
from backend.evaluation.generation import LADDER, Generator, Sampling, evaluate_generation
from backend.evaluation.generation_truth import RESOLUTION, Truth, make_truths
from backend.models.motion_magnitude import magnitude_of
from backend.pictures import premultiplied
from backend.pipelines.orbit_pictures import Views
from backend.progress import Run, UserError
from blender_addon.contract.orbit import Orbit, further_cameras, orbit_cameras
from blender_addon.contract.surface import SurfaceSamples

SAMPLING = Sampling(seed=0, steps=4, w1=1.0, w2=0.25)


def entry(name: str, family: str, *actions: tuple[str, float], split: str = "val") -> dict:
    clips = [
        {"action": action, "motion": motion, "loop": True, "recentre": False, "time_range": [0.0, 1.0]}
        for action, motion in actions
    ]
    return {"id": f"{family}/{name}", "family": family, "split": split, "file": f"{name}.glb", "licence": "CC0-1.0",
            "clips": clips}  # fmt: skip


def truth_of(name: str, top: int, speed: float) -> Truth:
    """A bluish square that moves to the right; the cameras do not matter to it."""
    count, size = 12, 32
    frames = np.zeros((2, count, size, size, 4), np.uint8)
    for t in range(count):
        for kind, x in enumerate((10 + round(speed * t), 10)):
            frames[kind, t, top : top + 8, x : x + 6] = (40, 60, 200, 255)
    cameras = orbit_cameras(Orbit(count), size, size, moving=True)
    clip = ChosenClip(entry(name, "pets", ("Walk", 0.05)), 0)
    surface = SurfaceSamples(*np.eye(3, dtype=np.float32)[None].repeat(2, 0))
    further = Views(frames[1, :8], further_cameras(Orbit(), size, size))
    return Truth(clip, frames[0], frames[1], further, cameras, surface, magnitude_of(frames[0], frames[1]))


@pytest.fixture
def truths(monkeypatch: pytest.MonkeyPatch) -> list[Truth]:
    found = [truth_of("cat", 12, 0.5), truth_of("dog", 16, 0.8)]
    monkeypatch.setattr("backend.evaluation.generation.make_truths", lambda *_: (found, {"pets__pig__Sit": "it left"}))
    return found


class Blend:
    """A generator that knows the answer and gives as much of it as was asked for."""

    version = "blend"

    def __init__(self, truths: list[Truth]) -> None:
        self.truths = truths
        self.calls: list[tuple[str, float]] = []

    def moving(self, static, cameras, prompt, magnitude, *, seed, steps, w1, w2, surface, further, run) -> np.ndarray:
        truth = next(truth for truth in self.truths if (truth.static == static).all())
        self.calls.append((prompt, magnitude))
        run.plan({"Denoising": 1.0})
        run.begin("Denoising")
        run.finish()
        share = (magnitude / truth.magnitude) ** 0.5
        if share == 1:
            return truth.moving
        a, b = premultiplied(static), premultiplied(truth.moving)
        mixed = a + (b - a) * min(share, 1.0)
        mixed[..., :3] /= mixed[..., 3:].clamp(min=1e-6)
        return (mixed.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    def static(self, cameras, prompt, image, *, seed, steps, guidance, run) -> np.ndarray:
        assert (cameras.times == 0).all()
        truth = next(t for t in self.truths if image is None or (t.static[0] == image).all())
        return np.concatenate([truth.static, truth.further.pictures])[: len(cameras.times)]


def generator(blend: Blend) -> Generator:
    return Generator(blend.moving, blend.static, blend.version)


def evaluate(truths: list[Truth], out: Path, made: Generator, **options) -> dict:
    return evaluate_generation(
        out, [truth.clip for truth in truths], out, made, sampling=SAMPLING, run=Run(out), **options
    )


def test_a_generator_that_knows_the_answer_is_perfect(truths: list[Truth], tmp_path: Path) -> None:
    blend = Blend(truths)
    summary = evaluate(truths, tmp_path, generator(blend), control_subjects=2)
    mean = summary["mean"]
    assert mean["motion_error"] == mean["energy_error"] == 0
    assert mean["motion_error_static"] > 0.3
    assert mean["psnr"] == 100
    assert mean["ssim"] == pytest.approx(1)
    assert mean["psnr_static"] < 30
    assert mean["psnr_m0"] == 100
    assert mean["magnitude_ratio"] == pytest.approx(1)
    assert mean["spearman_per_object"] > 0.85  # what is asked beyond the truth's own magnitude is a tie
    assert mean["fvd_handcrafted"] == pytest.approx(0, abs=1e-3)
    assert mean["fvd_handcrafted_static"] > 1
    assert blend.calls[:2] == [("cat walk", truths[0].magnitude), ("dog walk", truths[1].magnitude)]
    assert [magnitude for _, magnitude in blend.calls[2:8]] == [0.0, *LADDER]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert [row["asset"] for row in summary["assets"]] == ["pets/cat", "pets/dog"]
    assert {"versions", "preset", "seconds", "setting"} <= set(summary)
    assert summary["left_out"] == {"pets__pig__Sit": "it left"}
    assert "lpips" in summary["not_measured"]


def test_no_motion_scores_as_no_motion(truths: list[Truth], tmp_path: Path) -> None:
    still = Generator(lambda static, *_, **__: static, Blend(truths).static, "still")
    mean = evaluate(truths, tmp_path, still)["mean"]
    assert mean["motion_error"] == mean["motion_error_static"]
    assert mean["psnr"] == mean["psnr_static"]
    assert mean["energy_error"] == pytest.approx(1)
    assert mean["magnitude_measured"] == mean["spearman"] == mean["motion_cosine"] == 0
    assert mean["psnr_m0"] == 100
    assert mean["fvd_handcrafted"] == mean["fvd_handcrafted_static"]


def test_other_settings_and_sheets(truths: list[Truth], tmp_path: Path) -> None:
    summary = evaluate(
        truths, tmp_path, generator(Blend(truths)), settings=("static3d", "image", "text"), control_subjects=1
    )
    assert summary["setting"] == "static3d"
    assert set(summary["settings"]) == {"static3d", "image", "text"}
    image, text = summary["settings"]["image"], summary["settings"]["text"]
    assert image["motion_error"] == 0
    assert image["psnr_closing"] == text["psnr_closing"] == 100
    assert "psnr" not in text  # many right answers
    assert json.loads((tmp_path / "summary_image.json").read_text())["mean"] == image
    for setting in summary["settings"]:
        assert len(list((tmp_path / "sheets" / setting).glob("*.png"))) == 2
        assert (tmp_path / "sheets" / f"{setting}_overview.png").exists()
        assert (tmp_path / "sheets" / f"{setting}_control.png").exists()
        assert f"## {setting}" in (tmp_path / "table.md").read_text()
    with Image.open(next((tmp_path / "sheets" / "static3d").glob("*cat*"))) as sheet:
        grey = np.asarray(sheet)[-100:, 150:]  # the last row: nothing is wrong anywhere
    assert (np.abs(grey.astype(int) - 128) <= 1).all()


def test_a_second_run_takes_what_the_first_has_made(truths: list[Truth], tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    blend = Blend(truths)

    def until_stopped(*arguments, **options) -> np.ndarray:
        if len(blend.calls) == 5:
            raise Stopped
        return blend.moving(*arguments, **options)

    with pytest.raises(Stopped):
        evaluate(truths, tmp_path, Generator(until_stopped, blend.static, "blend"), control_subjects=2)
    resumed = evaluate(truths, tmp_path, generator(blend), control_subjects=2)
    assert len(blend.calls) == 2 + 2 * (len(LADDER) + 1)  # each once
    at_once = evaluate(truths, tmp_path / "fresh", generator(Blend(truths)), control_subjects=2)
    timeless = [
        {name: value for name, value in one["mean"].items() if "seconds" not in name} for one in (resumed, at_once)
    ]
    assert timeless[0] == timeless[1]
    other = Blend(truths)
    evaluate(truths, tmp_path, Generator(other.moving, other.static, "newer"), control_subjects=0)
    assert len(other.calls) == 2  # results of another version are not taken for its own


def test_several_seeds_are_averaged(truths: list[Truth], tmp_path: Path) -> None:
    def by_seed(static, cameras, prompt, magnitude, *, seed, steps, w1, w2, surface, further, run) -> np.ndarray:
        truth = next(truth for truth in truths if (truth.static == static).all())
        return truth.moving if seed % 2 else static

    made = Generator(by_seed, Blend(truths).static, "seeds")
    row = evaluate(truths, tmp_path, made, seeds=2, control_subjects=0)["assets"][0]
    assert row["motion_error"] == pytest.approx(row["motion_error_static"] / 2)
    assert row["motion_error_best"] == 0
    assert "spearman" not in row


def test_nothing_usable_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("backend.evaluation.generation.make_truths", lambda *_: ([], {"a": "it left the picture"}))
    with pytest.raises(UserError, match="None of the clips") as caught:
        evaluate([], tmp_path, generator(Blend([])))
    assert "it left the picture" in caught.value.hint


def test_clips_are_chosen_by_family_and_action() -> None:
    entries = [
        entry("cat", "pets", ("Idle", 0.001), ("Walk", 0.04), ("Run", 0.2)),
        entry("dog", "pets", ("Walk", 0.04), ("Run", 0.2)),
        entry("cod", "fish", ("Swim", 0.002)),
    ]
    names = [clip.name for clip in choose_clips(entries, 2)]
    assert names == ["fish__cod__Swim", "pets__cat__Walk", "pets__dog__Run", "pets__cat__Run", "pets__dog__Walk"]
    assert [clip.prompt for clip in choose_clips(entries, 1)] == ["cod swim", "cat walk", "dog run"]


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"assets": [entry("cat", "pets", ("Walk", 0.04))]}))
    assert len(chosen_clips(tmp_path, "val", 1)) == 1
    with pytest.raises(UserError, match="no clips in split 'vall'") as caught:
        chosen_clips(tmp_path, "vall", 1)
    assert "val" in caught.value.hint


@pytest.mark.slow
@pytest.mark.blender
def test_truth_is_rendered_by_blender(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bpy")
    monkeypatch.setattr(generation_truth, "SAMPLES", 4)
    examples = pytestconfig.rootpath / "examples"
    fox = {**entry("fox", "pets", ("Walk", 0.05), ("Fly", 0.05)), "file": "fox.glb"}
    fox["clips"][0]["time_range"] = [0.0, 0.7083]
    clips = [ChosenClip(fox, 0), ChosenClip(fox, 1)]
    run = Run(tmp_path)
    run.plan({"truth": 1.0})
    run.begin("truth")
    (truth,), left_out = make_truths(examples, clips, tmp_path, "cycles", run)
    assert "no action Fly" in left_out["pets__fox__Fly"]
    assert truth.moving.shape == truth.static.shape == (FRAMES, RESOLUTION, RESOLUTION, 4)
    assert 0.5 < truth.magnitude < 8
    assert (truth.moving[0] == truth.static[0]).all()
    assert truth.cameras.times[-1] == 1
    seen = truth.static[..., 3] > 127
    assert 0.02 < seen.mean() < 0.5
    written = (tmp_path / truth.clip.name / "moving.png").stat().st_mtime_ns
    (again,), _ = make_truths(examples, clips[:1], tmp_path, "cycles", run)
    assert (again.moving == truth.moving).all()
    assert (tmp_path / truth.clip.name / "moving.png").stat().st_mtime_ns == written
