# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that opens files from outside: one video or list of pictures in, chosen frames out, then it ends.

It is started by `backend.video.reading` and trusts nothing: the kind of file comes from its bytes, the demuxer is
fixed by it (so that no playlist and no network protocol can be reached), every size is held against its limit before
memory is taken and again at each frame, and the system limits memory, processor time and what may be written.

    python -m backend.video.decoder QUESTION.json        # see Question

leaves `frames.npy` ([T, H, W, 4] uint8, straight alpha, sRGB) and, last, `answer.json` in the folder.
"""

import contextlib
import json
import os
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from backend.video import color
from backend.video.stills import fitted, upright_srgb
from blender_addon.contract.video import HEAD_BYTES, LIMITS, PICTURE_TYPES, VideoLimits, evenly_spaced, media_type

FRAMES_NAME, ANSWER_NAME = "frames.npy", "answer.json"
DEMUXERS = {"mp4": "mov", "webm": "matroska", "gif": "gif"}  # type by content -> FFmpeg's name
ALPHA_DECODERS = {"vp9": "libvpx-vp9", "vp8": "libvpx"}  # FFmpeg's own ones leave out the alpha plane
HD_HEIGHT = 720  # untagged video from here on is BT.709, below BT.601, as players assume
MAX_ASPECT = 8.0  # of one pixel
DAMAGED_PACKETS = 1000  # after so many that cannot be decoded nothing good comes any more


class RefusedError(Exception):
    """The file cannot be used: a stable code, one sentence, and what to do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.hint = code, hint


@dataclass(frozen=True)
class Question:
    """What is asked of the process."""

    files: list[str]  # one video, or PNG and JPEG pictures in order
    folder: str  # for the answer
    count: int  # frames wanted
    start: float = 0.0
    end: float | None = None  # inclusive; None: to the end
    unit: str = "seconds"  # of start and end: "seconds" from the first frame on, or "frames" from 0 on
    fps: float = 24.0  # of pictures, which carry no times
    longest: int = 1024  # pixels; frames come out at most this large
    limits: VideoLimits = LIMITS
    memory: int = 4 << 30  # bytes of address space
    cpu_seconds: int = 120
    wall_seconds: int = 180

    @classmethod
    def from_json(cls, text: str) -> "Question":
        """The reverse of `json.dumps(dataclasses.asdict(question))`."""
        values = json.loads(text)
        return cls(**{**values, "limits": VideoLimits(**values["limits"])})


@dataclass
class Frames:
    """What was decoded."""

    pictures: list[np.ndarray]  # T times [H, W, 4] uint8, straight alpha, sRGB
    times: list[float]  # seconds since the file's first frame
    facts: dict  # of the file, for the provenance
    notes: list[str]


def main(arguments: list[str]) -> int:
    """Answer the one question; 0 if an answer was written, whatever it says."""
    question = Question.from_json(Path(arguments[0]).read_text("utf-8"))
    limit_process(question)
    folder = Path(question.folder)
    try:
        frames = decode(question)
        np.save(folder / FRAMES_NAME, np.stack(frames.pictures))
        answer = {name: getattr(frames, name) for name in ("times", "facts", "notes")}
    except RefusedError as error:
        answer = {"error": {"code": error.code, "message": str(error), "hint": error.hint}}
    except MemoryError:
        answer = {"error": {"code": "video_too_large", "message": "The video takes more memory than is allowed.",
                            "hint": "Convert it to a smaller one, such as MP4 with 1080 lines."}}  # fmt: skip
    (folder / ANSWER_NAME).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def limit_process(question: Question) -> None:
    """Bound what this process can take, as far as the system lets it; the parent watches as well."""
    watchdog = threading.Timer(question.wall_seconds, os._exit, (1,))  # should the parent be gone
    watchdog.daemon = True
    watchdog.start()
    with contextlib.suppress(ImportError):  # Windows
        import resource

        written = question.limits.pictures * question.longest**2 * 4 + (16 << 20)
        bounds = {
            "RLIMIT_AS": question.memory,
            "RLIMIT_CPU": question.cpu_seconds,
            "RLIMIT_FSIZE": written,
            "RLIMIT_CORE": 0,
        }
        for name, value in bounds.items():
            with contextlib.suppress(ValueError, OSError, AttributeError):  # macOS has no address space limit
                resource.setrlimit(getattr(resource, name), (value, value))


