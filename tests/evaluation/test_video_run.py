# SPDX-License-Identifier: GPL-3.0-or-later
"""Evaluation of clips of videos by a video model and a pipeline whose quality is known."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backend.__main__ import main
from backend.commands import evaluate_video
from backend.data.fast_renderer import FastRenderer
from backend.data.surface_points import follow_surface
from backend.evaluation import truth, truth_worker, video_cases, video_figures
from backend.evaluation.choice import ChosenClip, named_clips
from backend.evaluation.networks import Networks
from backend.evaluation.video_cases import ANCHOR_ONLY, FULL, NO_ANCHOR, NO_SDS, Case, Maker, cases_of, shipped_maker
from backend.evaluation.video_figures import VideoSets, figures_of
from backend.evaluation.video_run import Film, evaluate_films, evaluate_videos
from backend.evaluation.video_truth import AZIMUTHS, SIZES, VideoTruth, VideoTruthFolder, resized
from backend.pipelines import fourdiffusion
from backend.pipelines.fourdiffusion_settings import Settings
from backend.pipelines.multi_view_video import MultiViewVideo
from backend.progress import JobCancelled, Run, UserError
from backend.splatting.config import ConstructConfig
from backend.video.framing import Framing
from blender_addon.contract.clip import Clip, FrameMotion
from blender_addon.contract.requests import SMALL

PIXELS, FRAMES = 48, 8
COLOR_GAIN = 0.28209479177387814
CLIPS = ("quaternius_platformer_game_pack/lever:Lever_Off", "quaternius_fish_pack/fish2:Swim.001")


@pytest.fixture
def assets(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath / "tests" / "data" / "assets"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the fast renderer needs a process of its own."""
    monkeypatch.setattr(
        truth,
        "ask_all",
        lambda questions, *_, **__: [(name, truth_worker.answer(one)) for name, one in questions.items()],
    )


def read_truths(assets: Path, clips: list[ChosenClip], folder: Path) -> list[VideoTruth]:
    kept = VideoTruthFolder(assets, folder, "fast", FRAMES, PIXELS)
    usable, left_out = kept.render(clips, None, Run(folder))
    assert usable == clips
    assert left_out == {}
    return [kept.read(clip) for clip in clips]


def true_clip(assets: Path, known: VideoTruth, moves: bool = True) -> Clip:
    """Grey Gaussians on the true surface, as large as 4Diffusion's cameras want it."""
    triangles = FastRenderer(assets, known.clip.entry, PIXELS).triangles(known.clip.index)
    points = known.size * follow_surface(triangles, 800, seed=5)[: 3 * FRAMES : 3]
    if not moves:
        points = np.repeat(points[:1], FRAMES, axis=0)
    identity = np.tile(np.array([1, 0, 0, 0], np.float32), (*points.shape[:2], 1))
    return Clip(
        means=points[0],
        quats=identity[0],
        scales=np.full((800, 3), 0.01, np.float32),
        opacities=np.full(800, 0.95, np.float32),
        sh=np.full((800, 1, 3), (0.4 - 0.5) / COLOR_GAIN, np.float32),
        motion=FrameMotion(points.astype(np.float32), identity),
    )


@dataclass
class Seer:
    """A video model that knows the truth, and a pipeline that knows it in some cases."""

    clips: dict[str, tuple[VideoTruth, Clip, Clip]]  # by prompt: truth, the true clip, the same without motion
    name: str = "seer"
    side: int = 32
    framing: Framing = Framing(1.1, 45.0, size=32)  # noqa: RUF009 - frozen
    asked: list[str] = field(default_factory=list)
    given: list[MultiViewVideo] = field(default_factory=list)

    def models(self) -> list[dict]:
        return [{"name": self.name, "licence": "none"}]

    def views(self, video: Tensor, prompt: str, *, seed: int, steps: int, elevation: float, run: Run) -> MultiViewVideo:
        run.report(1, steps)
        run.note("A note.")
        begun = run.folder / "views_0.npz"
        assert not begun.exists()  # of another clip
        begun.touch()
        assert video.shape == (FRAMES, 4, self.side, self.side)
        assert bool((video[:, :3] <= video[:, 3:] + 1e-3).all())
        self.asked.append(prompt)
        return MultiViewVideo.standing(self.clips[prompt][0].pictures[:4], np.linspace(0, 1, FRAMES), elevation)

    def guidance(self, video: Tensor, prompt: str, run: Run):
        return nullcontext()

    def generate(self, video: Tensor, prompt: str, model, settings: Settings, run: Run) -> Clip:
        assert not list(run.folder.iterdir())
        run.plan({"Knowing": 1.0})
        run.begin("Knowing")
        self.given.append(model.views(video, prompt, seed=0, steps=1, elevation=0.0, run=run))
        run.report(1, 1)
        return self.clips[prompt][1 if settings.sds_weight else 2]

    def maker(self, version: str = "1") -> Maker:
        return Maker(self, "draft", version, self.generate)


