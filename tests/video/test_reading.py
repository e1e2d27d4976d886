# SPDX-License-Identifier: GPL-3.0-or-later
"""Decoding in a process of its own: what comes out of good files, what is said of bad ones, and what is left behind."""

import struct
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from backend import interpreter
from backend.progress import JobCancelled, Run, UserError
from backend.video import reading
from backend.video.reading import Span, pictures_within, read_video
from blender_addon.contract.video import LIMITS, media_type
from tests.video.films import GROUND, SIZE, SQUARE, picture, square_left, write_gif, write_pictures, write_video


@pytest.fixture
def apart(tmp_path):
    """A run whose decoder is a process of its own, as always outside of tests."""
    return Run(tmp_path)


@pytest.fixture
def run(tmp_path, decoded_here):
    return Run(tmp_path)


def shown(video) -> list[int]:
    """The numbers of the frames that were taken."""
    return [square_left(frame) for frame in video.frames]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


# --- good files ------------------------------------------------------------------------------------------------------

KINDS = {
    "mp4": ("film.mp4", "libx264", "yuv420p"),
    "mov, qtrle": ("film.mov", "qtrle", "rgb24"),
    "webm": ("film.webm", "libvpx-vp9", "yuv420p"),
    "mkv": ("film.mkv", "libx264", "yuv444p"),
    "gif": ("film.gif", "gif", "rgb8"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_frames(kind, tmp_path, apart):
    name, codec, pixels = KINDS[kind]
    rate = 20 if kind == "gif" else 24  # GIF counts in hundredths of a second
    film = write_gif(tmp_path / name) if kind == "gif" else write_video(tmp_path / name, codec, pixels, rate=rate)
    video = read_video(film, 8, apart)
    assert video.frames.shape == (8, SIZE[1], SIZE[0], 4)
    assert video.frames.dtype == np.uint8
    assert shown(video) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert video.times == pytest.approx(np.array(shown(video)) / rate, abs=0.002)
    assert not video.has_alpha
    assert np.abs(video.frames[0, 2, 2, :3].astype(int) - GROUND).max() <= 4
    assert np.abs(video.frames[0, 32, 16, :3].astype(int) - SQUARE).max() <= 4
    assert video.facts["frames"] == 24


def test_the_name_of_a_file_says_nothing(tmp_path, run):
    film = write_video(tmp_path / "film.mp4")
    film = film.rename(tmp_path / "film.png")
    assert shown(read_video(film, 2, run)) == [0, 23]


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_folder_of_pictures_in_the_order_of_their_numbers(ending, tmp_path, run):
    folder = write_pictures(tmp_path / "shots", 24, ending)
    (folder / "readme.txt").write_text("not a picture")
    video = read_video(folder, 8, run, fps=12)
    assert shown(video) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert video.times[-1] == pytest.approx(23 / 12)


def test_pictures_within_a_range():
    files = [Path(f"{index}.png") for index in range(100)]
    chosen, fps = pictures_within(files, Span(1.0, 2.0), 10.0)
    assert (chosen, fps) == (files[10:21], 10.0)
    chosen, fps = pictures_within(files, Span(), 10.0)
    assert (len(chosen), chosen[0], chosen[-1]) == (64, files[0], files[-1])
    assert fps == pytest.approx(10 * 63 / 99)  # the same time for fewer pictures
    with pytest.raises(UserError, match="1 of the 100 pictures"):
        pictures_within(files, Span(9.9), 10.0)


def test_frames_are_chosen_by_their_times(tmp_path, run):
    stamps = [*range(12), *range(12, 60, 4)]  # the second half has a quarter of the rate
    video = read_video(write_video(tmp_path / "film.mp4", stamps=stamps), 8, run)
    assert (np.diff(video.times) > 0).all()
    assert np.abs(video.times - np.linspace(0, 56, 8) / 24).max() <= 2 / 24 + 1e-3
    assert shown(video) == [0, 8, 13, 15, 17, 19, 21, 23]


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv"])
def test_a_range_in_seconds_and_in_frames(kind, tmp_path, run):
    name, codec, pixels = KINDS[kind]
    film = write_video(tmp_path / name, codec, pixels, count=40)
    seconds = read_video(film, 8, run, span=Span(0.5, 1.0))
    frames = read_video(film, 8, run, span=Span(12, 24, "frames"))
    assert shown(seconds) == shown(frames) == [12, 14, 15, 17, 19, 21, 22, 24]
    assert np.array_equal(seconds.frames, frames.frames)


def test_a_range_of_a_gif_and_one_behind_key_frames(tmp_path, run):
    assert shown(read_video(write_gif(tmp_path / "film.gif"), 4, run, span=Span(8, 20, "frames"))) == [8, 12, 16, 20]
    film = write_video(tmp_path / "film.mp4", count=42, codec_options={"g": "6", "bf": "2"})
    assert shown(read_video(film, 4, run, span=Span(25, 40, "frames"))) == [25, 30, 35, 40]


def test_too_few_frames_repeat_and_that_is_said(tmp_path, run):
    video = read_video(write_video(tmp_path / "film.mp4", count=5), 8, run)
    assert shown(video) == [0, 1, 1, 2, 2, 3, 3, 4]
    assert video.notes == ["The range holds only 5 different frames, and 8 are needed: some repeat."]
    assert run.notes == video.notes


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("film.webm", "libvpx-vp9", "yuva420p"),
        ("film8.webm", "libvpx", "yuva420p"),
        ("film.mov", "prores_ks", "yuva444p10le"),
    ],
)
def test_transparency_is_kept(name, codec, pixels, tmp_path, run):
    video = read_video(write_video(tmp_path / name, codec, pixels, alpha=True), 8, run)
    assert video.has_alpha
    assert (video.frames[0, 30, 18:26, 3] > 250).all()
    assert (video.frames[0, :8, :, 3] < 5).all()
    assert np.abs(video.frames[0, 32, 18, :3].astype(int) - SQUARE).max() < 6


