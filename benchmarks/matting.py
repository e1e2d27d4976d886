# SPDX-License-Identifier: GPL-3.0-or-later
"""How well the subject of a video is cut out without a matting model, against a truth that is known.

    python -m benchmarks.matting [--sheet FILE.png] [--out FILE.json]

The fox of the tests walks and turns (12 of its views, enlarged threefold) across backgrounds of growing difficulty. IoU
is that of the outlines at alpha 1/2, the error of alpha is the mean over the picture and over the band where it is
neither 0 nor 1, that of the color is over the true subject (premultiplied, 0..255). "warned" is whether the program
said something about what it could not be sure of.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from backend.progress import UserError
from backend.video.matting import matte
from backend.video.reading import DecodedVideo
from benchmarks.report import Figure, write_report

FOX = Path(__file__).parent.parent / "tests" / "data" / "fox_orbit" / "moving"
SIDE, FRAMES = 288, 12
PLAIN = ("white", "gray", "gradient", "gradient, noise")


def fox(count: int = FRAMES, side: int = SIDE, step: float = 0.3) -> np.ndarray:  # [T, side, side, 4] float32
    """The fox cut out (premultiplied), turning by 15 degrees a frame and walking `step` of the picture to the right."""
    pictures = []
    for t in range(count):
        with Image.open(FOX / f"frame_{t:03d}.png") as image:
            pictures.append(np.asarray(image.convert("RGBa")))
    ever = np.max([picture[..., 3] for picture in pictures], axis=0) > 0
    rows, columns = np.flatnonzero(ever.any(axis=1)), np.flatnonzero(ever.any(axis=0))
    scale = 0.6 * side / max(len(rows), len(columns))
    frames = []
    for t, picture in enumerate(pictures):
        cut = Image.fromarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], "RGBa")
        size = round(cut.width * scale), round(cut.height * scale)
        large = np.asarray(cut.resize(size, Image.Resampling.BICUBIC), np.float32) / 255
        large[..., :3] = np.minimum(large[..., :3], large[..., 3:])
        frame = np.zeros((side, side, 4), np.float32)
        left = round((side - size[0]) / 2 + step * side * (t / max(count - 1, 1) - 0.5))
        top = (side - size[1]) // 2
        frame[top : top + size[1], left : left + size[0]] = large
        frames.append(frame)
    return np.stack(frames)


def backgrounds(count: int = FRAMES, side: int = SIDE) -> dict[str, np.ndarray]:  # each [T, side, side, 3] 0..1
    """What the subject walks before, by name."""
    generator = np.random.default_rng(1)
    y, x = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")

    def still(picture: np.ndarray) -> np.ndarray:
        return np.repeat(np.broadcast_to(picture, (side, side, 3))[None], count, axis=0).astype(np.float32)

    def texture(scale: float, seed: int, size: int = side) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=(size, size, 3))
        smooth = ndimage.gaussian_filter(noise, (scale, scale, 0), mode="wrap")
        return smooth / smooth.std()

    gradient = np.stack([0.35 + 0.4 * y, 0.55 + 0.25 * x, 0.75 - 0.2 * y * x], axis=-1)
    grain = generator.normal(scale=0.03, size=(count, side, side, 3))
    garden = np.array([0.3, 0.5, 0.65]) + texture(6, 2) * [0.08, 0.08, 0.06]
    wide = np.array([0.3, 0.5, 0.65]) + texture(6, 2) * [0.08, 0.08, 0.06]
    moving = np.stack([np.roll(wide, 7 * t, axis=1) for t in range(count)])
    autumn = np.array([0.62, 0.4, 0.22]) + texture(5, 3) * [0.14, 0.1, 0.08]
    return {
        "white": still(np.ones(3)),
        "gray": still(np.full(3, 0.5)),
        "gradient": still(gradient),
        "gradient, noise": still(gradient) + grain,
        "texture, still": still(garden),
        "texture, moving": moving,
        "fox-colored, plain": still(np.array([0.75, 0.42, 0.18])),
        "fox-colored texture, still": still(autumn),
    }


def video_of(subject: np.ndarray, background: np.ndarray) -> DecodedVideo:
    """The subject before the background, with 8 bits, as decoded."""
    rgb = subject[..., :3] + (1 - subject[..., 3:]) * background.clip(0, 1)
    frames = np.concatenate([np.rint(255 * rgb.clip(0, 1)), np.full_like(rgb[..., :1], 255)], axis=-1).astype(np.uint8)
    return DecodedVideo(frames, np.arange(len(frames)) / 12, {}, [])


def scores(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """IoU and errors of cut-out frames, both [T, H, W, 4] premultiplied."""
    a, b = found[..., 3], truth[..., 3]
    band = np.stack([ndimage.binary_dilation((m > 0.02) & (m < 0.98), iterations=2) for m in b])
    inner = b > 0.02
    return {
        "IoU": float(((a > 0.5) & (b > 0.5)).sum() / ((a > 0.5) | (b > 0.5)).sum()),
        "alpha MAE": float(np.abs(a - b).mean()),
        "alpha MAE, band": float(np.abs(a - b)[band].mean()),
        "color error": float(255 * np.abs(found[..., :3] - truth[..., :3])[inner].mean()),
    }


def measure(name: str, truth: np.ndarray, background: np.ndarray) -> tuple[dict, np.ndarray | None]:
    """One row of the table, and the cut-out."""
    empty = dict.fromkeys(scores(truth, truth))
    try:
        cut = matte(video_of(truth, background), "background")
    except UserError as error:
        return {"background": name, "method": f"refused: {error.code}", **empty, "warned": "yes"}, None
    found = np.stack([cut.cut_out(t) for t in range(len(truth))])
    row = {"background": name, "method": cut.method, **scores(found, truth), "warned": "yes" if cut.notes[1:] else "no"}
    return row, found


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all figures are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matting", description=__doc__.splitlines()[0])
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="one row per background, on magenta")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    truth = fox()
    measured = {name: measure(name, truth, picture) for name, picture in backgrounds().items()}
    if options.sheet:
        save_sheet(options.sheet, truth, backgrounds(), {name: found for name, (_, found) in measured.items()})
    rows = [row for row, _ in measured.values()]
    plain = [row for row in rows if row["background"] in PLAIN]
    worst_iou = min(row["IoU"] or 0 for row in plain)
    worst_alpha = max(row["alpha MAE, band"] or 1 for row in plain)
    silent = sum((row["IoU"] or 1) < 0.9 and row["warned"] == "no" for row in rows)
    figures = [
        Figure("least IoU before plain backgrounds", worst_iou, "", at_least=0.95),
        Figure("greatest alpha error in the band there", worst_alpha, "", at_most=0.06),
        Figure("IoU below 0.9 and nothing said", silent, "cases", at_most=0),
    ]
    write_report(f"Cutting out without a model, {FRAMES} frames of {SIDE} pixels", rows, figures, options.out)
    return 0 if all(figure.met for figure in figures) else 1


def save_sheet(path: Path, truth: np.ndarray, behind: dict, found: dict) -> None:
    """Video and cut-out side by side, at the start, in the middle and at the end."""
    lines = []
    for name, picture in behind.items():
        tiles = []
        for t in (0, len(truth) // 2, len(truth) - 1):
            tiles.append(video_of(truth, picture).frames[t, ..., :3])
            cut = np.zeros_like(truth[t]) if found[name] is None else found[name][t]
            tiles.append(np.rint(255 * (cut[..., :3] + (1 - cut[..., 3:]) * [1, 0, 1])).astype(np.uint8))
        lines.append(np.concatenate(tiles, axis=1))
    sheet = Image.fromarray(np.concatenate(lines))
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.BOX).save(path)


if __name__ == "__main__":
    raise SystemExit(main())