@pytest.fixture
def clips(assets: Path) -> list[ChosenClip]:
    return named_clips(assets, list(CLIPS))


@pytest.fixture
def seer(assets: Path, clips: list[ChosenClip], tmp_path: Path) -> Seer:
    known = read_truths(assets, clips, tmp_path / "known" / "truth_fast")
    return Seer({one.clip.prompt: (one, true_clip(assets, one), true_clip(assets, one, moves=False)) for one in known})


def evaluate(seer: Seer, assets: Path, clips: list[ChosenClip], out: Path, cases: list[Case], **options) -> dict:
    known = out.parent / "known" / "truth_fast"
    options = {"run": Run(out), "truths": known.parent, "renderer": "fast", "resolution": PIXELS, **options}
    return evaluate_videos(assets, clips, out, seer.maker(options.pop("version", "1")), cases, **options)


def some_cases(*names: str) -> list[Case]:
    return cases_of("preview", list(names), ["gaussians"], 0, SMALL)


def test_truth_is_even_in_time_and_uncropped(assets: Path, clips: list[ChosenClip], tmp_path: Path) -> None:
    for known in read_truths(assets, clips, tmp_path):
        assert known.pictures.shape == (len(AZIMUTHS), FRAMES, PIXELS, PIXELS, 4)
        assert known.size in SIZES
        assert not truth.touches_border(known.pictures.reshape(-1, PIXELS, PIXELS, 4))
        assert known.magnitude > truth.LEAST_MAGNITUDE
        video = known.video(32)
        assert video.shape == (FRAMES, 4, 32, 32)
        assert torch.equal(known.video(PIXELS).movedim(1, -1), known.seen()[0])


