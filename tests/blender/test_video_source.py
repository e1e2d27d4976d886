# SPDX-License-Identifier: GPL-3.0-or-later
"""Movie clips, strips and files: what is sent of them, and that the backend reads exactly that."""

import shutil

import numpy as np
import pytest
from PIL import Image

from backend.progress import Run
from backend.service.schema import VideoRequestModel
from backend.video.reading import Span, read_video
from blender_addon.contract.requests import VIDEO_LIMITS, file_sha256, video_request
from tests.video.films import picture, square_left, write_pictures, write_video

bpy = pytest.importorskip("bpy")
pytestmark = pytest.mark.blender


@pytest.fixture
def sources(extension, part, decoded_here):
    """The module, in an empty scene at 12 frames per second."""
    bpy.context.scene.render.fps = 12
    return part("blender_addon.video_source")


@pytest.fixture
def film(tmp_path):
    return write_video(tmp_path / "film.mp4", count=40)


def strips():
    return bpy.context.scene.sequence_editor_create().strips


def sent(sources, source, tmp_path) -> tuple[dict, list[int]]:
    """The inputs of the request, checked; and which frames the backend takes from what was sent."""
    steps = sources.pack_steps(source, tmp_path / "outbox")
    progress = []
    while True:
        try:
            progress.append(next(steps))
        except StopIteration as end:
            packed = end.value
            break
    assert progress
    assert all(done <= total for done, total in progress)
    hashes = {path: file_sha256(path) for path in packed.paths}
    request = video_request(source.name, np.eye(4).tolist(), **packed.inputs(hashes))
    VideoRequestModel.model_validate(request)
    inputs, files = request["inputs"], {sha256: path for path, sha256 in hashes.items()}
    if inputs["video"]:
        span = Span(inputs["start"], inputs["end"])
        video = read_video(files[inputs["video"]], 8, Run(tmp_path), span=span)
    else:
        paths = [files[sha256] for sha256 in inputs["pictures"]]
        video = read_video(paths, 8, Run(tmp_path), fps=inputs["pictures_fps"])
    return inputs, [square_left(frame) for frame in video.frames]


def test_a_movie_clip(sources, film, tmp_path):
    clip = bpy.data.movieclips.load(str(film))
    source = sources.from_movie_clip(clip, bpy.context.scene)
    assert source.seconds == pytest.approx(39 / 12), "the scene shows a frame of it in each of its own"
    assert sources.from_path(film, bpy.context.scene).seconds == pytest.approx(39 / 24)
    inputs, frames = sent(sources, source, tmp_path)
    assert (inputs["start"], inputs["end"]) == (0.0, None)
    assert (frames[0], frames[-1]) == (0, 39)


def test_a_clip_of_pictures_begins_where_its_file_does(sources, tmp_path):
    folder = write_pictures(tmp_path / "shots", 24)
    clip = bpy.data.movieclips.load(str(folder / "shot_5.png"))
    source = sources.from_movie_clip(clip, bpy.context.scene)
    assert [path.name for path in source.pictures][::19] == ["shot_5.png", "shot_24.png"]
    inputs, frames = sent(sources, source, tmp_path)
    assert (frames[0], frames[-1]) == (4, 23)
    assert inputs["pictures_fps"] == 12.0


def test_a_strip_sends_what_it_shows(sources, film, tmp_path):
    strip = strips().new_movie("shot", str(film), 1, 1)
    strip.frame_offset_start, strip.frame_offset_end = 10, 9
    inputs, frames = sent(sources, sources.from_strip(strip, bpy.context.scene), tmp_path)
    assert (frames[0], frames[-1]) == (10, 30)
    assert (inputs["start"], inputs["end"]) == pytest.approx((10 / 24, 30 / 24))


def test_both_halves_of_a_strip_that_was_cut(sources, film, tmp_path):
    strip = strips().new_movie("shot", str(film), 1, 1)
    right = strip.split(frame=18, split_method="HARD")
    for half, ends in ((strip, (0, 16)), (right, (17, 39))):
        _, frames = sent(sources, sources.from_strip(half, bpy.context.scene), tmp_path)
        assert (frames[0], frames[-1]) == ends


def test_a_strip_that_keeps_the_speed_of_its_movie(sources, film, tmp_path):
    """In a scene of half its rate: what the sequencer itself makes of a movie that is dropped into it."""
    screen = bpy.context.window_manager.windows[0].screen
    screen.areas[0].type = "SEQUENCE_EDITOR"
    strips()
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0], area=screen.areas[0]):
        bpy.ops.sequencer.movie_strip_add(
            filepath=str(film), frame_start=1, channel=1, adjust_playback_rate=True, use_framerate=False, sound=False
        )
    bpy.context.scene.render.fps = 12
    strip = bpy.context.scene.sequence_editor.strips[0]
    source = sources.from_strip(strip, bpy.context.scene)
    assert source.seconds == pytest.approx(39 / 24)
    strip.frame_offset_start, strip.frame_offset_end = 5, 4
    source = sources.from_strip(strip, bpy.context.scene)
    _, frames = sent(sources, source, tmp_path)
    assert (frames[0], frames[-1]) == (10, 31)
    assert (source.scene_frame, source.scene_step) == (6, 0.5)
    assert source.part(4, 11).scene_frame == 8