def decode(question: Question) -> Frames:
    """The wanted frames.

    Raises:
        RefusedError: the files cannot be used.
    """
    kinds = [_kind_of(Path(file), question.limits) for file in question.files]
    if len(kinds) == 1 and kinds[0] not in PICTURE_TYPES:
        return decode_video(Path(question.files[0]), kinds[0], question)
    if any(kind not in PICTURE_TYPES for kind in kinds):
        raise RefusedError("bad_video", "The list of pictures holds a file that is neither a PNG nor a JPEG.",
                           "Choose one video, or pictures only.")  # fmt: skip
    return decode_pictures([Path(file) for file in question.files], kinds, question)


def _kind_of(path: Path, limits: VideoLimits) -> str:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise RefusedError("video_missing", "The video cannot be opened: the file is gone or may not be read.",
                           "Choose it again.") from error  # fmt: skip
    if not size:
        raise RefusedError("bad_video", "The video file is empty.", "Choose another one.")
    if size > limits.file_bytes:
        raise RefusedError("video_too_large", f"The video file is larger than {limits.file_bytes >> 20} MB.",
                           "Cut it shorter or compress it more.")  # fmt: skip
    kind = media_type(head)
    if kind is None:
        raise RefusedError("bad_video", "The file is no video of a kind that can be read.",
                           "Choose an MP4, MOV, WebM or GIF file, or PNG or JPEG pictures.")  # fmt: skip
    if kind == "gif" and len(head) >= 10:  # FFmpeg decodes while it opens a file, and would take the memory first
        width, height = struct.unpack("<HH", head[6:10])
        if width * height > limits.pixels:
            raise _too_large(width, height)
    return kind


# --- videos ----------------------------------------------------------------------------------------------------------


