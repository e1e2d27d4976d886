# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests of the kind `video` from a film to a clip, with a video model that knows the truth."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backend.models import lpips
from backend.nerf.hash_grid import HashGridConfig
from backend.nerf.losses import WITHOUT_LPIPS
from backend.nerf.rendering import Quality
from backend.pipelines import fourdiffusion, fourdiffusion_settings, video_model
from backend.pipelines.fourdiffusion import FITTING, VIEWING, generate, run_request, views_of_request
from backend.pipelines.fourdiffusion_settings import Settings
from backend.pipelines.memory_plan import PLANS
from backend.pipelines.multi_view_video import SOURCES
from backend.pipelines.video_model import PublishedVideoModel
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.splatting.config import ConstructConfig
from backend.splatting.render import render_clip
from backend.video import intake
from blender_addon.contract.clip import read_clip
from blender_addon.contract.requests import PUBLISHED, SMALL, video_request
from tests.pipelines.fourdiffusion_truth import KnowingModel, truth, unseen_psnr
from tests.video.films import picture, write_video

LITTLE = HashGridConfig(levels=5, log2_table=11, base=4, growth=1.5)
TO_OBJECT = [[2.0, 0, 0, 1], [0, 2.0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]]


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.webm", "libvpx-vp9", "yuva420p", alpha=True)


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        key: replace(
            settings, iterations=min(settings.iterations, 4), pixels=(12, 12, 12), grid_pixels=24,
            quality=Quality(samples=48), construction="draft", anchor_pixels=16, grid=LITTLE,
        )
        for key, settings in fourdiffusion_settings.SMALL_PRESETS.items()
    }  # fmt: skip
    monkeypatch.setattr(fourdiffusion_settings, "SMALL_PRESETS", small)
    monkeypatch.setattr(fourdiffusion, "SURFACE_SAMPLES", 300)
    monkeypatch.setattr(fourdiffusion, "ELEVATIONS", fourdiffusion.ELEVATIONS[:1])
    for_preset = ConstructConfig.for_preset
    few = {"shape_steps": 5, "coarse_steps": 6, "fine_steps": 4, "control_points": 16, "coarse_gaussians": 100}
    monkeypatch.setattr(ConstructConfig, "for_preset", lambda *arguments: replace(for_preset(*arguments), **few))


def asked(**options) -> dict:
    """A request for a clip of the film, whose sha256 is "film"."""
    named = {} if "pictures" in options else {"video": "film"}
    return video_request("Box", TO_OBJECT, **{"gaussians": 500, "prompt": "a box", **named, **options})


def run_in(folder: Path, **options) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(folder, device="cpu", **options)