def test_rotated_as_telephones_do(tmp_path, run):
    def upright(degrees: int) -> np.ndarray:
        def prepare(stream, source, out):
            if not stream.codec_context.is_open:
                stream.set_display_rotation(degrees)
            return out

        film = write_video(tmp_path / f"film{degrees}.mp4", prepare=prepare)
        return read_video(film, 2, run).frames[0]

    plain, turned = upright(0), upright(90)
    assert plain.shape == (SIZE[1], SIZE[0], 4)
    assert turned.shape == (SIZE[0], SIZE[1], 4)
    assert np.abs(turned.astype(int) - np.rot90(plain)).mean() < 2
    assert np.abs(upright(180).astype(int) - np.rot90(plain, 2)).mean() < 2


def test_pixels_that_are_not_square(tmp_path, run):
    def prepare(stream, source, out):
        if not stream.codec_context.is_open:
            stream.sample_aspect_ratio = Fraction(3, 2)
            stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        return out

    video = read_video(write_video(tmp_path / "film.mp4", prepare=prepare), 2, run)
    assert video.frames.shape[1:3] == (64, 144)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["ITU601", "ITU709"])
def test_the_matrix_and_range_that_the_file_names(matrix, full_range, tmp_path, run):
    from av.video.reformatter import ColorRange, Colorspace

    coded, wide = Colorspace[matrix], ColorRange.JPEG if full_range else ColorRange.MPEG

    def prepare(stream, source, out):
        context = stream.codec_context
        if not context.is_open:
            context.colorspace, context.color_range = {"ITU709": 1, "ITU601": 6}[matrix], wide
        made = source.reformat(format="yuv420p", dst_colorspace=coded, dst_color_range=wide)
        made.colorspace, made.color_range = {"ITU709": 1, "ITU601": 6}[matrix], wide
        return made

    video = read_video(write_video(tmp_path / "film.mp4", prepare=prepare), 2, run)
    assert np.abs(video.frames[0, 2, 2, :3].astype(int) - GROUND).max() <= 4
    assert np.abs(video.frames[0, 32, 18, :3].astype(int) - SQUARE).max() <= 4