def decode_video(path: Path, kind: str, question: Question) -> Frames:
    """The wanted frames of a video file: first all times from the packets, then only what is chosen from them."""
    import av

    av.logging.set_level(av.logging.ERROR)
    with contextlib.ExitStack() as open_files:
        try:
            file = open_files.enter_context(open(path, "rb"))
            container = open_files.enter_context(
                av.open(file, format=DEMUXERS[kind], options={"protocol_whitelist": "file"})
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _damaged("it cannot be opened") from error
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise RefusedError("bad_video", "The file holds no picture track, only sound or other data.",
                               "Choose a video.")  # fmt: skip
        _check_header(container, stream, question.limits)
        notes: list[str] = []
        try:
            stamps, keys = _packet_times(container, stream, question.limits, notes)
            chosen = choose(np.array([stamp * stream.time_base for stamp in stamps], np.float64), question, notes)
            wanted = sorted({stamps[index] for index in chosen})
            key = max((stamp for stamp in keys if stamp <= wanted[0]), default=stamps[0])
            decoded = dict(_decoded(container, stream, key, wanted, question, notes))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _damaged("its pictures cannot be decoded") from error
        missing = [stamp for stamp in wanted if stamp not in decoded]
        if missing:
            when = float((missing[0] - stamps[0]) * stream.time_base)
            raise _damaged(f"the picture at {when:.2f} s cannot be decoded")
        facts = {
            "type": kind,
            "codec": stream.codec_context.name,
            "pixel_format": stream.format.name,
            "width": stream.codec_context.width,
            "height": stream.codec_context.height,
            "frames": len(stamps),
            "seconds": float((stamps[-1] - stamps[0]) * stream.time_base),
        }
    times = [float((stamps[index] - stamps[0]) * stream.time_base) for index in chosen]
    return Frames([decoded[stamps[index]] for index in chosen], times, facts, notes)


def _check_header(container, stream, limits: VideoLimits) -> None:
    """What the file claims of itself; what it then really holds is counted as well."""
    context = stream.codec_context
    if context.width * context.height > limits.pixels:
        raise _too_large(context.width, context.height)
    if min(context.width, context.height) < 1:
        raise _damaged("its header gives its pictures no size")
    seconds = [float(stream.duration * stream.time_base)] if stream.duration else []
    seconds += [container.duration / 1e6] if container.duration else []
    if max(seconds, default=0) > limits.seconds:
        raise _too_long(limits)
    if stream.frames > limits.frames:
        raise _too_long(limits)


def _packet_times(container, stream, limits: VideoLimits, notes: list[str]) -> tuple[list[int], list[int]]:
    """The times of all pictures and of those that can be decoded alone, in units of the stream's time base, rising."""
    import av

    stamps, keys, count = [], [], 0
    nominal = stream.average_rate or stream.guessed_rate or Fraction(24)
    step = max(round(1 / (nominal * stream.time_base)), 1)
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            count += 1
            if count > limits.frames:
                raise _too_long(limits)
            if packet.is_corrupt or packet.is_discard:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                stamp = stamps[-1] + step if stamps else 0
            stamps.append(stamp)
            if packet.is_keyframe:
                keys.append(stamp)
    except (av.FFmpegError, OSError):
        if not stamps:
            raise
        notes.append(f"The video file is damaged: it can be read up to {_seconds(stamps, stream):.1f} s.")
    if not stamps:
        raise _damaged("it holds no pictures")
    stamps, keys = sorted(set(stamps)), sorted(set(keys))
    length = _seconds(stamps, stream)
    if length > limits.seconds:
        raise _too_long(limits)
    if stream.frames > count + 1 and not notes:  # cut off without an error
        notes.append(f"The video file ends early: {count} of its {stream.frames} pictures are there.")
    return stamps, keys


def _decoded(
    container, stream, key: int, wanted: list[int], question: Question, notes: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """(time, picture) of the wanted frames, decoded from the key frame at `key` on."""
    import av

    context = _decoder_of(stream, question.limits, notes)
    container.seek(key, stream=stream)
    left, shape, failed = set(wanted), None, 0
    last_stamp: int | None = None
    for packet in container.demux(stream):
        try:
            frames = context.decode(packet) if packet.size else context.decode(None)
        except av.EOFError:
            break
        except av.FFmpegError:
            failed += 1
            if failed > DAMAGED_PACKETS:
                raise
            continue
        for frame in frames:
            stamp = frame.pts if frame.pts is not None else frame.dts
            stamp = last_stamp + 1 if stamp is None and last_stamp is not None else stamp
            last_stamp = stamp
            if stamp not in left or frame.is_corrupt:
                continue
            if frame.width * frame.height > question.limits.pixels:  # whatever the header said
                raise _too_large(frame.width, frame.height)
            picture = picture_of(frame, _pixel_aspect(stream), question.longest, notes)
            if shape not in (None, picture.shape):
                raise RefusedError("bad_video", "The video changes its picture size on the way.",
                                   "Choose a range before or after that, or convert the video.")  # fmt: skip
            shape = picture.shape
            left.discard(stamp)
            yield stamp, picture
        if not left:
            return


def _decoder_of(stream, limits: VideoLimits, notes: list[str]):
    """A decoder that reads alpha where the file has it, on one thread, and that refuses larger pictures by itself."""
    import av

    context = stream.codec_context
    if stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1" and context.name in ALPHA_DECODERS:
        try:
            context = av.CodecContext.create(ALPHA_DECODERS[context.name], "r")
            context.extradata = stream.codec_context.extradata
        except (av.FFmpegError, ValueError):
            context = stream.codec_context
            notes.append("The video has transparency that cannot be read here: its decoder is not installed.")
    context.options = {**context.options, "max_pixels": str(limits.pixels)}
    context.thread_count = 1
    return context


def _pixel_aspect(stream) -> float:
    """Width of a pixel over its height; what cannot be is 1."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    aspect = float(aspect) if aspect else 1.0
    return aspect if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else 1.0


def picture_of(frame, pixel_aspect: float, longest: int, notes: list[str]) -> np.ndarray:  # [H, W, 4] uint8
    """A decoded frame upright, with square pixels, in sRGB, at most `longest` pixels a side, straight alpha."""
    from av.video.reformatter import Colorspace, Interpolation
    from PIL import Image

    size = fitted(frame.width * max(pixel_aspect, 1.0), frame.height / min(pixel_aspect, 1.0), longest)
    plain = color.is_srgb(int(frame.color_trc), int(frame.color_primaries))
    has_alpha = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
    matrix = None
    if not frame.format.is_rgb and int(frame.colorspace) in (2, 0, 3):  # not said
        matrix = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
    exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    wide = not plain and not has_alpha
    layout = "rgba" if has_alpha else "rgb48le" if wide else "rgb24"
    pixels = frame.reformat(format=layout, src_colorspace=matrix, interpolation=exact, threads=1).to_ndarray()
    if wide:
        pixels = shrunk16(pixels, size)
    else:
        pixels = np.asarray(
            Image.fromarray(pixels).resize(size, Image.Resampling.BOX if has_alpha else Image.Resampling.LANCZOS)
        )
    alpha = pixels[..., 3:] if has_alpha else np.full((*pixels.shape[:2], 1), 255, np.uint8)
    rgb = pixels[..., :3]
    if not plain:
        coded = rgb.astype(np.float32) / (65535 if wide else 255)
        rgb = np.rint(255 * color.to_srgb(coded, int(frame.color_trc), int(frame.color_primaries))).astype(np.uint8)
        _note(
            notes, "The video's wide color range (HDR) was converted to sRGB; what is brighter than white is cut off."
        )
    if frame.interlaced_frame:
        _note(notes, "The video is interlaced: edges of what moves are combed. A progressive video gives more.")
    turned = np.rot90(np.concatenate([rgb, alpha], axis=-1), round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(turned)


def shrunk16(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint16 -> the same at `size` (width, height), filtered."""
    from PIL import Image

    planes = [Image.fromarray(pixels[..., k].astype(np.float32)) for k in range(3)]
    small = np.stack([np.asarray(plane.resize(size, Image.Resampling.BOX)) for plane in planes], axis=-1)
    return np.rint(small).astype(np.uint16)


# --- pictures --------------------------------------------------------------------------------------------------------


def decode_pictures(files: list[Path], kinds: list[str], question: Question) -> Frames:
    """The wanted ones of a list of pictures, which follow each other at `question.fps`."""
    from PIL import Image

    if len(files) > question.limits.frames:
        raise _too_long(question.limits)
    notes: list[str] = []
    chosen = choose(np.arange(len(files)) / question.fps, question, notes)
    Image.MAX_IMAGE_PIXELS = None  # the check below comes before any pixel is decoded, and is an error at once
    decoded: dict[int, np.ndarray] = {}
    for index in sorted(set(chosen.tolist())):
        path = files[index]
        try:
            with Image.open(path, formats=[kinds[index].upper()]) as image:
                if image.width * image.height > question.limits.pixels:
                    raise _too_large(image.width, image.height)
                picture = upright_srgb(image, question.longest)
        except FileNotFoundError as error:
            raise RefusedError(
                "video_missing", f"Picture {index + 1} of {len(files)} is gone.", "Choose them again."
            ) from error
        except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, OverflowError) as error:
            raise _damaged(f"picture {index + 1} of {len(files)} cannot be read") from error
        decoded[index] = np.asarray(picture)
        if picture.size != (next(iter(decoded.values())).shape[1::-1]):
            raise RefusedError("bad_video", f"Picture {index + 1} has another size than the first one.",
                               "Choose pictures of one size.")  # fmt: skip
    height, width = next(iter(decoded.values())).shape[:2]
    facts = {
        "type": "pictures",
        "codec": "+".join(sorted(set(kinds))),
        "pixel_format": "",
        "width": width,
        "height": height,
        "frames": len(files),
        "seconds": (len(files) - 1) / question.fps,
    }
    return Frames([decoded[index] for index in chosen], [index / question.fps for index in chosen], facts, notes)


# --- both ------------------------------------------------------------------------------------------------------------


def choose(times: np.ndarray, question: Question, notes: list[str]) -> np.ndarray:  # [count] int64
    """Which frames to take of those at `times` [N] seconds, rising.

    Raises:
        RefusedError: fewer than two lie in the range.
    """
    positions = times - times[0] if question.unit == "seconds" else np.arange(len(times), dtype=np.float64)
    end = np.inf if question.end is None else question.end
    slack = 1e-6
    inside = np.flatnonzero((positions >= question.start - slack) & (positions <= end + slack))
    if len(inside) < 2:
        found = "one frame" if len(inside) else "no frames"
        raise RefusedError(
            "too_few_frames",
            f"The chosen range holds {found}, and so no motion; the video has {len(times)} in "
            f"{times[-1] - times[0]:.2f} s.",
            "Choose a longer range or another video.",
        )
    if len(inside) < question.count:
        _note(
            notes, f"The range holds only {len(inside)} different frames, and {question.count} are needed: some repeat."
        )
    return inside[evenly_spaced(times[inside], question.count)]


def _seconds(stamps: list[int], stream) -> float:
    return float((max(stamps) - min(stamps)) * stream.time_base)


def _note(notes: list[str], sentence: str) -> None:
    if sentence not in notes:
        notes.append(sentence)


def _damaged(what: str) -> RefusedError:
    return RefusedError(
        "bad_video", f"The video is damaged or incomplete: {what}.", "Export it again, or choose another one."
    )


def _too_large(width: int, height: int) -> RefusedError:
    return RefusedError("video_too_large", f"The pictures of the video are too large: {width} x {height} pixels.",
                        "Convert it to a smaller one, such as MP4 with 1080 lines.")  # fmt: skip


def _too_long(limits: VideoLimits) -> RefusedError:
    allowed = f"{limits.seconds / 60:.0f} minutes and {limits.frames:,} frames are allowed"
    return RefusedError("video_too_long", f"The video is too long: {allowed}.", "Cut out the part that you need.")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
