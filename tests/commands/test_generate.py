# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m backend generate`: from options to frames and clips, resumed where it was stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.__main__ import main
from backend.commands import generate_files, orbit_folders
from backend.commands.orbit_folders import write_orbit
from backend.data import blender_wheel, object_capture
from backend.data.object_capture import capture_object
from backend.models import kinesplat_small
from backend.pipelines import diffusion4d, fourdiffusion
from backend.pipelines.fourdiffusion_settings import Settings
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.splatting.observations import read_orbit_folder
from blender_addon.contract.clip import read_clip
from blender_addon.contract.orbit import Orbit, orbit_cameras, read_orbit_json, write_orbit_json
from blender_addon.contract.requests import SMALL, STILL_FRAMES
from blender_addon.contract.surface import read_surface_samples
from tests.pipelines.fourdiffusion_truth import KnowingModel, truth
from tests.pipelines.tiny import RESOLUTION, ball_orbit, take_its_place, write_tiny_model
from tests.video.films import picture, write_video

DOG = Path(__file__).parents[2] / "examples" / "dog.glb"


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_its_place(kinesplat_small.load(write_tiny_model(tmp_path / "weights")), monkeypatch)


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
        (("--video", "x.mp4", "--motion", "2", "--out", "x.npz"), "goes without --motion"),
        (("--text", "a ball", "--compile", "--out", "x.npz"), "go with --model published"),
        (("--text", "a ball", "--model", "published", "--loop", "yes", "--out", "x.npz"), "--model kinesplat-small"),
        (("--video", "x.mp4", "--loop", "no", "--out", "x.npz"), "--loop"),
        (("--video", "x.mp4", "--out", "x.npz"), "goes without --steps"),
        (("--video", "x.mp4", "--frames", "7", "--out", "x.npz"), "must lie between"),
        (("--text", "a ball", "--frames", "8", "--out", "x.npz"), "--frames goes with --video"),
        (("--text", "a ball", "--start", "0", "--out", "x.npz"), "--start goes with --video"),
        (("--text", "a ball", "--representation", "nerf", "--out", "x.npz"), "goes with --video"),
        (("--text", "a ball", "--pipeline", "4diffusion", "--out", "x.npz"), "its own is diffusion4d"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple, said: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        generate(*arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_with_something_else_is_not_emptied_for_an_orbit(tmp_path: Path) -> None:
    cameras = orbit_cameras(Orbit(frames=2), 8, 8, moving=True)
    pictures = np.zeros((2, 8, 8, 4), np.uint8)
    folder = tmp_path / "static"
    write_orbit(folder, pictures, cameras)
    write_orbit(folder, pictures, cameras)  # its own
    (folder / "style.css").write_text("body {}")
    with pytest.raises(UserError, match="do not come from here"):
        write_orbit(folder, pictures, cameras)
    assert (folder / "style.css").exists()


@pytest.mark.parametrize("other", ["orbit.json", "frame_000.png"])
def test_an_orbit_of_somebody_else_is_not_replaced(tmp_path: Path, other: str) -> None:
    cameras = orbit_cameras(Orbit(frames=2), 8, 8, moving=True)
    pictures = np.zeros((2, 8, 8, 4), np.uint8)
    folder = tmp_path / "moving"
    folder.mkdir()
    (folder / "frame_000.png").write_bytes(b"mine")
    if other == "orbit.json":
        write_orbit_json(folder, cameras)
    with pytest.raises(UserError, match="would be lost"):
        write_orbit(folder, pictures, cameras)
    assert (folder / "frame_000.png").read_bytes() == b"mine"
    write_orbit(tmp_path / "own", pictures, cameras)
    assert len(read_orbit_json(tmp_path / "own").times) == 2
    (tmp_path / "own" / "frame_002.png").write_bytes(b"mine")  # beyond what was written
    with pytest.raises(UserError, match="would be lost"):
        write_orbit(tmp_path / "own", pictures, cameras)


def test_an_orbit_folder_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three, two = (orbit_cameras(Orbit(frames=frames), 8, 8, moving=True) for frames in (3, 2))
    pictures = np.zeros((3, 8, 8, 4), np.uint8)
    (tmp_path / "real").mkdir()
    folder = tmp_path / "link"
    folder.symlink_to(tmp_path / "real")
    (folder / ".tmp-0123").mkdir()  # of one that was killed
    write_orbit(folder, pictures, three)
    before = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    assert len(before) == 4
    assert folder.is_symlink()
    with monkeypatch.context() as patch:
        patch.setattr(orbit_folders, "write_orbit_json", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_orbit(folder, pictures[:2] + 1, two)
        with pytest.raises(KeyboardInterrupt):
            write_orbit(tmp_path / "new" / "moving", pictures[:2], two)
    assert {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()
    write_orbit(folder, pictures[:2], two)
    assert len(read_orbit_json(folder).times) == 2
    assert not (folder / "frame_002.png").exists()


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
    assert moving.images.shape == (24, RESOLUTION, RESOLUTION, 4)
    assert static.images.shape == (STILL_FRAMES, RESOLUTION, RESOLUTION, 4)
    assert moving.times.tolist() == pytest.approx(np.linspace(0, 1, 24).tolist())
    assert not static.times.any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball.png", "frames", "sheet.png", "weights"]


@pytest.mark.slow
def test_a_second_run_goes_on_from_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    options = ("--text", "a ball", "--gaussians", 500, "--out", tmp_path / "clips" / "ball.npz")
    with monkeypatch.context() as patch:

        def interrupted(*_, **__) -> None:
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
    monkeypatch.setattr(generate_files, "program_key", lambda: "the next version")
    assert generate("--text", "a ball", *work) == 0
    assert generated == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--object", "dog.glb", "--out", "dog.glb"), "does not end in .npz"),
        (("--image", "dog.png", "--frames-only", "folder/../dog.png"), "would replace the file that --image names"),
        (("--image", "dog.png", "--frames-only", "DOG.JPG"), "does not end in .png"),
        (("--image", "dog.png", "--frames-only", "dog.glb"), "does not end in .png"),
        (("--orbit", "folder", "--surface", "dog.npz", "--out", "dog.npz"), "would replace the file that --surface"),
    ],
)
def test_a_result_does_not_take_the_place_of_an_input(
    tmp_path: Path, arguments: tuple, said: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("dog.glb", "dog.png", "dog.npz"):
        (tmp_path / name).write_bytes(b"mine")
    before = sorted(tmp_path.iterdir())
    for command in ("generate", "construct") if "--orbit" in arguments else ("generate",):
        with pytest.raises(SystemExit) as caught:
            main([command, *arguments])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "dog.glb").read_bytes() == b"mine"


@pytest.mark.parametrize(("preset", "pixels"), [("draft", 128), ("final", 256)])
def test_an_object_is_captured_as_the_panel_captures_it(
    tmp_path: Path, preset: str, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def captured(file: Path, folder: Path, run: Run, *, resolution: int) -> None:
        asked.append(resolution)
        raise JobCancelled

    monkeypatch.setattr(object_capture, "capture_object", captured)
    assert generate("--object", DOG, "--preset", preset, "--out", tmp_path / "dog.npz") == 130
    assert asked == [pixels]


def test_a_refused_model_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, module: str, log: Path) -> None:
            log.parent.mkdir(parents=True)
            log.write_text("Blender's own messages")

        def ask(self, job: dict) -> dict:
            return {"error": "dog.glb is not a glTF file."}

        def end(self) -> None:
            pass

    monkeypatch.setattr(object_capture, "Child", Refusing)
    monkeypatch.setattr(blender_wheel.importlib.util, "find_spec", lambda name: True)
    assert generate("--object", DOG, "--out", tmp_path / "dog.npz") == 1
    assert not list(tmp_path.glob("dog*"))


def test_what_cannot_be_used_is_told(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ("--frames-only", tmp_path / "sheet.png")
    assert generate("--text", "ball " * 200, *out) == 1
    assert "Shorten it" in capsys.readouterr().err
    assert generate("--image", tmp_path / "none.png", *out) == 1
    assert "none.png" in capsys.readouterr().err
    (tmp_path / "dog.avif").write_bytes(b"RIFF")
    assert generate("--image", tmp_path / "dog.avif", *out) == 1
    assert "save it as PNG, JPEG or WebP" in capsys.readouterr().err
    assert generate("--object", tmp_path / "none.glb", *out) == 1
    assert "none.glb cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(blender_wheel.importlib.util, "find_spec", lambda name: None)
    assert generate("--object", DOG, *out) == 1
    assert "pip install bpy" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_a_capture_without_views_from_above_and_below_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version may have left it in the folder."""
    jobs = []
    monkeypatch.setattr(object_capture, "_capture", lambda job, *_: jobs.append(job) or np.eye(4).tolist())
    for _ in range(2):
        capture_object(DOG, tmp_path, Run(tmp_path), resolution=32)
    assert len(jobs) == 1
    done = tmp_path / object_capture.DONE
    found = json.loads(done.read_text())
    del found["key"]["further"]
    done.write_text(json.dumps(found))
    capture_object(DOG, tmp_path, Run(tmp_path), resolution=32)
    assert len(jobs) == 2


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
    assert seen.images.shape == (STILL_FRAMES, 32, 32, 4)
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
        capture_object(broken, tmp_path / "broken", Run(tmp_path), resolution=32)


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> KnowingModel:
    """A video model in place of all others, which knows two balls."""
    model = KnowingModel(truth())
    monkeypatch.setattr(fourdiffusion, "load_video_model", lambda name, run, **options: model)
    return model


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.webm", "libvpx-vp9", "yuva420p", alpha=True)


def test_views_of_a_video(tmp_path: Path, film: Path, knowing: KnowingModel, capsys) -> None:
    folder, sheet = tmp_path / "views", tmp_path / "sheet.png"
    options = ("--video", film, "--text", "a  ball", "--start", "0.25", "--frames", "9", "--device", "cpu")
    assert main(["generate", *map(str, (*options, "--frames-only", folder))]) == 0
    assert knowing.asked[0]["prompt"] == "a ball"
    assert knowing.asked[0]["steps"] == Settings.for_preset("preview", model=SMALL).steps
    assert len(knowing.asked[0]["video"]) == 9
    front = read_orbit_folder(folder / "view_0")
    assert float(front.images[..., 3].min()) == 0  # the mask
    together = read_orbit_folder(folder / "views")
    assert together.images.shape == (32, 48, 48, 4)
    assert together.times[:8].tolist() == together.times[8:16].tolist()
    assert "4 views of 9 frames" in capsys.readouterr().out
    assert main(["generate", *map(str, (*options, "--frames-only", sheet))]) == 0
    with Image.open(sheet) as picture:
        assert picture.height > 5 * 128
    assert not list(tmp_path.glob("*.work"))


def test_a_clip_of_a_video(tmp_path: Path, film: Path, knowing: KnowingModel) -> None:
    out = tmp_path / "ball.npz"
    options = ("--video", film, "--preset", "draft", "--gaussians", 500, "--device", "cpu", "--pipeline", "4diffusion")
    assert main(["generate", *map(str, (*options, "--work", tmp_path / "work", "--out", out))]) == 0
    clip = read_clip(out)
    assert (clip.name, clip.frame_count, clip.count) == ("ball", 8, 500)
    assert clip.fps == pytest.approx(7 / (23 / 24), rel=0.05)  # as the video plays
    assert clip.provenance["pipeline"] == "4diffusion"
    assert clip.provenance["video"]["method"] == "alpha"
    assert main(["generate", *map(str, (*options, "--work", tmp_path / "work", "--fps", 30, "--out", out))]) == 0
    assert read_clip(out).fps == 30
    assert len(knowing.asked) == 1  # it went on from what was kept


def test_a_folder_of_pictures_is_a_video(tmp_path: Path, knowing: KnowingModel, capsys) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(20):
        Image.fromarray(picture(index, alpha=True)).save(folder / f"frame_{index}.png")
    out = tmp_path / "ball.npz"
    options = ("--video", folder, "--fps", "10", "--preset", "draft", "--device", "cpu", "--out", out)
    assert main(["generate", *map(str, (*options, "--start", "0.5", "--end", "1.4"))]) == 0
    clip = read_clip(out)
    assert clip.provenance["video"]["file"]["frames"] == 10
    assert clip.fps == pytest.approx(7 / 0.9)  # 8 of the 10 pictures, played as fast as these
    assert main(["generate", *map(str, (*options, "--start", "5"))]) == 1
    assert "holds 0 of the 20 pictures" in capsys.readouterr().err
