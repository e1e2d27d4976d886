# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos that somebody has picked: a movie clip, a strip of the sequencer, or a file, as the files and range to send.

Blender counts a movie's frames from 0 at the file's own rate; requests count seconds. Image sequences are sent picture
by picture, at most as many as a request takes. Pictures of other kinds than PNG and JPEG are converted by Blender.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np

from .contract.color import linear_to_srgb
from .contract.requests import BOUNDS, VIDEO_LIMITS
from .contract.video import CONTAINER_TYPES, HEAD_BYTES, PICTURE_TYPES, evenly_spaced, media_type
from .reference_image import write_image
from .subject import CaptureError

CHUNK_BYTES = 8 << 20  # copied in one step; a few milliseconds
LARGEST = 1024  # pixels a side of a converted picture; the backend looks at no more
NUMBER = re.compile(r"(\d+)(?=\D*$)")  # the last number in a file's name


@dataclass(frozen=True)
class VideoSource:
    """What is to be sent: a part of a file, or pictures."""

    name: str
    count: int  # frames
    fps: float  # at which they follow each other in the file; of pictures, those of the scene
    video: Path | None = None
    first: int = 0  # the frame of the file that comes first, from 0 on
    to_end: bool = False  # the last frame is the file's own, however many it really has
    pictures: tuple[Path, ...] = ()
    speed: float = 1.0  # how many times as fast as in the file it plays
    scene_frame: float | None = None  # at which the scene itself begins to show it; None: nowhere
    scene_step: float = 1.0  # frames of the scene for each one of it

    @property
    def seconds(self) -> float:
        """How long it plays, from the first frame to the last."""
        return (self.count - 1) / self.fps / self.speed

    @property
    def start(self) -> float:
        """Of the range, in seconds since the file's first frame."""
        return self.first / self.fps

    @property
    def end(self) -> float | None:
        """The same of its last frame; None: the file's own."""
        return None if self.to_end else (self.first + self.count - 1) / self.fps

    def part(self, first: int, last: int) -> "VideoSource":
        """Its frames `first` to `last`, counted from 0 on; what lies beyond its end is left out.

        Raises:
            CaptureError: that is no motion.
        """
        if first >= self.count - 1:
            raise CaptureError(f"{self.name} ends at frame {self.count}. Choose an earlier start.")
        first, last = max(first, 0), min(last, self.count - 1)
        if last <= first:
            raise CaptureError("The range holds no motion. Choose an end after the start.")
        shown = None if self.scene_frame is None else self.scene_frame + first * self.scene_step
        return replace(
            self,
            count=last - first + 1,
            first=self.first + first,
            to_end=self.to_end and last == self.count - 1,
            pictures=self.pictures[first : last + 1],
            scene_frame=shown,
        )


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


def nothing_chosen(scene: bpy.types.Scene) -> str:
    """What to choose, where the panel of a scene names no video at all; empty where it does. Reads nothing."""
    options = scene.kinesplat
    if options.video_source == "FILE":
        return "" if options.video_path else "Choose a video file, a GIF or a sequence of pictures"
    if options.video_source == "CLIP":
        return "" if options.video_clip else "Choose a movie clip"
    return "" if active_strip(scene) else "Select a movie or image strip in the sequencer"


def chosen_video(scene: bpy.types.Scene) -> VideoSource:
    """All of the video that the panel of a scene names.

    Raises:
        CaptureError: there is none, or it cannot be sent.
    """
    options = scene.kinesplat
    if problem := nothing_chosen(scene):
        raise CaptureError(f"There is no video. {problem}.")
    if options.video_source == "CLIP":
        return from_movie_clip(options.video_clip, scene)
    if options.video_source == "STRIP":
        return from_strip(active_strip(scene), sequencer_scene(scene))
    return from_path(options.video_path, scene)


def chosen_part(video: VideoSource, options: bpy.types.PropertyGroup) -> VideoSource:
    """The range of a video that the panel names. Raises CaptureError where that holds no motion."""
    return video if options.use_whole_video else video.part(options.video_start - 1, options.video_end - 1)


def sequencer_scene(scene: bpy.types.Scene) -> bpy.types.Scene:
    """The scene whose strips the sequencer shows beside a scene; up to Blender 4.5 it is the same one."""
    windows = bpy.data.window_managers[0].windows  # a timer's context has no workspace
    workspaces = [window.workspace for window in windows if window.scene == scene]
    return next(filter(None, (getattr(one, "sequencer_scene", None) for one in workspaces)), scene)


def active_strip(scene: bpy.types.Scene) -> bpy.types.Strip | None:
    """The active strip of the sequencer beside a scene."""
    editor = sequencer_scene(scene).sequence_editor
    return editor.active_strip if editor else None


