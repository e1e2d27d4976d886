# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m backend generate`: from options to frames and clips, resumed where it was stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.__main__ import main
from backend.data import object_capture
from backend.data.object_capture import capture_object
from backend.models import kinesplat_small
from backend.pipelines import diffusion4d, multi_view_video
from backend.pipelines.multi_view_video import MultiViewVideo
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.splatting.config import ConstructConfig
from backend.splatting.observations import read_orbit_folder
from blender_addon.contract.clip import read_clip
from blender_addon.contract.orbit import Cameras, Orbit, intrinsics, read_orbit_json, read_surface_samples
from tests.pipelines.tiny import RESOLUTION, ball_orbit, write_tiny_model

DOG = Path(__file__).parent.parent / "examples" / "dog.glb"


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kinesplat_small.load(write_tiny_model(tmp_path / "weights"))
    monkeypatch.setattr(diffusion4d, "load", lambda **options: model)
    monkeypatch.setattr(diffusion4d, "STILL_PIXELS", RESOLUTION)
    for_preset = ConstructConfig.for_preset
    few = {"shape_steps": 5, "coarse_steps": 6, "fine_steps": 4, "control_points": 16, "coarse_gaussians": 100}
    monkeypatch.setattr(ConstructConfig, "for_preset", lambda *arguments: replace(for_preset(*arguments), **few))


