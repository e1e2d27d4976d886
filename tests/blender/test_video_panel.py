# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos in the panel: what is shown of the chosen one, and what is asked of the backend."""

import numpy as np
import pytest

from tests.addon.fake_backend import FakeBackend
from tests.blender.test_generation import board, only_request
from tests.blender.test_operators import active_job, error_of, why_not
from tests.video.films import square_left, write_gif, write_pictures, write_video

bpy = pytest.importorskip("bpy")
pytestmark = pytest.mark.blender


@pytest.fixture
def video(options, tmp_path):
    """The panel's settings, with a film of 40 frames at 24 per second chosen; the scene has 12 per second."""
    bpy.context.scene.render.fps = 12
    options.kind = "VIDEO"
    options.video_path = str(write_video(tmp_path / "dog.mp4", count=40))
    return options


@pytest.fixture
def preview(video, part):
    """The tracker's preview, and how to let it read to the end."""
    held = part("blender_addon.job_tracker").tracker().video

    def read():
        for _ in range(8):
            held.step(bpy.context.scene)
        return held

    return read


# --- what is shown ---------------------------------------------------------------------------------------------------


def shown(part, monkeypatch) -> list[np.ndarray]:
    """From now on the pictures that become icons, which exist in a window alone."""
    pictures = []
    module = part("blender_addon.video_preview")
    squared = module.squared
    monkeypatch.setattr(module, "squared", lambda picture: pictures.append(picture) or squared(picture))
    return pictures


def test_three_frames_and_the_range_in_words(video, preview, part, monkeypatch) -> None:
    pictures = shown(part, monkeypatch)
    held = preview()
    assert held.problem == ""
    assert held.text == "Frames 1 to 40 of 40, 1.6 s, 8 taken (every 6th)"
    assert held.numbers == (1, 20, 40)
    assert [square_left(np.rint(255 * picture).astype(np.uint8)) for picture in pictures] == [0, 19, 39]
    video.use_whole_video, video.video_start, video.video_end = False, 11, 31
    assert preview().numbers == (11, 21, 31)
    assert held.text == "Frames 11 to 31 of 40, 0.8 s, 8 taken (every 3rd)"
    assert [square_left(np.rint(255 * picture).astype(np.uint8)) for picture in pictures[3:]] == [10, 20, 30]
    video.video_frames = 21
    preview()
    assert held.text.endswith("all taken")
    video.video_frames = 24
    preview()
    assert held.text.endswith("all taken, some of them twice to make 24")
    assert len(pictures) == 6  # the same frames
    assert not bpy.data.images
    assert not bpy.data.movieclips


def test_one_frame_in_each_beat_and_none_while_the_range_changes(video, part, monkeypatch) -> None:
    pictures = shown(part, monkeypatch)
    held = part("blender_addon.job_tracker").tracker().video
    video.use_whole_video = False
    for end in range(10, 20):
        video.video_end = end
        held.step(bpy.context.scene)
    assert not pictures
    counts = []
    for _ in range(5):
        held.step(bpy.context.scene)
        counts.append(len(pictures))
    assert counts == [0, 1, 2, 3, 3]


def test_pictures_of_any_size_become_squares(extension, part) -> None:
    squared = part("blender_addon.video_preview").squared
    for shape in ((4, 9), (9, 4), (6, 6)):
        square = squared(np.ones((*shape, 4), np.float32))
        assert square.shape == (max(shape), max(shape), 4)
        assert square[..., 3].sum() == shape[0] * shape[1]


def test_gifs_pictures_and_clips_are_shown_too(video, preview, part, monkeypatch, tmp_path) -> None:
    pictures = shown(part, monkeypatch)
    video.video_path = str(write_gif(tmp_path / "dog.gif"))
    assert preview().text == "Frames 1 to 24 of 24, 1.1 s, 8 taken (every 3rd)"
    folder = write_pictures(tmp_path / "shots", 24)
    video.video_path = str(folder)
    assert preview().text == "Frames 1 to 24 of 24, 1.9 s, 8 taken (every 3rd)"
    video.video_path = str(folder / "shot_3.png")
    assert preview().text.startswith("Frames 1 to 22 of 22")
    video.video_source, video.video_clip = "CLIP", bpy.data.movieclips.load(str(folder / "shot_1.png"))
    assert preview().problem == ""
    assert len(pictures) == 12
    assert square_left(np.rint(255 * pictures[8]).astype(np.uint8)) == 23


