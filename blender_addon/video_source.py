# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos that somebody has picked: a movie clip, a strip of the sequencer, or a file, as the files and range to send.

Blender counts a movie's frames from 0 at the file's own rate; requests count seconds. Image sequences are sent picture
by picture, at most as many as a request takes. Pictures of other kinds than PNG and JPEG are converted by Blender.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from .contract.requests import BOUNDS, VIDEO_LIMITS
from .contract.video import CONTAINER_TYPES, HEAD_BYTES, PICTURE_TYPES, evenly_spaced, media_type
from .reference_image import write_image
from .subject import CaptureError

CHUNK_BYTES = 8 << 20  # copied in one step; a few milliseconds
LARGEST = 1024  # pixels a side of a converted picture; the backend looks at no more
NUMBER = re.compile(r"(\d+)(?=\D*$)")  # the last number in a file's name


@dataclass(frozen=True)
class VideoSource:
    """What is to be sent: one file and a range of it, or pictures."""

    name: str
    video: Path | None = None
    start: float = 0.0  # seconds since the video's first frame
    end: float | None = None  # inclusive; None: to its end
    pictures: tuple[Path, ...] = ()
    pictures_fps: float = 24.0


@dataclass(frozen=True)
class PackedVideo:
    """A source whose files lie in an outbox."""

    video: Path | None
    pictures: tuple[Path, ...]
    pictures_fps: float
    start: float
    end: float | None

    @property
    def paths(self) -> list[Path]:
        """The files, each once."""
        return [self.video] if self.video else list(dict.fromkeys(self.pictures))

    def inputs(self, hashes: dict[Path, str]) -> dict:
        """The arguments of `requests.video_request` that name the files, by their sha256."""
        if self.video:
            return {"video": hashes[self.video], "start": self.start, "end": self.end}
        return {"pictures": [hashes[path] for path in self.pictures], "pictures_fps": self.pictures_fps}


def from_movie_clip(clip: bpy.types.MovieClip | None, scene: bpy.types.Scene) -> VideoSource:
    """All of a movie clip, a movie or an image sequence; a sequence without a rate has the scene's.

    Raises:
        CaptureError: there is none, its file is gone, or it is of a kind that the backend does not read.
    """
    if clip is None:
        raise CaptureError("There is no movie clip. Choose one.")
    path = _absolute(clip.filepath, clip)
    if clip.source == "MOVIE":
        return _checked(VideoSource(clip.name, path))
    first = _sequence(path)
    offset = max(clip.frame_offset, 0)
    pictures = first[offset : offset + clip.frame_duration] if clip.frame_duration > 1 else first[offset:]
    return _checked(VideoSource(clip.name, pictures=tuple(pictures), pictures_fps=_rate(clip.fps, scene)))


def from_strip(strip: bpy.types.Strip | None, scene: bpy.types.Scene) -> VideoSource:
    """The part of a movie or image strip that it shows, without its effects.

    Raises:
        CaptureError: it is no such strip, its speed is changed, or its files cannot be sent.
    """
    if strip is None or strip.type not in ("MOVIE", "IMAGE"):
        raise CaptureError("The strip is neither a movie nor images. Select one that is.")
    if len(strip.retiming_keys) or strip.use_reverse_frames:
        raise CaptureError(f"The strip {strip.name} plays at another speed or backwards. Take that away first.")
    # The content begins `frame_offset_start` before the strip does; what lies before frame 0 is the first frame again.
    first = strip.animation_offset_start + max(round(strip.frame_offset_start), 0)
    count = (
        strip.frame_final_duration - max(-round(strip.frame_offset_start), 0) - max(-round(strip.frame_offset_end), 0)
    )
    if strip.type == "IMAGE":
        folder = _absolute(strip.directory, scene)
        names = [element.filename for element in strip.elements][first : first + count]
        pictures = tuple(folder / name for name in names)
        return _checked(VideoSource(strip.name, pictures=pictures, pictures_fps=_rate(0.0, scene)))
    fps = _rate(strip.fps, scene)
    video = VideoSource(strip.name, _absolute(strip.filepath, scene), first / fps, (first + count - 1) / fps)
    return _checked(video)


def from_path(path: str | Path, scene: bpy.types.Scene, frames: tuple[int, int] | None = None) -> VideoSource:
    """A video file, a folder of pictures, or the image sequence to which a picture belongs.

    `frames` are the first and the last one, from 0 on: of a video at the scene's rate.

    Raises:
        CaptureError: it is gone, or of a kind that the backend does not read.
    """
    path = _absolute(str(path), scene)
    fps = _rate(0.0, scene)
    if frames is not None and not 0 <= frames[0] < frames[1]:
        raise CaptureError("The range holds no motion. Choose an end after the start.")
    if not path.is_dir() and _kind(path) not in PICTURE_TYPES and path.suffix.lower() not in bpy.path.extensions_image:
        start, end = (0.0, None) if frames is None else (frames[0] / fps, frames[1] / fps)
        return _checked(VideoSource(path.stem, path, start, end))
    pictures = _folder(path) if path.is_dir() else _sequence(path)
    if frames is not None:
        pictures = pictures[frames[0] : frames[1] + 1]
    return _checked(VideoSource(path.stem, pictures=tuple(pictures), pictures_fps=fps))