@pytest.mark.parametrize(("transfer", "code"), [(16, 0.58), (18, 0.75)], ids=["PQ", "HLG"])
def test_hdr_white_is_white(transfer, code, tmp_path, run):
    def frame(index, size, alpha):
        ramp = np.zeros((size[1], size[0], 4), np.uint8)
        ramp[..., :3], ramp[..., 3] = round(255 * code * (0.6 if index else 1.0)), 255
        return ramp

    def prepare(stream, source, out):
        context = stream.codec_context
        if not context.is_open:
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, transfer, 1
        out.colorspace, out.color_range = 9, 1
        return out

    video = read_video(write_video(tmp_path / "film.mp4", count=2, frame=frame, prepare=prepare), 2, run)
    assert video.frames[0, 20, 20, :3] == pytest.approx(255, abs=4)
    assert 60 < video.frames[1, 20, 20, 0] < 200
    assert np.ptp(video.frames[1, 20, 20, :3].astype(int)) <= 3
    assert any("HDR" in note for note in video.notes)


def test_a_gif_that_is_cut_out(tmp_path, run):
    frames = []
    for index in range(8):
        indexed = Image.fromarray((picture(index, alpha=True)[..., 3] > 0).astype(np.uint8))
        indexed.putpalette([0, 0, 0, *SQUARE])
        frames.append(indexed)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50, transparency=0, disposal=2)
    video = read_video(tmp_path / "a.gif", 8, run)
    assert video.has_alpha
    assert [int(np.flatnonzero(frame[32, :, 3])[0]) for frame in video.frames] == [8 + 2 * index for index in range(8)]


def test_large_frames_come_out_smaller(tmp_path, run):
    film = write_video(tmp_path / "film.mp4", count=4, size=(1280, 720), matrix="ITU709")
    video = read_video(film, 2, run, longest=320)
    assert video.frames.shape[1:3] == (180, 320)
    assert np.abs(video.frames[0, 5, 5, :3].astype(int) - GROUND).max() <= 4  # untagged HD is BT.709


def test_pictures_with_sixteen_bits_a_turn_and_gray(tmp_path, run):
    folder = tmp_path / "shots"
    folder.mkdir()
    gray = np.full((20, 30), 0x8080, np.uint16)
    for index in range(2):
        Image.fromarray(gray).save(folder / f"{index}.png")
    assert (read_video(folder, 2, run).frames[0, 5, 5] == (128, 128, 128, 255)).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    for index in range(2):
        Image.fromarray(picture(0)).convert("RGB").save(folder / f"{index}.jpg", exif=exif, quality=95)
        (folder / f"{index}.png").unlink()
    assert read_video(folder, 2, run).frames.shape[1:3] == SIZE


# --- bad files -------------------------------------------------------------------------------------------------------


def refused(source, run, *, count: int = 8, **options) -> UserError:
    """How a source is refused; no process and no file is left."""
    before = children()
    with pytest.raises(UserError) as caught:
        read_video(source, count, run, **options)
    assert children() == before
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert caught.value.hint.endswith(".")
    return caught.value


