# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several commands share."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from blender_addon.contract.requests import BOUNDS, CUTOUTS, REPRESENTATIONS

ORBIT_HELP = (
    "a moving orbit: frame_000.png ... with orbit.json, or multi_frame0.png ... as Diffusion4D's dataset has it"
)
STATIC_HELP = "the subject from all sides at time 0 (default: the static orbit of Diffusion4D's layout, where one is)"


def bounded(name: str) -> Callable[[str], float]:
    """A number within the contract's bounds, as argparse wants it."""
    bound = BOUNDS[name]
    whole = isinstance(bound.default, int)

    def parse(text: str) -> float:
        value = int(text) if whole else float(text)
        if not bound.minimum <= value <= bound.maximum:
            raise argparse.ArgumentTypeError(f"must lie between {bound.minimum} and {bound.maximum}")
        return value

    parse.__name__ = name
    return parse


def positive(text: str) -> int:
    """A whole number above 0, as argparse wants it."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def result_file(text: str) -> Path:
    """A file that can be written, as argparse wants it: to be told before the work, not after it."""
    path = result_place(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it, such as {path / 'clip.npz'}")
    return path


def result_place(text: str) -> Path:
    """A file or a folder that can be written, as argparse wants it."""
    path = Path(text)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {folder} is no folder of yours")
    return path


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """What a request of kind `video` is told beside its video; None where nothing is said."""
    video = parser.add_argument_group("the video")
    video.add_argument("--start", type=bounded("video_seconds"), metavar="S",
                       help="seconds from its first frame (default: 0)")  # fmt: skip
    video.add_argument("--end", type=bounded("video_seconds"), metavar="S",
                       help="the same of the last frame to be used")  # fmt: skip
    video.add_argument("--frames", type=bounded("video_frames"), metavar="N",
                       help="how many are taken, evenly; 8 (default) to 64")  # fmt: skip
    video.add_argument("--cutout", choices=CUTOUTS, help="how it is told from its background (default: auto)")
    video.add_argument("--representation", choices=REPRESENTATIONS,
                       help="what follows the video model: Gaussians (default, faster), or the radiance field of "
                            "4Diffusion")  # fmt: skip


def video_options(options: argparse.Namespace) -> dict:
    """Those that were said, as `requests.video_request` takes them; range and frames of a video file."""
    names = ("start", "end", "frames", "cutout", "representation")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def video_inputs(source: Path, start: float, end: float | None, fps: float | None, blob: Callable[[Path], str]) -> dict:
    """A video and its rate as `requests.video_request` takes them.

    Args:
        source: a video file, or a folder of pictures, of which as many are taken as a request may have, evenly.
        start, end: of the range, seconds.
        fps: of the clip, None being as fast as the video; of a folder that of its pictures, None being 24.
        blob: gives a file's sha256.

    Raises:
        UserError: the folder holds no pictures, or too few of them in the range.
    """
    from backend.video.reading import Span, picture_files, pictures_within

    if not source.is_dir():
        return {"video": blob(source), "start": start, "end": end, "fps": fps}
    rate = BOUNDS["fps"].default if fps is None else fps
    chosen, rate = pictures_within(picture_files(source), Span(start, end), rate)
    rate = min(max(rate, BOUNDS["fps"].minimum), BOUNDS["fps"].maximum)
    return {"pictures": [blob(path) for path in chosen], "pictures_fps": rate, "fps": None}