def test_a_subject_that_would_be_cropped_is_seen_from_farther_away(
    assets: Path, clips: list[ChosenClip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.evaluation.video_truth.SIZES", (1.4, 0.5))
    (known,) = read_truths(assets, clips[:1], tmp_path)
    assert known.size == 0.5
    kept = VideoTruthFolder(assets, tmp_path, "fast", FRAMES, PIXELS)
    monkeypatch.setattr("backend.evaluation.video_truth.SIZES", (1.4,))
    assert kept.render(clips[:1], None, Run(tmp_path)) == ([], {clips[0].name: truth.LEAVES_PICTURE})


def test_the_truth_is_told_from_no_motion(assets: Path, clips: list[ChosenClip], seer: Seer, tmp_path: Path) -> None:
    cases = some_cases(FULL, NO_SDS)
    summary = evaluate(seer, assets, clips, tmp_path / "out", cases)
    still = summary["cases"][NO_SDS]
    assert [row["clip"] for row in summary["assets"]] == [clip.name for clip in clips]
    for row, frozen in zip(summary["assets"], still["assets"], strict=True):
        assert row["iou_novel"] > 0.8  # cameras and times of truth and result agree
        assert row["iou_between"] > 0.8
        assert row["dssim_between"] == pytest.approx((1 - row["ssim_between"]) / 2)
        assert row["psnr_novel"] > frozen["psnr_novel"] + 0.5
        assert row["psnr_novel_frozen"] == pytest.approx(frozen["psnr_novel"], abs=1e-4)
        assert row["views_psnr_novel"] > 60  # the model knows them
        assert row["dssim_novel"] == pytest.approx((1 - row["ssim_novel"]) / 2)
        assert row["warnings"] == ["A note."]
        assert row["seconds"] >= 0
        assert "Knowing" in row["stage_seconds"]
    assert {"versions", "preset", "seconds", "models"} <= set(summary)
    for name in ("psnr_novel", "ssim_novel", "psnr_input"):
        values = [row[name] for row in summary["assets"]]
        assert summary["mean"][name] == pytest.approx(np.mean(values))
        assert summary["median"][name] == pytest.approx(np.median(values))
    assert set(summary["not_measured"]) == {"lpips", "fvd", "clip_i, clip_c", "fvd_handcrafted"}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| full, median " in text
    assert len({len(line) for line in text.split("## full")[0].splitlines() if line.startswith("|")}) == 1
    with Image.open(tmp_path / "out" / "sheets" / f"{clips[0].name}.png") as sheet:
        assert sheet.width > 16 * 90
    assert (tmp_path / "out" / "sheets" / "overview.png").is_file()


def test_views_are_made_once_and_anchor_only_does_not_see_them(
    assets: Path, clips: list[ChosenClip], seer: Seer, tmp_path: Path
) -> None:
    cases = some_cases(FULL, NO_SDS, ANCHOR_ONLY, NO_ANCHOR)
    summary = evaluate(seer, assets, clips[:1], tmp_path / "out", cases)
    assert seer.asked == [clips[0].prompt]
    full, no_sds, alone, no_anchor = seer.given
    for given in (full, no_sds, no_anchor):
        assert np.array_equal(given.pictures, full.pictures)
        assert len(given.cameras) == 4
    assert alone.pictures.shape == (1, FRAMES, seer.side, seer.side, 4)
    assert np.array_equal(alone.cameras[0].camera_to_world, full.cameras[0].camera_to_world)
    assert "views_psnr_novel" not in summary["cases"][ANCHOR_ONLY]["mean"]
    assert list(summary["cases"]) == [NO_SDS, ANCHOR_ONLY, NO_ANCHOR]


def test_a_second_run_takes_what_the_first_has_made(
    assets: Path, clips: list[ChosenClip], seer: Seer, tmp_path: Path
) -> None:
    cases = some_cases(FULL)
    stopped = Run(tmp_path / "out", on_progress=lambda progress: stop(len(seer.given)))

    def stop(done: int) -> None:
        if done > 1:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        evaluate(seer, assets, clips, tmp_path / "out", cases, run=stopped)
    partly = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (partly["missing"], len(partly["assets"])) == (1, 1)
    summary = evaluate(seer, assets, clips, tmp_path / "out", cases)
    assert (len(seer.asked), len(seer.given)) == (2, 3)  # the clip that was stopped is made anew
    assert summary["assets"][0] == partly["assets"][0]
    assert evaluate(seer, assets, clips, tmp_path / "out", cases)["assets"] == summary["assets"]
    assert (len(seer.asked), len(seer.given)) == (2, 3)
    evaluate(seer, assets, clips, tmp_path / "out", cases, version="2")
    assert (len(seer.asked), len(seer.given)) == (4, 5)


def test_a_clip_that_cannot_be_made_is_told(
    assets: Path, clips: list[ChosenClip], seer: Seer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = seer.generate

    def generate(video, prompt, model, settings, run) -> Clip:
        if prompt == clips[0].prompt and settings.sds_weight:
            raise UserError("fit_diverged", "The fit went astray.")
        return made(video, prompt, model, settings, run)

    monkeypatch.setattr(seer, "generate", generate)
    summary = evaluate(seer, assets, clips, tmp_path / "out", some_cases(FULL, NO_SDS))
    assert summary["failed"] == {f"full {clips[0].name}": "The fit went astray."}
    assert [len(summary["assets"]), len(summary["cases"][NO_SDS]["assets"])] == [1, 2]


def test_films_without_truth_have_sheets_and_what_can_be_told(
    clips: list[ChosenClip], seer: Seer, tmp_path: Path
) -> None:
    films = [Film(clip.name, clip.prompt, seer.clips[clip.prompt][0].video(seer.side)) for clip in clips]
    out = tmp_path / "films"
    summary = evaluate_films(films, out, seer.maker(), some_cases(FULL), resolution=PIXELS, run=Run(out))
    for row in summary["assets"]:
        assert row["psnr_input"] > 15
        assert row["psnr_model_views"] > 15
        assert 0 <= row["stray"] < 0.5
        assert not any(name.endswith("_novel") for name in row)
    assert set(summary["not_measured"]) == {"lpips", "clip_i, clip_c"}
    assert all((out / "sheets" / f"{film.name}.png").is_file() for film in films)


@pytest.mark.slow
def test_the_products_own_pipeline_makes_what_is_measured(
    assets: Path, clips: list[ChosenClip], seer: Seer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_cases, "load_video_model", lambda *_, **__: seer)
    for_preset = ConstructConfig.for_preset
    few = {"shape_steps": 60, "coarse_steps": 80, "fine_steps": 40, "hypotheses": ("free",)}
    monkeypatch.setattr(ConstructConfig, "for_preset", lambda *arguments: replace(for_preset(*arguments), **few))
    maker = shipped_maker(SMALL, "preview", None, Run(tmp_path))
    small = {"iterations": 2, "construction": "draft", "gaussians": 500, "pixels": (16, 16, 16)}
    cases = [
        *cases_of("draft", [FULL], ["gaussians"], 0, SMALL),
        *(replace(case, settings=replace(case.settings, **small)) for case in some_cases(NO_SDS, ANCHOR_ONLY)),
    ]
    out, known = tmp_path / "out", tmp_path / "known"
    options = {"renderer": "fast", "truths": known, "resolution": PIXELS, "run": Run(out)}
    summary = evaluate_videos(assets, clips[:1], out, maker, cases, **options)
    full, no_sds, alone = (case["mean"] for case in (summary, *summary["cases"].values()))
    assert full["psnr_novel"] > full["psnr_novel_frozen"] + 1  # the views are right, and so are their cameras
    assert full["psnr_novel"] > alone["psnr_novel"] + 3  # one view says nothing of the others
    assert no_sds["psnr_novel"] > alone["psnr_novel"]
    assert min(case["psnr_input"] for case in (full, no_sds, alone)) > 17
    assert fourdiffusion.FITTING in summary["cases"][NO_SDS]["stage_seconds"]
    assert fourdiffusion.FITTING not in summary["stage_seconds"]


def test_the_command_evaluates_clips_and_films(
    assets: Path, seer: Seer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(evaluate_video, "shipped_maker", lambda *_: seer.maker())
    monkeypatch.setattr(evaluate_video, "RESOLUTION", PIXELS)
    draft = ["--preset", "draft", "--out", str(tmp_path / "out")]
    known = ["--assets", str(assets), "--clips", CLIPS[0], "--fast", "--truth", str(tmp_path / "known")]
    assert main(["evaluate", "video", *known, *draft]) == 0
    assert "## Seconds by stage" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["case"], summary["cases"], len(summary["assets"])) == (FULL, {}, 1)

    prompt, (filmed, _, _) = next(iter(seer.clips.items()))
    (tmp_path / "film").mkdir()
    for k, picture in enumerate(filmed.pictures[0]):
        Image.fromarray(picture).save(tmp_path / "film" / f"{k}.png")
    film = ["--video", str(tmp_path / "film"), "--text", prompt, "--preset", "draft", "--out", str(tmp_path / "films")]
    assert main(["evaluate", "video", *film]) == 0
    (row,) = json.loads((tmp_path / "films" / "summary.json").read_text())["assets"]
    assert (row["asset"], row["prompt"]) == ("film", prompt)
    assert (tmp_path / "films" / "sheets" / "film.png").is_file()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--split", "val"],
        ["--video", "film.mp4", "--split", "val"],
        ["--video", "film.mp4", "--fast"],
        ["--assets", "a", "--split", "val", "--frames", "7"],
    ],
)
def test_options_that_do_not_fit_together_are_told(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "video", *wrong, "--out", str(tmp_path)])