def from_movie_clip(clip: bpy.types.MovieClip | None, scene: bpy.types.Scene) -> VideoSource:
    """All of a movie clip, a movie or an image sequence, as fast as the scene shows it: a frame in each of its own.

    Raises:
        CaptureError: there is none, its file is gone, or it is of a kind that the backend does not read.
    """
    if clip is None:
        raise CaptureError("There is no movie clip. Choose one.")
    path, name = _absolute(clip.filepath, clip), _title(clip.name)
    shown = {"scene_frame": float(clip.frame_start)}
    if clip.source == "MOVIE":
        count, fps = _read_movie(path)
        speed = _rate(scene) / fps
        return _checked(VideoSource(name, count, fps, video=path, to_end=True, speed=speed, **shown))
    first = _sequence(path)
    offset = max(clip.frame_offset, 0)
    pictures = first[offset : offset + clip.frame_duration] if clip.frame_duration > 1 else first[offset:]
    return _checked(VideoSource(name, len(pictures), _rate(scene), pictures=tuple(pictures), **shown))


def from_strip(strip: bpy.types.Strip | None, scene: bpy.types.Scene) -> VideoSource:
    """The part of a movie or image strip that it shows, without its effects, as fast as the strip plays it.

    Raises:
        CaptureError: it is no such strip, its speed is changed, or its files cannot be sent.
    """
    if strip is None:
        raise CaptureError("There is no active strip. Select a movie or image strip in the sequencer.")
    if strip.type not in ("MOVIE", "IMAGE"):
        raise CaptureError(f"The strip {strip.name} is neither a movie nor images. Select one that is.")
    if len(strip.retiming_keys) or strip.use_reverse_frames:
        raise CaptureError(f"The strip {strip.name} plays at another speed or backwards. Take that away first.")
    rate = _rate(scene)
    # The content begins `frame_offset_start` before the strip does; what lies before frame 0 is the first frame again.
    before, after = strip.frame_offset_start, strip.frame_offset_end
    skipped, cut = max(before, 0.0), max(before, 0.0) + max(after, 0.0)
    name, shown = _title(strip.name), {"scene_frame": strip.frame_final_start + max(-before, 0.0)}
    if strip.type == "IMAGE":
        first, folder = strip.animation_offset_start + round(skipped), _absolute(strip.directory, scene)
        names = [element.filename for element in strip.elements][first : first + strip.frame_duration - round(cut)]
        pictures = tuple(folder / name for name in names)
        return _checked(VideoSource(name, len(pictures), rate, pictures=pictures, **shown))
    path = _absolute(strip.filepath, scene)
    total, fps = _read_movie(path)
    content = total - strip.animation_offset_start - strip.animation_offset_end
    # A strip with "Adjust Playback Rate", which Python is not told of, counts in frames of the scene, others in those
    # of the movie.
    pace = content / strip.frame_duration if strip.frame_duration > 0 else 1.0
    pace = 1.0 if abs(pace * strip.frame_duration - strip.frame_duration) < 2 else pace
    first = strip.animation_offset_start + round(skipped * pace)
    count = min(round((strip.frame_duration - cut) * pace), total - first)
    video = VideoSource(
        name, count, fps, video=path, first=first, speed=pace * rate / fps, scene_step=1 / pace, **shown
    )  # fmt: skip
    return _checked(video, total)


def from_path(path: str | Path, scene: bpy.types.Scene) -> VideoSource:
    """All of a video file, of a folder of pictures, or of the image sequence to which a picture belongs.

    Raises:
        CaptureError: it is gone, or of a kind that the backend does not read.
    """
    path = _absolute(str(path), scene)
    if not path.is_dir() and _kind(path) not in PICTURE_TYPES and path.suffix.lower() not in bpy.path.extensions_image:
        return _checked(VideoSource(_title(path.name), *_read_movie(path), video=path, to_end=True))
    pictures = _folder(path) if path.is_dir() else _sequence(path)
    return _checked(VideoSource(_title(path.name), len(pictures), _rate(scene), pictures=tuple(pictures)))


def stored_fps(source: VideoSource, frames: int) -> float:
    """At which a clip of so many frames plays as long as the source does, within the contract's limits."""
    return min(max((frames - 1) / source.seconds, BOUNDS["fps"].minimum), BOUNDS["fps"].maximum)


