# SPDX-License-Identifier: GPL-3.0-or-later
"""Contact sheets: what the figures cannot say. Rows are such as truth and generated; columns are frames."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8
SIDE = 128  # pixels of one picture, across
OVERVIEW = 2  # best, worst: so many of each
LABEL_WIDTH, TITLE_HEIGHT = 92, 26
INK, PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class SheetRow:
    """Pictures of one kind, in the order of time."""

    label: str
    pictures: np.ndarray | list[np.ndarray]  # [T, H, W, 3] uint8


def on_white(frames: np.ndarray) -> np.ndarray:  # [T, H, W, 4] uint8, straight alpha -> [T, H, W, 3] uint8
    """Frames as they are shown."""
    values = frames.astype(np.float32) / 255
    return ((values[..., :3] * values[..., 3:] + 1 - values[..., 3:]) * 255).round().astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # 2 x [T, H, W, 4] uint8 -> [T, H, W, 3] uint8
    """a - b on white, around middle grey: grey is right, light is missing, dark is too much."""
    return (127.5 + (on_white(a).astype(np.float32) - on_white(b)) / 2).round().astype(np.uint8)


def sheet(
    title: str, rows: list[SheetRow], heads: list[str] | None = None, side: int = SIDE, columns: int = COLUMNS
) -> Image.Image:
    """One block: a title, column heads (by default the frames' numbers), and rows of evenly chosen frames.

    `heads` are one per frame; pictures, all of one shape, are drawn `side` pixels wide, at most `columns` in a row.
    """
    count = min(len(row.pictures) for row in rows)
    chosen = np.linspace(0, count - 1, min(columns, count)).round().astype(int)
    high, wide = rows[0].pictures[0].shape[:2]
    tile = side, round(side * high / wide)
    smooth = Image.Resampling.NEAREST if wide <= side else Image.Resampling.LANCZOS  # small ones show their pixels
    size = LABEL_WIDTH + tile[0] * len(chosen), 2 * TITLE_HEIGHT + tile[1] * len(rows)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    draw.text((6, 4), title, INK, font)
    for column, frame in enumerate(chosen):
        x = LABEL_WIDTH + side * column
        head = heads[frame] if heads else f"frame {frame}"
        draw.text((x + side // 2, TITLE_HEIGHT + 12), head, INK, small, anchor="mm")
        for line, row in enumerate(rows):
            image = Image.fromarray(row.pictures[frame]).resize(tile, smooth)
            picture.paste(image, (x, 2 * TITLE_HEIGHT + tile[1] * line))
    for line, row in enumerate(rows):
        draw.text((6, 2 * TITLE_HEIGHT + tile[1] * line + tile[1] // 2), row.label, INK, small, anchor="lm")
    return picture


def stacked(sheets: list[Image.Image]) -> Image.Image:
    """Sheets one below the other."""
    picture = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), PAPER)
    top = 0
    for one in sheets:
        picture.paste(one, (0, top))
        top += one.height
    return picture


def overview(folder: Path, ranked: list[str], out: Path) -> None:
    """The sheets `folder`/NAME.png of the first and of the last clips of a ranking, one below the other."""
    sheets = []
    for name in [*ranked[:OVERVIEW], *ranked[max(len(ranked) - OVERVIEW, OVERVIEW) :]]:
        with Image.open(folder / f"{name}.png") as picture:
            sheets.append(picture.copy())
    stacked(sheets).save(out)