def generate(*arguments: object) -> int:
    return main(["generate", "--steps", "4", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a subject"),
        (("--text", " "), "name a subject"),
        (("--text", "a ball"), "--out"),
        (("--orbit", "x", "--text", "a ball", "--out", "x.npz"), "--text"),
        (("--text", "a ball", "--static", "x", "--out", "x.npz"), "--static"),
        (("--image", "x.png", "--object", "x.glb", "--out", "x.npz"), "not allowed with"),
        (("--text", "a ball", "--motion", "99", "--out", "x.npz"), "must lie between"),
        (("--text", "a ball", "--refine", "--out", "x.npz"), "go with --model published"),
        (("--video", "x.mp4", "--out", "x.npz"), "--model published"),
        (("--video", "x.mp4", "--model", "published", "--motion", "2", "--out", "x.npz"), "without --refine, --motion"),
        (("--text", "a ball", "--frames", "8", "--out", "x.npz"), "go with --video"),
        (("--text", "a ball", "--start", "0", "--out", "x.npz"), "go with --video"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple, said: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        generate(*arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_frames_alone(tmp_path: Path, capsys) -> None:
    sheet, folder = tmp_path / "sheet.png", tmp_path / "frames"
    assert generate("--text", "a ball flurbs", "--seed", 5, "--motion", 2, "--frames-only", sheet) == 0
    said = capsys.readouterr()
    assert "flurb" in said.err
    assert "2 asked" in said.out
    with Image.open(sheet) as picture:
        assert picture.width > picture.height
    image = tmp_path / "ball.png"
    Image.fromarray(ball_orbit(40)[0][0]).save(image)
    assert generate("--image", image, "--frames-only", folder) == 0
    moving, static = (read_orbit_folder(folder / half) for half in ("moving", "static"))
    assert moving.images.shape == static.images.shape == (24, RESOLUTION, RESOLUTION, 4)
    assert moving.times.tolist() == pytest.approx(np.linspace(0, 1, 24).tolist())
    assert not static.times.any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball.png", "frames", "sheet.png", "weights"]


@pytest.mark.slow
def test_a_second_run_goes_on_from_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    options = ("--text", "a ball", "--gaussians", 500, "--out", tmp_path / "clips" / "ball.npz")
    with monkeypatch.context() as patch:

        def interrupted(*_) -> None:
            raise KeyboardInterrupt

        patch.setattr(diffusion4d.clips, "construct_clip", interrupted)
        assert generate(*options) == 130
    assert "goes on" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(diffusion4d, "generate", None)  # not to be called
        assert generate(*options) == 0
    clip = read_clip(tmp_path / "clips" / "ball.npz")
    assert (clip.name, clip.count) == ("ball", 500)
    assert clip.provenance["settings"]["prompt"] == "a ball"
    assert not (tmp_path / "clips" / "ball.work").exists()


@pytest.mark.slow
def test_other_options_are_another_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = ("--work", tmp_path / "work", "--frames-only", tmp_path / "sheet.png")
    assert generate("--text", "a ball", *work) == 0
    generated = []
    whole = diffusion4d.generate
    monkeypatch.setattr(diffusion4d, "generate", lambda *arguments: generated.append(1) or whole(*arguments))
    assert generate("--text", "a  ball", "--preset", "final", *work) == 0
    assert generated == []
    assert generate("--text", "a ball", "--seed", 1, *work) == 0
    assert generated == [1]


def test_what_cannot_be_used_is_told(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ("--frames-only", tmp_path / "sheet.png")
    assert generate("--text", "ball " * 200, *out) == 1
    assert "Shorten it" in capsys.readouterr().err
    assert generate("--image", tmp_path / "none.png", *out) == 1
    assert "none.png" in capsys.readouterr().err
    assert generate("--object", tmp_path / "none.glb", *out) == 1
    assert "none.glb cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(object_capture.importlib.util, "find_spec", lambda name: None)
    assert generate("--object", DOG, *out) == 1
    assert "pip install bpy" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.slow
@pytest.mark.blender
def test_a_model_file_is_captured_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bpy")
    monkeypatch.setattr(object_capture, "SAMPLES", 1)
    told: list[Progress] = []

    def cancelled_at_once() -> bool:
        return bool(told) and told[-1].step == 1

    with pytest.raises(JobCancelled):
        capture_object(DOG, tmp_path / "dog", Run(tmp_path, told.append, cancelled_at_once), resolution=32)
    captured = capture_object(DOG, tmp_path / "dog", Run(tmp_path, told.append), resolution=32)
    assert {step.stage for step in told} == {*object_capture.STAGES.values(), "Done"}
    seen = read_orbit_folder(captured.static)
    assert seen.images.shape == (24, 32, 32, 4)
    assert 0.05 < (seen.images[..., 3] > 0.5).float().mean() < 0.4
    assert not read_orbit_json(captured.static).times.any()
    points = read_surface_samples(captured.surface).points
    np.testing.assert_allclose(np.ptp(points, axis=0).max(), 1, atol=0.01)  # clip space
    assert np.array(captured.to_object)[0, 0] == pytest.approx(6.96, abs=0.01)  # the file's own size
    with monkeypatch.context() as patch:
        patch.setattr(object_capture, "Child", None)  # not to be called
        assert capture_object(DOG, tmp_path / "dog", Run(tmp_path), resolution=32) == captured
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"glTF nonsense")
    with pytest.raises(UserError, match="broken"):
        capture_object(broken, tmp_path / "broken", Run(tmp_path))


@pytest.fixture
def views_of_a_ball(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """4DM in place of which a ball brightens; its arguments."""
    told: list[dict] = []

    def views_of_video(source: Path, prompt: str, run: Run, **options) -> MultiViewVideo:
        told.append({"source": source, "prompt": prompt, **options})
        size, times = 32, np.linspace(0, 1, options["frames"])
        still, _ = ball_orbit(size)
        pictures = np.stack([np.repeat(still[index][None], len(times), 0) for index in (0, 6, 12, 18)])
        pictures[..., :3] = pictures[..., :3] * (0.5 + 0.5 * times[:, None, None, None])
        orbit = Orbit(4, closed=False)
        matrices = np.repeat(intrinsics(orbit.fov, size, size)[None], len(times), 0)
        cameras = tuple(
            Cameras(np.repeat(pose[None], len(times), 0), matrices, times, size, size)
            for pose in orbit.camera_to_world()
        )
        return MultiViewVideo(pictures, cameras, 12.5, pictures[0], {"warnings": [], "video": {"file": "film"}})

    monkeypatch.setattr(multi_view_video, "views_of_video", views_of_video)
    return told


def test_views_of_a_video(tmp_path: Path, views_of_a_ball: list[dict], capsys) -> None:
    film, folder = tmp_path / "film.mp4", tmp_path / "views"
    film.write_bytes(b"film")
    options = ("--video", film, "--model", "published", "--text", "a  ball", "--start", 0.5, "--cutout", "model")
    assert generate(*options, "--demo-order", "--weights", tmp_path, "--frames-only", folder) == 0
    told = views_of_a_ball[0]
    assert (told["source"], told["prompt"], told["steps"], told["frames"]) == (film, "a ball", 4, 8)
    assert (told["span"].start, told["span"].end, told["cutout"], told["compat"]) == (0.5, None, "model", True)
    assert told["weights"] == tmp_path
    front = read_orbit_folder(folder / "view_0")
    assert front.times.tolist() == pytest.approx(np.linspace(0, 1, 8).tolist())
    assert float(front.images[..., 3].min()) == 0  # the mask
    together = read_orbit_folder(folder / "views")
    assert together.images.shape == (32, 32, 32, 4)
    assert together.times[:8].tolist() == together.times[8:16].tolist()
    assert "4 views of 8 frames" in capsys.readouterr().out

    sheet = tmp_path / "sheet.png"
    arguments = ["generate", "--video", str(film), "--model", "published", "--frames-only", str(sheet)]
    assert main(arguments) == 0
    assert views_of_a_ball[1]["steps"] == 100
    with Image.open(sheet) as picture:
        assert picture.height > 5 * 128


@pytest.mark.slow
def test_a_clip_of_a_video(tmp_path: Path, views_of_a_ball: list[dict]) -> None:
    film, out = tmp_path / "film.mp4", tmp_path / "ball.npz"
    film.write_bytes(b"film")
    options = ("--video", film, "--model", "published", "--preset", "draft", "--gaussians", 500, "--device", "cpu")
    assert generate(*options, "--out", out) == 0
    clip = read_clip(out)
    assert clip.frame_count == 8
    assert clip.fps == 12.5  # as the video plays
    assert clip.name == "ball"
    assert clip.provenance["pipeline"] == multi_view_video.PIPELINE
    assert clip.provenance["video"] == {"file": "film"}
    assert not (tmp_path / "ball.work").exists()
    assert generate(*options, "--fps", 30, "--out", out) == 0
    assert read_clip(out).fps == 30
