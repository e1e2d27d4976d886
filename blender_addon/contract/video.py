# SPDX-License-Identifier: GPL-3.0-or-later
"""Videos as both sides understand them: what a file is by its bytes, its limits, and which frames are taken."""

from dataclasses import dataclass

import numpy as np

PICTURE_TYPES = ("png", "jpeg")
CONTAINER_TYPES = ("mp4", "webm", "gif")  # mp4 is also QuickTime's .mov, webm also Matroska's .mkv
HEAD_BYTES = 64  # of a file, enough for `media_type`


@dataclass(frozen=True)
class VideoLimits:
    """What a video may have at most; more is refused with a sentence, before and again while it is read."""

    file_bytes: int = 512 << 20  # of one file; the most that the backend stores as one blob
    seconds: float = 600.0
    frames: int = 36_000  # in the file
    pixels: int = 8192 * 4320  # of one frame
    pictures: int = 64  # of an image sequence, as it is sent


LIMITS = VideoLimits()
MAX_VIDEO_FRAMES = LIMITS.pictures


def media_type(head: bytes) -> str | None:
    """One of CONTAINER_TYPES or PICTURE_TYPES by a file's first HEAD_BYTES; None: something else.

    Names and endings say nothing: they are the sender's.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"\x1a\x45\xdf\xa3"):  # EBML
        return "webm"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):  # old QuickTime files have no ftyp
        return "mp4"
    return None


def evenly_spaced(times: np.ndarray, count: int) -> np.ndarray:  # [count] int64, never falling
    """Which of the frames at `times` [N] (rising, any unit) come nearest to `count` even steps over their whole span.

    The first and the last are always among them. No frame is taken twice, unless there are fewer than `count`: then
    each is taken, and some repeat.

    Raises:
        ValueError: there are no frames, or fewer than two are wanted.
    """
    times = np.asarray(times, np.float64)
    if count < 2 or not len(times):
        raise ValueError("two frames or more can be spaced evenly")
    wanted = np.linspace(times[0], times[-1], count)
    after = np.searchsorted(times, wanted).clip(1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    chosen = np.where(wanted - times[before] <= times[after] - wanted, before, after)
    if len(times) < count:
        return np.sort(np.concatenate([np.arange(len(times)), _repeated(chosen, count - len(times))]))
    steps = np.arange(count)
    chosen = np.maximum.accumulate(chosen - steps) + steps  # each at least one after the former ...
    return np.minimum.accumulate((np.minimum(chosen, len(times) - count + steps) - steps)[::-1])[::-1] + steps


def _repeated(chosen: np.ndarray, count: int) -> np.ndarray:
    """`count` of the frames that `chosen` takes again, those spread evenly."""
    again = chosen[1:][np.diff(chosen) == 0]
    return again[np.linspace(0, len(again) - 1, count).round().astype(int)]