def garbage(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def test_a_truncated_mp4(tmp_path, apart):
    film = write_video(tmp_path / "film.mp4")
    film.write_bytes(film.read_bytes()[:-600])  # its index stands at the end
    assert "damaged or incomplete" in str(refused(film, apart))


def test_an_mp4_that_ends_early_behind_its_index(tmp_path, run):
    film = write_video(tmp_path / "film.mp4", count=60, options={"movflags": "faststart"})
    data = film.read_bytes()
    film.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2])
    video = read_video(film, 8, run)
    assert 2 <= shown(video)[-1] < 55
    assert video.notes
    assert "ends early" in video.notes[0] or "damaged" in video.notes[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
def test_bytes_changed_anywhere_give_a_video_or_one_sentence(kind, seed, tmp_path, apart):
    name, codec, pixels = KINDS[kind]
    film = write_video(tmp_path / name, codec, pixels, count=12)
    data = bytearray(film.read_bytes())
    generator = np.random.default_rng(seed)
    for place in generator.integers(0, len(data), 1 + 40 * seed):
        data[place] = generator.integers(256)
    film.write_bytes(data)
    before = children()
    try:
        video = read_video(film, 8, apart)
    except UserError as error:
        assert str(error).endswith(".")
    else:
        assert video.frames.shape[0] == 8
    assert children() == before


def test_one_pixel(tmp_path, run):
    folder = tmp_path / "shots"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / f"{index}.png")
    assert read_video(folder, 3, run).frames.shape == (3, 1, 1, 4)


def test_a_header_of_a_hundred_thousand_frames(tmp_path, run):
    film = write_video(tmp_path / "film.mp4", count=12)
    data = bytearray(film.read_bytes())
    place = data.index(b"stts")
    assert struct.unpack(">I", data[place + 12 : place + 16]) == (12,)
    data[place + 12 : place + 16] = struct.pack(">I", 100_000)
    for name, offset in ((b"mdhd", 20), (b"tkhd", 24), (b"mvhd", 20)):
        spot = data.index(name) + offset
        data[spot : spot + 4] = struct.pack(">I", 0x7FFFFFFF)
    film.write_bytes(data)
    assert refused(film, run).code == "video_too_long"


def test_more_frames_than_allowed_whatever_the_header_says(tmp_path, run):
    film = write_video(tmp_path / "film.webm", "libvpx-vp9", count=30)  # its header gives no number of frames
    error = refused(film, run, limits=replace(LIMITS, frames=20))
    assert error.code == "video_too_long"
    assert refused(film, run, limits=replace(LIMITS, seconds=0.5)).code == "video_too_long"


@pytest.mark.parametrize("side", [20_000, 65_535])
def test_a_gif_that_claims_a_huge_canvas(side, tmp_path, apart):
    film = write_video(tmp_path / "bomb.gif", "gif", "rgb8", count=4)
    data = bytearray(film.read_bytes())
    data[6:10] = struct.pack("<HH", side, side)
    film.write_bytes(data)
    start = time.monotonic()
    assert refused(film, apart).code == "video_too_large"
    assert time.monotonic() - start < 5


