# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a video by way of a limited process of its own, which is ended when the work is cancelled or takes too long."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from backend.interpreter import own_process
from backend.progress import Run, UserError
from backend.video.decoder import ANSWER_NAME, FRAMES_NAME, Question
from blender_addon.contract.video import LIMITS, MAX_VIDEO_FRAMES, VideoLimits, evenly_spaced

LOOK_SECONDS = 0.05  # between two looks at the process
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Span:
    """Which part of a video is meant; both ends belong to it. `end` None: to the last frame."""

    start: float = 0.0
    end: float | None = None
    unit: str = "seconds"  # since the first frame; or "frames", from 0 on


WHOLE = Span()


@dataclass(frozen=True)
class DecodedVideo:
    """Frames of a video, upright, with square pixels."""

    frames: np.ndarray  # [T, H, W, 4] uint8 sRGB, straight alpha
    times: np.ndarray  # [T] float64, seconds since the video's first frame; rising, equal where a frame repeats
    facts: dict  # of the file: type, codec, pixel_format, width, height, frames, seconds
    notes: list[str]  # sentences about what was wrong and what was done about it

    @property
    def has_alpha(self) -> bool:
        """Whether it is cut out already: a part of every frame is clear, and a part is not."""
        alpha = self.frames[..., 3]
        clear, solid = (alpha < 64).mean(axis=(1, 2)), (alpha > 192).mean(axis=(1, 2))
        return bool((clear > 0.005).all() and solid.max() > 0.001)


def picture_files(folder: Path) -> list[Path]:
    """The PNG and JPEG pictures of a folder, in the order of the numbers in their names.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_ENDINGS and path.is_file()]
    except OSError as error:
        raise UserError("video_missing", f"The folder {folder.name} cannot be read.", "Choose it again.") from error
    if not found:
        raise UserError("bad_video", f"The folder {folder.name} holds no PNG or JPEG pictures.", "Choose another one.")
    return sorted(found, key=lambda path: _natural(path.name))


def pictures_within(files: Sequence[Path], span: Span, fps: float) -> tuple[list[Path], float]:
    """At most MAX_VIDEO_FRAMES of the pictures of a span, evenly, and the rate at which these follow each other.

    fps: of all pictures.

    Raises:
        UserError: the span holds fewer than two.
    """
    times = np.arange(len(files)) / fps
    end = times[-1] if span.end is None else span.end
    inside = np.flatnonzero((times >= span.start - 1e-6) & (times <= end + 1e-6))
    if len(inside) < 2:
        raise UserError(
            "too_few_frames",
            f"The chosen range holds {len(inside)} of the {len(files)} pictures, and so no motion.",
            "Choose a longer range or another folder.",
        )
    steps = inside[evenly_spaced(inside, min(len(inside), MAX_VIDEO_FRAMES))]
    return [files[step] for step in steps], float(fps * (len(steps) - 1) / (steps[-1] - steps[0]))


def read_video(
    source: Path | Sequence[Path],
    count: int,
    run: Run,
    *,
    span: Span = WHOLE,
    fps: float = 24.0,
    longest: int = 1024,
    limits: VideoLimits = LIMITS,
    memory: int = 4 << 30,
    seconds: int = 120,
) -> DecodedVideo:
    """`count` frames (2 to MAX_VIDEO_FRAMES), evenly over the span by their times.

    Args:
        source: a video file (MP4, MOV, WebM, MKV, GIF), a folder of PNG or JPEG pictures, or those pictures in order.
        count: frames wanted; where the span holds fewer some repeat, and a note says so.
        run: its `report` is called all the time, so that cancelling ends the process; what is decoded lies in its
            folder meanwhile.
        span: the part of the video.
        fps: of pictures, which carry no times.
        longest: the frames come out with at most so many pixels a side.
        limits: see VideoLimits.
        memory: bytes that the process may take.
        seconds: wall-clock and processor time that it may take.

    Raises:
        UserError: the video cannot be used; nothing of it is kept.
        JobCancelled: by `run`.
    """
    if not 2 <= count <= MAX_VIDEO_FRAMES:
        raise ValueError(f"2 to {MAX_VIDEO_FRAMES} frames can be taken from a video")
    files = [source] if isinstance(source, Path) else list(source)
    if not files:
        raise UserError("bad_video", "There are no pictures.", "Choose a video or pictures.")
    if files[0].is_dir():
        files = picture_files(files[0])
    run.folder.mkdir(parents=True, exist_ok=True)
    # Among the checkpoints, which go with the job: where this process is killed nothing of it stays behind.
    with tempfile.TemporaryDirectory(prefix="video-", dir=run.folder) as folder:
        question = Question(
            files=[str(path.absolute()) for path in files],
            folder=folder,
            count=count,
            start=span.start,
            end=span.end,
            unit=span.unit,
            fps=fps,
            longest=longest,
            limits=limits,
            memory=memory,
            cpu_seconds=seconds + 1,
            wall_seconds=seconds + 10,
        )
        _run_decoder(question, Path(folder), run, seconds)
        try:
            answer = json.loads((Path(folder) / ANSWER_NAME).read_text("utf-8"))
        except (OSError, ValueError) as error:
            if shutil.disk_usage(folder).free < count * longest**2 * 4:  # most that the frames take
                raise UserError(
                    "disk_full", f"There is too little free space on the disk of {run.folder}.",
                    "Free some space, then try again.",
                ) from error  # fmt: skip
            raise UserError(
                "bad_video", "The video could not be decoded: the decoder ended without an answer.",
                "The file is damaged or needs too much memory. Convert it to MP4 and choose that.",
            ) from error  # fmt: skip
        if error := answer.get("error"):
            raise UserError(error["code"], error["message"], error["hint"])
        frames = np.load(Path(folder) / FRAMES_NAME, allow_pickle=False)
    video = DecodedVideo(frames, np.array(answer["times"]), answer["facts"], answer["notes"])
    for sentence in video.notes:
        run.note(sentence)
    return video


def _run_decoder(question: Question, folder: Path, run: Run, seconds: float) -> None:
    """Start the process and see it end; raises what `read_video` raises."""
    arguments = folder / "question.json"
    arguments.write_text(json.dumps(asdict(question)), encoding="utf-8")  # as an argument 36,000 paths were too long
    options: dict = {}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NO_WINDOW}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command, environment = own_process("backend.video.decoder", str(arguments), **threads)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # FFmpeg's words about a stranger's file
        cwd=folder,
        env=environment,
        **options,
    )
    start = time.monotonic()
    try:
        while process.poll() is None:
            spent = time.monotonic() - start
            run.report(int(min(spent, seconds) * 10), int(seconds * 10))
            if spent > seconds:
                raise UserError(
                    "video_too_slow", f"Decoding the video took longer than {seconds:.0f} s.",
                    "Cut it shorter, or convert it to MP4 with 1080 lines.",
                )  # fmt: skip
            if _memory_of(process.pid) > question.memory:  # where the system does not limit it
                raise UserError(
                    "video_too_large", "The video takes more memory than is allowed.",
                    "Convert it to a smaller one, such as MP4 with 1080 lines.",
                )  # fmt: skip
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _memory_of(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:  # just gone
        return 0


def _natural(name: str) -> list:
    """A key that sorts frame_2 before frame_10."""
    import re

    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
