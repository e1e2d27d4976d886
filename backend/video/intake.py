# SPDX-License-Identifier: GPL-3.0-or-later
"""From a video file to what a video diffusion pipeline starts from: few frames of one subject, cut out and framed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.progress import Run
from backend.video.framing import FOURDIFFUSION, Crop, Framing, crop_of, resampled
from backend.video.matting import matte
from backend.video.reading import WHOLE, Span, read_video

READING, CUTTING, FRAMING = "Reading the video", "Cutting out the subject", "Framing the subject"
STAGE_SHARES = {READING: 0.3, CUTTING: 0.5, FRAMING: 0.2}  # for `Run.plan`


@dataclass(frozen=True)
class VideoIntake:
    """What was made of a video."""

    frames: np.ndarray  # [T, S, S, 4] float32 0..1, sRGB-coded, color multiplied by alpha
    times: np.ndarray  # [T] float64, seconds since the video's first frame
    fps: float  # at which the frames play as fast as the video
    crop: Crop  # in pixels of the frames as decoded
    done: dict  # for the provenance: the file's facts, range, method, crop, framing, notes


def take_in(
    source: Path | Sequence[Path],
    run: Run,
    *,
    count: int = 8,
    span: Span = WHOLE,
    fps: float = 24.0,
    framing: Framing = FOURDIFFUSION,
    method: str = "auto",
) -> VideoIntake:
    """Read, choose, cut out and frame; the stages are those of STAGE_SHARES, which the caller has planned.

    Args:
        source: a video file, a folder of pictures, or pictures in order; see `read_video`.
        run: gets the progress, and the notes about what is doubtful.
        count: frames.
        span: the part of the video.
        fps: of pictures, which carry no times.
        framing: how the networks want to see the subject.
        method: one of `matting.METHODS`.

    Raises:
        UserError: the video cannot be read, or shows no subject that can be told from its background.
        JobCancelled: by `run`.
    """
    run.begin(READING)
    video = read_video(source, count, run, span=span, fps=fps)
    run.begin(CUTTING)
    ticks = iter(range(1 << 30))
    cut = matte(video, method, lambda: run.report(min(next(ticks), 4 * count), 4 * count))
    run.begin(FRAMING)
    height, width = video.frames.shape[1:3]
    crop, notes = crop_of(cut.masks, width, height, framing)
    frames = np.zeros((count, framing.size, framing.size, 4), np.float32)
    for t in range(count):
        frames[t] = resampled(cut.cut_out(t), crop, framing.size)
        run.report(t + 1, count)
    for sentence in (*cut.notes, *notes):
        run.note(sentence)
    seconds = float(video.times[-1] - video.times[0])
    played = (count - 1) / seconds if seconds > 0 else fps
    done = {
        "file": video.facts,
        "times": [round(float(time), 4) for time in video.times],
        "method": cut.method,
        "crop": [round(value, 2) for value in (crop.left, crop.top, crop.side)],
        "decoded_size": [width, height],
        "framing": {"distance": framing.distance, "fov": framing.fov, "size": framing.size},
        "notes": [*video.notes, *cut.notes, *notes],
    }
    return VideoIntake(frames, video.times, played, crop, done)