def test_a_png_that_claims_to_be_huge(tmp_path, apart):
    folder = write_pictures(tmp_path / "shots", 2)
    data = bytearray((folder / "shot_1.png").read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (folder / "shot_1.png").write_bytes(data)
    assert refused(folder, apart, count=2).code == "video_too_large"


def test_pictures_larger_than_the_limit_are_not_decoded(tmp_path, run):
    film = write_video(tmp_path / "film.mp4", count=4, size=(640, 480))
    assert refused(film, run, limits=replace(LIMITS, pixels=640 * 479)).code == "video_too_large"


def test_a_file_that_is_too_large(tmp_path, run):
    film = write_video(tmp_path / "film.mp4")
    assert refused(film, run, limits=replace(LIMITS, file_bytes=film.stat().st_size - 1)).code == "video_too_large"


def test_a_memory_limit_is_kept(tmp_path, apart):
    film = write_video(tmp_path / "film.mp4", count=4, size=(1920, 1080))
    assert refused(film, apart, memory=300 << 20).code in ("bad_video", "video_too_large")


@pytest.mark.parametrize(("free", "code"), [(0, "disk_full"), (10 << 30, "bad_video")])
def test_a_decoder_that_says_nothing(free, code, tmp_path, run, monkeypatch):
    monkeypatch.setattr(reading, "_run_decoder", lambda *_: None)
    monkeypatch.setattr(reading.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert refused(write_video(tmp_path / "film.mp4"), run).code == code


@pytest.mark.parametrize(
    "data",
    [b"", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n", garbage(1, 5000),
     b"\x00\x00\x00\x18ftypmp42" + garbage(2, 3000), b"GIF89a", b"\x1a\x45\xdf\xa3" + garbage(3, 300), b"<svg/>"],
    ids=["empty", "hls", "concat", "noise", "mp4 noise", "gif head", "ebml noise", "svg"],
)  # fmt: skip
def test_what_is_no_video(data, tmp_path, run):
    film = tmp_path / "film.mp4"
    film.write_bytes(data)
    assert refused(film, run).code == "bad_video"


def test_sound_only(tmp_path, run):
    film = tmp_path / "sound.mp4"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "no picture track" in str(refused(film, run))


def test_one_frame_is_no_motion(tmp_path, run):
    film = write_video(tmp_path / "film.mp4", count=1)
    assert refused(film, run).code == "too_few_frames"
    film = write_video(tmp_path / "long.mp4", count=24)
    assert "holds no frames" in str(refused(film, run, span=Span(5.0, 6.0)))
    assert "holds no frames" in str(refused(film, run, span=Span(0.9, 0.1)))


def test_files_that_are_gone(tmp_path, run):
    assert refused(tmp_path / "nothing.mp4", run).code == "video_missing"
    folder = write_pictures(tmp_path / "shots", 4)
    files = sorted(folder.iterdir())
    files[2].unlink()
    assert refused(files, run, count=4).code == "video_missing"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", run).code == "bad_video"


def test_no_pictures_at_all(run):
    assert refused([], run).code == "bad_video"


def test_pictures_of_different_sizes(tmp_path, run):
    folder = write_pictures(tmp_path / "shots", 4)
    Image.new("RGB", (50, 50)).save(folder / "shot_3.png")
    assert "another size" in str(refused(folder, run, count=4))


def test_a_video_among_pictures(tmp_path, run):
    folder = write_pictures(tmp_path / "shots", 3)
    film = write_video(tmp_path / "film.mp4")
    assert "neither a PNG nor a JPEG" in str(refused([*folder.iterdir(), film], run))


@pytest.mark.slow
def test_cancelling_ends_the_process(tmp_path):
    film = write_video(tmp_path / "film.mp4", count=400, size=(320, 240))
    seen: set[int] = set()
    before = children()

    def is_cancelled() -> bool:
        seen.update(children() - before)
        return bool(seen)

    run = Run(tmp_path, is_cancelled=is_cancelled)
    with pytest.raises(JobCancelled):
        read_video(film, 64, run)
    assert len(seen) >= 1
    assert children() == before


def test_what_is_decoded_lies_in_the_runs_own_folder(tmp_path):
    """A process that is killed cannot tidy up, and nobody else knows of a folder in the system's place for such."""
    film = write_video(tmp_path / "film.mp4")
    seen: set[Path] = set()
    work = tmp_path / "work"
    read_video(film, 8, Run(work, lambda progress: seen.update(work.rglob("question.json"))))
    assert len(seen) == 1
    assert not list(work.iterdir())


def test_a_process_that_takes_too_long_is_ended(tmp_path, apart):
    film = write_video(tmp_path / "film.mp4", count=60, size=(640, 480))
    assert refused(film, apart, seconds=0).code == "video_too_slow"


def test_nothing_is_left_in_the_temporary_folder(tmp_path, apart, monkeypatch):
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    read_video(write_video(tmp_path / "film.mp4"), 8, apart)
    film = tmp_path / "bad.mp4"
    film.write_bytes(b"\x00\x00\x00\x18ftypmp42")
    refused(film, apart)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_kinds_by_content(tmp_path):
    for name, codec, pixels in KINDS.values():
        head = write_video(tmp_path / name, codec, pixels, count=2).read_bytes()[:64]
        assert media_type(head) == {"mov": "mp4", "mkv": "webm"}.get(name[-3:], Path(name).suffix[1:])
    assert media_type(b"") is None


def test_the_decoder_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, backend.video.decoder; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=interpreter.ROOT, check=True)