def test_what_cannot_be_used_is_a_sentence(video, preview, tmp_path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0\0\0\x20ftypisom" + b"x" * 1000)
    for path, said in ((tmp_path / "gone.mp4", "gone"), (bad, "cannot be read"), (tmp_path, "fewer than two")):
        video.video_path = str(path)
        held = preview()
        assert said in held.problem
        assert (held.text, held.icons, held.numbers) == ("", (0, 0, 0), (0, 0, 0))
        bpy.context.window_manager.kinesplat.video_problem = held.problem
        assert held.problem.rstrip(".") in why_not(bpy.ops.kinesplat.generate)
    write_video(bad, count=12)
    video.video_path = str(bad)
    assert preview().problem == ""
    bad.unlink()
    bpy.ops.kinesplat.read_video()
    assert "gone" in preview().problem
    video.video_source = "STRIP"
    assert preview().problem == ""
    bpy.context.window_manager.kinesplat.video_problem = ""
    assert "Select a movie or image strip" in why_not(bpy.ops.kinesplat.generate)


def test_few_frames_of_a_long_range_play_as_long(extension, part) -> None:
    source = part("blender_addon.video_source").VideoSource("film", 301, 10.0)
    text = part("blender_addon.video_preview").range_text(source, source, 8)
    assert "30.0 s, 8 taken (every 43rd)" in text
    assert part("blender_addon.video_source").stored_fps(source, 8) == pytest.approx(7 / source.seconds)


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_a_video(video, backend, part) -> None:
    video.use_whole_video, video.video_start, video.video_end = False, 7, 37
    video.video_frames, video.cutout, video.prompt, video.seed = 16, "background", " a  dog ", 5
    video.preset, video.representation, video.model = "draft", "nerf", "published"
    bpy.context.scene.cursor.location = (1, 2, 3)
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    request = only_request(backend)
    assert (request["kind"], request["pipeline"], request["name"]) == ("video", "4diffusion", "dog, a dog, Seed 5")
    told = request["settings"]
    assert (told["frames"], told["cutout"], told["prompt"], told["seed"]) == (16, "background", "a dog", 5)
    assert (told["preset"], told["representation"], told["model"]) == ("draft", "nerf", "published")
    assert told["fps"] == pytest.approx(15 / (30 / 24))  # as long as the range
    assert request["inputs"]["video"] in backend.blobs
    assert (request["inputs"]["start"], request["inputs"]["end"]) == pytest.approx((6 / 24, 36 / 24))
    assert bpy.ops.kinesplat.import_result() == {"FINISHED"}
    splats = bpy.context.active_object
    assert splats.name == "dog, a dog, Seed 5 Gaussians"
    assert splats.matrix_world.translation.xy[:] == pytest.approx((1, 2))  # on the 3D cursor
    assert part("blender_addon.retime").timing(splats).first == 3  # the scene's first frame


def test_settings_that_do_not_go_together(video) -> None:
    video.motion_model = "hexplane"
    assert "rigid parts only" in why_not(bpy.ops.kinesplat.generate)
    for name, value, other in (("preset", "draft", "preview"), ("representation", "nerf", "gaussians")):
        setattr(video, name, value)
        assert bpy.ops.kinesplat.generate.poll()
        setattr(video, name, other)
    video.motion_model, video.color_space = "bases", "linear"
    assert not bpy.ops.kinesplat.generate.poll()


def test_a_strip_begins_where_the_sequencer_shows_it(video, backend, part) -> None:
    scene = bpy.context.scene
    strip = scene.sequence_editor_create().strips.new_movie("shot.mp4", video.video_path, 1, 50)
    strip.frame_offset_start = 10
    scene.sequence_editor.active_strip = strip
    video.video_source = "STRIP"
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    request = only_request(backend)
    assert (request["name"], request["inputs"]["start"]) == ("shot", pytest.approx(10 / 24))
    # Blender plays its 30 frames at the scene's 12 per second.
    assert request["settings"]["fps"] == pytest.approx(7 / (29 / 12))
    assert board(part).record(active_job().uid).frame_start == 60


def test_pictures(video, backend, tmp_path) -> None:
    video.video_path = str(write_pictures(tmp_path / "shots", 12))
    video.use_whole_video, video.video_start, video.video_end = False, 2, 11
    assert bpy.ops.kinesplat.generate(wait=True) == {"FINISHED"}
    inputs = only_request(backend)["inputs"]
    assert len(inputs["pictures"]) == 10
    assert inputs["pictures_fps"] == 12.0
    assert all(sha256 in backend.blobs for sha256 in inputs["pictures"])


def test_nothing_is_left_of_a_video_that_cannot_be_sent(video, backend, part) -> None:
    video.video_path += "x"
    assert "gone" in error_of(bpy.ops.kinesplat.generate)
    assert not list((part("blender_addon.job_tracker").tracker().records.folder).glob("outbox/*"))
    video.video_path = ""
    assert "Choose a video" in why_not(bpy.ops.kinesplat.generate)


def test_the_quality_is_the_same_for_all_kinds(options) -> None:
    assert options.preset == "preview"
    options.kind, options.preset = "VIDEO", "final"
    assert (options.preset, options.gaussians) == ("final", 20_000)
    options.kind = "TEXT"
    assert options.preset == "final"


def test_a_job_says_more_than_its_stage(video, tmp_path, part) -> None:
    with FakeBackend(tmp_path / "home", steps=1_000_000):
        assert bpy.ops.kinesplat.generate() == {"FINISHED"}
        tracker = part("blender_addon.job_tracker")
        tracker.wait(lambda: active_job().detail, 10)
        assert active_job().detail == "loss 0.12"
        tracker.tracker().board.apply(_seen(part, {"id": active_job().job_id, "state": "running"}))
        tracker.tracker().mirror()
        assert active_job().detail == ""


def _seen(part, job: dict) -> object:
    return part("blender_addon.http_thread").JobSeen(job, "")