def test_names_are_those_of_the_files(sources, film, tmp_path):
    scene = bpy.context.scene
    assert sources.from_path(film, scene).name == "film"
    folder = write_pictures(tmp_path / "shots.v2", 4)
    assert sources.from_path(folder, scene).name == "shots.v2"
    assert sources.from_path(folder / "shot_1.png", scene).name == "shot"
    clip = bpy.data.movieclips.load(str(film))
    assert sources.from_movie_clip(clip, scene).name == "film"
    clip.name = "Dog, take 2"
    assert sources.from_movie_clip(clip, scene).name == "Dog, take 2"


def test_a_strip_of_images(sources, tmp_path):
    folder = write_pictures(tmp_path / "shots", 24)
    strip = strips().new_image("shots", str(folder / "shot_1.png"), 1, 1)
    for number in range(2, 25):
        strip.elements.append(f"shot_{number}.png")
    strip.frame_offset_start = 4
    _, frames = sent(sources, sources.from_strip(strip, bpy.context.scene), tmp_path)
    assert (frames[0], frames[-1]) == (4, 23)


def test_strips_that_are_not_what_they_show(sources, film, tmp_path):
    scene = bpy.context.scene
    strip = strips().new_movie("shot", str(film), 1, 1)
    strip.use_reverse_frames = True
    color = strips().new_effect(name="color", type="COLOR", channel=3, frame_start=1, **_length(10))
    for other in (strip, color, None):
        with pytest.raises(sources.CaptureError, match=r"\.$"):
            sources.from_strip(other, scene)


def _length(frames: int) -> dict:
    return {"length": frames} if bpy.app.version >= (5, 0) else {"frame_end": 1 + frames}


def test_a_path_to_a_file_a_folder_and_one_of_its_pictures(sources, film, tmp_path):
    scene = bpy.context.scene
    _, frames = sent(sources, sources.from_path(film, scene), tmp_path)
    assert (frames[0], frames[-1]) == (0, 39)
    inputs, frames = sent(sources, sources.from_path(film, scene).part(3, 12), tmp_path)
    assert (inputs["start"], inputs["end"]) == (3 / 24, 12 / 24)  # at the video's rate
    assert (frames[0], frames[-1]) == (3, 12)
    folder = write_pictures(tmp_path / "shots", 24)
    _, frames = sent(sources, sources.from_path(folder, scene), tmp_path)
    assert (frames[0], frames[-1]) == (0, 23)
    _, frames = sent(sources, sources.from_path(folder / "shot_9.png", scene).part(1, 10), tmp_path)
    assert (frames[0], frames[-1]) == (9, 18)


def test_long_sequences_are_thinned_in_the_same_time(sources, tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    for index in range(100):
        Image.fromarray(picture(index % 20)).save(folder / f"{index:04d}.png")
    inputs, _ = sent(sources, sources.from_path(folder, bpy.context.scene), tmp_path)
    assert len(inputs["pictures"]) == VIDEO_LIMITS.pictures
    assert 63 / inputs["pictures_fps"] == pytest.approx(99 / 12)


def test_pictures_of_other_kinds_are_converted(sources, tmp_path):
    folder = write_pictures(tmp_path / "shots", 8)
    for path in folder.iterdir():
        Image.open(path).convert("RGB").save(path.with_suffix(".tif"))
        path.unlink()
    before = len(bpy.data.images)
    source = sources.from_path(folder, bpy.context.scene)
    _, frames = sent(sources, source, tmp_path)
    assert frames == list(range(8))
    assert len(bpy.data.images) == before


def test_what_cannot_be_sent_is_said(sources, film, tmp_path, monkeypatch):
    scene = bpy.context.scene
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(b"RIFF1234AVI " + b"x" * 100)
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, said in ((noise, "no MP4"), (tmp_path / "gone.mp4", "gone"), (empty, "fewer than two")):
        with pytest.raises(sources.CaptureError, match=said):
            sources.from_path(path, scene)
    with pytest.raises(sources.CaptureError, match="no motion"):
        sources.from_path(film, scene).part(5, 5)
    with pytest.raises(sources.CaptureError, match="ends at frame 40"):
        sources.from_path(film, scene).part(39, 50)
    with pytest.raises(sources.CaptureError, match="no movie clip"):
        sources.from_movie_clip(None, scene)
    clip = bpy.data.movieclips.load(str(film))
    source = sources.from_movie_clip(clip, scene)
    film.unlink()
    with pytest.raises(sources.CaptureError, match="gone"):
        sources.from_movie_clip(clip, scene)
    with pytest.raises(sources.CaptureError, match="gone"):
        list(sources.pack_steps(source, tmp_path / "outbox"))
    folder = write_pictures(tmp_path / "shots", 4)
    source = sources.from_path(folder, scene)
    shutil.rmtree(folder)
    with pytest.raises(sources.CaptureError, match="gone"):
        list(sources.pack_steps(source, tmp_path / "outbox"))


def test_a_file_that_grows_too_large(sources, film, tmp_path, monkeypatch):
    import dataclasses

    source = sources.from_path(film, bpy.context.scene)
    monkeypatch.setattr(sources, "VIDEO_LIMITS", dataclasses.replace(VIDEO_LIMITS, file_bytes=100))
    with pytest.raises(sources.CaptureError, match="larger than"):
        list(sources.pack_steps(source, tmp_path / "outbox"))
    with pytest.raises(sources.CaptureError, match="larger than"):
        sources.from_path(film, bpy.context.scene)
