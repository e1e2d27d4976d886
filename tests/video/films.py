# SPDX-License-Identifier: GPL-3.0-or-later
"""Small videos made for tests: a square that moves to the right, two pixels a frame."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from backend.progress import Run

SIZE = (96, 64)  # width, height
SQUARE, GROUND = (220, 60, 40), (40, 90, 160)


def run_in(folder: Path, **options) -> Run:
    """A run whose stages are those of the intake."""
    from backend.video.intake import STAGE_SHARES

    run = Run(folder, **options)
    run.plan(STAGE_SHARES)
    return run


def picture(index: int, size: tuple[int, int] = SIZE, alpha: bool = False) -> np.ndarray:  # [H, W, 4] uint8
    """Frame `index`."""
    width, height = size
    frame = np.zeros((height, width, 4), np.uint8)
    frame[..., :3], frame[..., 3] = GROUND, 0 if alpha else 255
    left = 8 + 2 * index
    frame[height // 3 : 2 * height // 3, left : left + height // 3] = (*SQUARE, 255)
    return frame


def square_left(frame: np.ndarray, size: tuple[int, int] = SIZE) -> int:
    """Which `index` of `picture` a frame shows."""
    red = frame[frame.shape[0] // 2, :, 0].astype(int) - frame[frame.shape[0] // 2, :, 2] > 60
    return round((int(np.flatnonzero(red)[0]) - 8) / 2)


def write_video(
    path: Path, codec: str = "libx264", pixels: str = "yuv420p", count: int = 24, *, stamps: list[int] | None = None,
    rate: int = 24, size: tuple[int, int] = SIZE, frame=picture, alpha: bool = False, prepare=None, options=None,
    matrix=None, codec_options=None,
) -> Path:  # fmt: skip
    """Encode `count` frames at `stamps` (1/`rate` s); `prepare(stream, source, out)` gives what is encoded."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, rate)
        if codec == "libx264":
            stream.options = {"crf": "10", "preset": "veryfast"}
        if codec == "libvpx":
            stream.options = {"auto-alt-ref": "0", "crf": "10", "b": "2M"}  # alpha needs the former
        stream.options = {**stream.options, **(codec_options or {})}
        for index in range(count):
            source = av.VideoFrame.from_ndarray(frame(index, size, alpha), format="rgba")
            out = source.reformat(format=pixels, dst_colorspace=matrix)
            out.pts, out.time_base = (stamps[index] if stamps else index), Fraction(1, rate)
            if prepare:
                out = prepare(stream, source, out)
                out.pts, out.time_base = (stamps[index] if stamps else index), Fraction(1, rate)
            container.mux(stream.encode(out))
        container.mux(stream.encode())
    return path


def write_gif(path: Path, count: int = 24, rate: int = 20) -> Path:
    """A GIF with exactly the colors of `picture`."""
    frames = [Image.fromarray(picture(index)).convert("RGB").quantize(8) for index in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // rate, loop=0)
    return path


def write_pictures(folder: Path, count: int = 24, ending: str = "png", start: int = 1) -> Path:
    """A folder of pictures, numbered without leading zeros."""
    folder.mkdir()
    for index in range(count):
        image = Image.fromarray(picture(index))
        (image.convert("RGB") if ending == "jpg" else image).save(folder / f"shot_{start + index}.{ending}")
    return folder