def pack_steps(source: VideoSource, folder: Path) -> Generator[tuple[int, int], None, PackedVideo]:
    """Bring the files of a source into `folder`, a little at each step; yields how much is done, of how much.

    Raises:
        CaptureError: a file is gone, or a picture cannot be read.
        OSError: `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if source.video is not None:
        target = folder / "video"  # its kind is told by its content, and its name is nobody's business
        yield from _copy_steps(source.video, target, VIDEO_LIMITS.file_bytes)
        return PackedVideo(target, (), 0.0, source.start, source.end)
    chosen, fps = list(source.pictures), source.pictures_fps
    if len(chosen) > VIDEO_LIMITS.pictures:
        steps = evenly_spaced(np.arange(len(chosen)), VIDEO_LIMITS.pictures)
        fps *= (len(steps) - 1) / (len(chosen) - 1)  # the same time for fewer pictures
        chosen = [chosen[step] for step in steps]
    written = []
    for index, path in enumerate(chosen):
        kind = _kind(path)
        target = folder / f"picture_{index:03d}.{kind or 'png'}"
        if kind in PICTURE_TYPES:
            for _ in _copy_steps(path, target, VIDEO_LIMITS.file_bytes):
                pass
        else:
            _convert(path, target)
        written.append(target)
        yield index + 1, len(chosen)
    return PackedVideo(None, tuple(written), min(max(fps, BOUNDS["fps"].minimum), BOUNDS["fps"].maximum), 0.0, None)


def _checked(source: VideoSource) -> VideoSource:
    """The source, if it can be sent as far as that is known without reading it."""
    if source.video is not None:
        kind = _kind(source.video)
        if kind not in CONTAINER_TYPES:
            raise CaptureError(f"{source.video.name} is no MP4, MOV, WebM, MKV or GIF file. Convert it to MP4.")
        if source.video.stat().st_size > VIDEO_LIMITS.file_bytes:
            raise CaptureError(
                f"{source.video.name} is larger than {VIDEO_LIMITS.file_bytes >> 20} MB. Cut it shorter."
            )
        if source.end is not None and source.end <= source.start:
            raise CaptureError(f"{source.name} shows a single frame, and so no motion. Choose a longer part.")
        if (source.end or source.start) > VIDEO_LIMITS.seconds:
            raise CaptureError(f"{source.name} is longer than {VIDEO_LIMITS.seconds / 60:.0f} minutes. Cut it shorter.")
        return source
    if len(source.pictures) < 2:
        raise CaptureError(f"{source.name} holds fewer than two pictures, and so no motion. Choose an image sequence.")
    if missing := next((path for path in source.pictures if not path.is_file()), None):
        raise CaptureError(f"The picture {missing.name} is gone. Find it again, or choose another sequence.")
    return source


def _kind(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return media_type(file.read(HEAD_BYTES))
    except OSError as error:
        raise CaptureError(f"{path.name} cannot be opened: it is gone or may not be read. Find it again.") from error


def _absolute(path: str, owner: bpy.types.ID) -> Path:
    return Path(bpy.path.abspath(path, library=owner.library))


def _rate(fps: float, scene: bpy.types.Scene) -> float:
    """Frames per second; the scene's where there is none."""
    if not fps > 0:
        fps = scene.render.fps / scene.render.fps_base
    return min(max(fps, BOUNDS["fps"].minimum), BOUNDS["fps"].maximum)


def _sequence(path: Path) -> list[Path]:
    """The pictures that follow `path` by number, itself first, up to the first gap."""
    match = NUMBER.search(path.name)
    if match is None:
        return [path]
    before, after = path.name[: match.start()], path.name[match.end() :]
    number, digits = int(match[1]), len(match[1])
    found = []
    while (candidate := path.with_name(f"{before}{number:0{digits}d}{after}")).is_file():
        found.append(candidate)
        number += 1
    return found or [path]


def _folder(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their numbers."""
    pictures = [
        path for path in folder.iterdir() if path.suffix.lower() in bpy.path.extensions_image and path.is_file()
    ]

    def key(path: Path) -> tuple[str, int, str]:
        match = NUMBER.search(path.stem)
        return (path.stem[: match.start()], int(match[1]), path.name) if match else (path.stem, -1, path.name)

    return sorted(pictures, key=key)


def _copy_steps(path: Path, target: Path, limit: int) -> Generator[tuple[int, int], None, None]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only its opening is the source's fault
    except OSError as error:
        raise CaptureError(f"{path.name} cannot be opened: it is gone or may not be read. Find it again.") from error
    with file, open(target, "wb") as out:
        total, done = max(path.stat().st_size, 1), 0
        while chunk := file.read(CHUNK_BYTES):
            done += len(chunk)
            if done > limit:
                raise CaptureError(f"{path.name} is larger than {limit >> 20} MB. Cut it shorter.")
            out.write(chunk)
            yield done, max(total, done)


def _convert(path: Path, target: Path) -> None:
    """A picture of any kind that Blender reads, as a PNG in sRGB."""
    try:
        image = bpy.data.images.load(str(path), check_existing=False)
    except RuntimeError as error:
        raise CaptureError(f"The picture {path.name} cannot be read. Choose another sequence.") from error
    try:
        write_image(image.name_full, target, LARGEST)
    finally:
        bpy.data.images.remove(image)