def test_a_truth_has_no_more_frames_than_are_stored(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--assets", str(assets), "--split", "val", "--frames", "25", "--out", str(tmp_path)]
    assert main(["evaluate", "video", *options]) == 1
    assert "at most 24" in capsys.readouterr().err


def test_clip_and_lpips_are_measured_where_there_are_networks() -> None:
    pictures = torch.rand(len(AZIMUTHS), 2, 16, 16, 4)
    asked: list[tuple[int, ...]] = []

    def clip(a: Tensor, b: Tensor) -> Tensor:
        asked.append(tuple(b.shape))
        return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten()[None])

    networks = Networks(lpips=lambda a, b: (a - b).abs().flatten(1).mean(1), clip=clip)
    figures = figures_of(pictures, pictures, pictures, networks)
    assert figures["clip_i"] == pytest.approx(1)
    assert figures["clip_c"] < 1
    assert figures["lpips_novel"] == 0
    assert len(asked) == 3 * 2 + 4
    assert "clip_i" not in figures_of(pictures, pictures, pictures, Networks())


def test_distances_between_sets_need_enough_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_figures, "LEAST_CLIPS", 3)
    torch.manual_seed(0)
    sets = VideoSets(Networks())
    for _ in range(3):
        assert sets.distances() == {}
        true = torch.rand(3, FRAMES, 16, 16, 4)
        sets.add(true.flip(1), true)
    assert sets.distances()["fvd_handcrafted"] >= 0


def test_cases_follow_what_is_asked() -> None:
    full, no_sds, no_anchor = cases_of("preview", None, ["gaussians"], 3, SMALL)
    assert (full.label, no_sds.label, no_anchor.label) == (FULL, NO_SDS, NO_ANCHOR)
    usual = Settings.for_preset("preview", "gaussians", 3, SMALL)
    assert full.settings == usual
    assert no_sds.settings == replace(usual, sds_weight=0.0)
    assert no_anchor.settings == replace(usual, anchor_weight=0.0)
    both = cases_of("preview", [FULL, ANCHOR_ONLY], ["gaussians", "nerf"], 0, SMALL)
    assert [case.label for case in both] == ["gaussians full", "gaussians anchor-only", "nerf full", "nerf anchor-only"]
    assert [case.sees_views for case in both] == [True, False, True, False]
    assert [case.label for case in cases_of("draft", None, ["gaussians", "nerf"], 0, SMALL)] == [FULL]
    with pytest.raises(UserError, match="neither distillation"):
        cases_of("draft", [NO_SDS], ["gaussians"], 0, SMALL)


def test_pictures_change_their_size_evenly() -> None:
    pictures = torch.rand(2, 3, 8, 8, 4)
    assert resized(pictures, 8) is pictures
    assert torch.allclose(resized(pictures, 1)[..., 0, 0, :], pictures.mean((2, 3)), atol=0.1)