@pytest.mark.parametrize(
    ("preset", "representation"),
    [("draft", "nerf"), ("preview", "gaussians"), pytest.param("preview", "nerf", marks=pytest.mark.slow)],
)
def test_a_film_becomes_a_clip(preset: str, representation: str, film: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    model = KnowingModel(truth())
    request = asked(preset=preset, representation=representation, start=0.1, end=0.9, seed=4)
    run = run_in(tmp_path / "run", on_progress=told.append)
    path = run_request(request, {"film": film}.__getitem__, run, video_model=model)
    clip = read_clip(path)
    assert (clip.name, clip.frame_count) == ("Box", 8)
    np.testing.assert_allclose(clip.to_object, TO_OBJECT)
    assert clip.fps == pytest.approx(7 / 0.8, rel=0.1)  # as the film plays
    assert model.asked[0]["video"].shape == (8, 4, 48, 48)
    frames = model.asked[0]["video"]
    assert float((frames[:, :3] - frames[:, 3:]).max()) <= 1e-6  # premultiplied
    assert (model.asked[0]["prompt"], model.asked[0]["seed"]) == ("a box", 4)

    provenance = clip.provenance
    assert provenance["pipeline"] == "4diffusion"
    assert provenance["models"] == model.models()
    assert provenance["video"]["method"] == "alpha"
    assert provenance["settings"]["representation"] == representation
    assert provenance["settings"]["fps"] == pytest.approx(clip.fps)
    json.dumps(provenance, allow_nan=False)
    stages = list(dict.fromkeys(one.stage for one in told if one.stage))
    assert [stage for stage in stages if stage in intake.STAGE_SHARES] == list(intake.STAGE_SHARES)
    assert VIEWING in stages
    assert stages[-2:] == ["Writing the clip", "Done"]
    fractions = [one.fraction for one in told]
    assert fractions == sorted(fractions)
    fits = [one for one in told if one.stage == FITTING and one.detail]
    assert len(fits) == (0 if preset == "draft" else 4)
    assert all(one.detail.startswith("distillation ") and ", anchor " in one.detail for one in fits)
    assert ("fit" in provenance) == (preset != "draft")
    assert (WITHOUT_LPIPS in provenance["warnings"]) == (preset != "draft")


@pytest.mark.slow
def test_a_retry_goes_on_from_what_was_kept(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.splatting.checkpoint.INTERVAL", 0.0)
    monkeypatch.setattr("backend.splatting.checkpoint.MOST_TIME", 1e9)
    model, whole = KnowingModel(truth()), KnowingModel(truth())
    blob = {"film": film}.__getitem__
    clip = read_clip(run_request(asked(), blob, run_in(tmp_path / "whole"), video_model=whole))

    told: list[Progress] = []

    def cancelled() -> bool:
        return bool(told) and told[-1].stage == FITTING and told[-1].step == 2

    with pytest.raises(JobCancelled):
        run_request(asked(), blob, run_in(tmp_path / "run", on_progress=told.append, is_cancelled=cancelled),
                    video_model=model)  # fmt: skip
    assert len(model.oracle.asked) == 3  # it was heard after the step
    with monkeypatch.context() as patch:
        patch.setattr(intake, "take_in", None)  # not to be called
        told.clear()
        run = run_in(tmp_path / "run", on_progress=told.append)
        again = read_clip(run_request(asked(), blob, run, video_model=model))
    assert len(model.asked) == 1
    assert len(model.oracle.asked) == 4
    np.testing.assert_array_equal(again.means, clip.means)
    np.testing.assert_array_equal(again.motion.basis_translations, clip.motion.basis_translations)
    assert "The oracle knew it." in again.provenance["warnings"]
    assert again.provenance["video"] == clip.provenance["video"]
    assert again.provenance["fit"]["losses"] == clip.provenance["fit"]["losses"]
    half = tmp_path / "run" / "views_0.npz"  # as video models leave it
    half.touch()
    views_of_request(asked(end=0.5), blob, run_in(tmp_path / "run"), video_model=model)
    assert len(model.asked) == 2  # another range is another video
    assert not half.exists()


def test_an_image_sequence_with_its_rate(tmp_path: Path) -> None:
    files = {}
    for index in range(9):
        files[f"{index:064x}"] = tmp_path / f"picture_{index}.png"
        Image.fromarray(picture(index, alpha=True)).save(files[f"{index:064x}"])
    request = asked(pictures=list(files), pictures_fps=4.0, preset="draft", fps=30.0)
    video, views = views_of_request(
        request, files.__getitem__, run_in(tmp_path / "run"), video_model=KnowingModel(truth())
    )
    assert video.fps == pytest.approx(7 / 2)
    assert video.frames.shape == (8, 4, 48, 48)
    assert views.pictures.shape[:2] == (4, 8)
    model = KnowingModel(truth())
    clip = read_clip(run_request(request, files.__getitem__, run_in(tmp_path / "run"), video_model=model))
    assert clip.fps == 30.0  # what is asked for comes first
    assert not model.asked  # the views were there already


@pytest.mark.slow
def test_a_draft_is_construction_from_the_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # as much work as it is
    settings = replace(Settings.for_preset("draft", model=SMALL), gaussians=200)
    run = run_in(tmp_path)
    clip = generate(torch.zeros(8, 4, 64, 64), "", KnowingModel(truth(), 64), settings, run)
    assert unseen_psnr(truth(), partial(render_clip, clip), 48) > 17
    assert "fit" not in clip.provenance


def test_what_cannot_follow_a_video_model_is_told_at_once() -> None:
    for change in ({"color_space": "linear"}, {"motion_model": "hexplane"}):
        with pytest.raises(UserError, match="sRGB"):
            Settings.of_request(asked(**change)["settings"])
        assert Settings.of_request(asked(**change, preset="draft")["settings"]).iterations == 0
        Settings.of_request(asked(**change, representation="nerf")["settings"])


def test_the_published_model_wants_its_weights_before_any_work(film: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="imagedream, 4dm") as caught:
        run_request(asked(model=PUBLISHED), {"film": film}.__getitem__, run_in(tmp_path / "run"), weights=tmp_path)
    assert "weights fetch imagedream 4dm" in caught.value.hint
    assert "By hand (docs/weights.md): 4dm" in caught.value.hint
    assert not list((tmp_path / "run").iterdir())


def test_out_of_memory_goes_down_the_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_model, "plans", lambda *_: PLANS)
    run = run_in(tmp_path)
    model = PublishedVideoModel.load(run, loaders=lambda dtype: {})
    tried = []

    def work() -> str:
        tried.append(model.plan)
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert video_model.within_memory(model, work, run) == "done"
    assert tried == [plan.name for plan in PLANS[:3]]
    assert sum("did not suffice" in note for note in run.notes) == 2
    told = video_model.told_of(model)
    assert told["memory_plan"] == "in slices"
    assert [one["name"] for one in told["models"]] == list(dict.fromkeys(SOURCES.values()))


def test_lpips_is_taken_where_somebody_has_put_it(film: Path, tmp_path: Path) -> None:
    class Network(torch.nn.Module):
        def forward(self, pictures: Tensor, resize_images: bool, return_lpips: bool) -> Tensor:
            return pictures.flatten(1) / 255

    place = tmp_path / "weights" / lpips.FILE
    place.parent.mkdir(parents=True)
    torch.jit.script(Network()).save(str(place))
    run = run_in(tmp_path / "run")
    path = run_request(
        asked(), {"film": film}.__getitem__, run, video_model=KnowingModel(truth()), weights=tmp_path / "weights"
    )
    assert WITHOUT_LPIPS not in read_clip(path).provenance["warnings"]