def read_frame(source: VideoSource, index: int, largest: int) -> np.ndarray:  # [H, W, 4] float32 0..1, sRGB-coded
    """One frame of a source, counted from 0 on, at most `largest` pixels a side, first row on top, straight alpha.

    Blender seeks it in the file: that takes milliseconds, or half a second where a large video has few key frames.

    Raises:
        CaptureError: it cannot be read.
    """
    path = source.video or source.pictures[index]
    frame = source.first + index + 1 if source.video else 0
    image = None
    try:
        image = bpy.data.images.load(str(path), check_existing=False)
        if source.video:
            image.source = "MOVIE"  # whatever its name ends with
        width, height = image.size
        shrink = min(largest / max(width, height, 1), 1.0)
        image.scale(max(round(width * shrink), 1), max(round(height * shrink), 1), frame=frame)
        width, height = image.size
        pixels = np.empty(len(image.pixels), np.float32)
        image.pixels.foreach_get(pixels)
        pixels = pixels.reshape(height, width, -1)[::-1]
    except (RuntimeError, ValueError) as error:
        raise CaptureError(f"{path.name} cannot be read: it may be damaged. Choose another one.") from error
    finally:
        is_linear = image is not None and image.is_float
        if image is not None:
            bpy.data.images.remove(image)
    color, alpha = pixels[..., :3], pixels[..., 3:4]
    if pixels.shape[2] < 3:
        color, alpha = pixels[..., [0, 0, 0]], pixels[..., 1:2]
    if is_linear:
        color = linear_to_srgb(color)
    alpha = alpha if alpha.shape[2] else np.ones_like(color[..., :1])
    return np.nan_to_num(np.concatenate([color, alpha], axis=2)).clip(0, 1)


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
    chosen, fps = list(source.pictures), source.fps
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


def _checked(source: VideoSource, total: int | None = None) -> VideoSource:
    """The source, if it can be sent as far as that is known; `total` frames are in the file, else those of it."""
    if source.video is not None:
        if source.video.stat().st_size > VIDEO_LIMITS.file_bytes:
            raise CaptureError(
                f"{source.video.name} is larger than {VIDEO_LIMITS.file_bytes >> 20} MB. Cut it shorter."
            )
        if source.count < 2:
            raise CaptureError(f"{source.video.name} shows a single frame, and so no motion. Choose a longer one.")
        total = total or source.count
        if total / source.fps > VIDEO_LIMITS.seconds or total > VIDEO_LIMITS.frames:
            raise CaptureError(
                f"{source.video.name} is longer than {VIDEO_LIMITS.seconds / 60:.0f} minutes or "
                f"{VIDEO_LIMITS.frames:,} frames. Cut it shorter."
            )
        return source
    if len(source.pictures) < 2:
        raise CaptureError(f"{source.name} holds fewer than two pictures, and so no motion. Choose an image sequence.")
    if missing := next((path for path in source.pictures if not path.is_file()), None):
        raise CaptureError(f"The picture {missing.name} is gone. Find it again, or choose another sequence.")
    return source


def _read_movie(path: Path) -> tuple[int, float]:
    """Frames and frames per second of a video file."""
    if _kind(path) not in CONTAINER_TYPES:
        raise CaptureError(f"{path.name} is no MP4, MOV, WebM, MKV or GIF file. Convert it to MP4.")
    clip = None
    try:
        clip = bpy.data.movieclips.load(str(path), check_existing=False)
        count, fps = clip.frame_duration, clip.fps
    except RuntimeError:
        count, fps = 0, 0.0
    finally:
        if clip is not None:
            bpy.data.movieclips.remove(clip)
    if count < 1 or not fps > 0:
        raise CaptureError(
            f"{path.name} cannot be read: it holds no pictures, or is damaged. "
            "Choose another one, or convert it to MP4."
        )
    return count, fps


def _title(name: str) -> str:
    """A file's name without the ending, and of pictures without the number; any other name as it is."""
    path = Path(name)
    if path.suffix.lower() in bpy.path.extensions_image:
        return NUMBER.sub("", path.stem).rstrip(" ._-") or path.stem
    return path.stem if path.suffix.lower() in bpy.path.extensions_movie else name


def _kind(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return media_type(file.read(HEAD_BYTES))
    except OSError as error:
        raise CaptureError(f"{path.name} cannot be opened: it is gone or may not be read. Find it again.") from error


def _absolute(path: str, owner: bpy.types.ID) -> Path:
    return Path(bpy.path.abspath(path, library=owner.library))


def _rate(scene: bpy.types.Scene) -> float:
    """The scene's frames per second."""
    return min(max(scene.render.fps / scene.render.fps_base, BOUNDS["fps"].minimum), BOUNDS["fps"].maximum)


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
    try:
        files = list(folder.iterdir())
    except OSError as error:
        raise CaptureError(f"The folder {folder.name} may not be read. Choose another one.") from error
    pictures = [path for path in files if path.suffix.lower() in bpy.path.extensions_image and path.is_file()]

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
