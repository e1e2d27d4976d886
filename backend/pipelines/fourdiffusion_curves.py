# SPDX-License-Identifier: GPL-3.0-or-later
"""How 4Diffusion's losses go: kept, thinned for the provenance, told in words, and drawn under the renders."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from backend.pipelines.multi_view_video import VIEWS

CURVE_POINTS = 200  # of each loss in the provenance
SMOOTHED = 20  # such a part of the iterations is averaged over: each has other cameras and another diffusion time
SHOWN = {"sds": "distillation", "anchor": "anchor"}  # losses that people are shown, and what they read
PREVIEW_WIDTH, CURVE_HEIGHT = 512, 76  # pixels; the service shows no larger ones
INK, PAPER, LINES = (60, 60, 60), (246, 246, 246), {"sds": (200, 90, 20), "anchor": (30, 100, 180)}


@dataclass(frozen=True)
class Curves:
    """How the losses went, each with its weight; 0 where it had no part."""

    names: tuple[str, ...]
    values: np.ndarray  # [iterations, K] float32

    def thinned(self, points: int = CURVE_POINTS) -> dict[str, list[float]]:
        """Means over at most `points` equal parts of the iterations, and the iterations that these end at."""
        parts = [part for part in np.array_split(self.values, min(points, max(len(self.values), 1))) if len(part)]
        means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, len(self.names))
        ends = np.cumsum([len(part) for part in parts]).tolist()
        return {"iteration": ends} | {
            name: [float(f"{value:.4g}") for value in means[:, index]] for index, name in enumerate(self.names)
        }

    def smoothed(self, name: str, done: int) -> np.ndarray:  # [done]
        """One loss over the first `done` iterations, each with the mean of those just before it."""
        values = self.values[:done, self.names.index(name)].astype(np.float64)
        sums = np.concatenate([[0.0], values.cumsum()])
        ends = np.arange(1, done + 1)
        starts = np.maximum(ends - max(len(self.values) // SMOOTHED, 1), 0)
        return (sums[ends] - sums[starts]) / (ends - starts)

    def told(self, done: int) -> str:
        """Where the losses are after `done` iterations, at least 1: "distillation 0.123, anchor 4.5"."""
        return ", ".join(f"{label} {self.smoothed(name, done)[-1]:.3g}" for name, label in SHOWN.items())


def preview(pictures: Tensor, curves: Curves, done: int) -> np.ndarray:  # [H', PREVIEW_WIDTH, 3] uint8
    """First and last of the times of pictures [F' VIEWS, H, W, 4] from all sides, and both losses as small curves.

    pictures: premultiplied, time outer; done: iterations, at least 1.
    """
    shown = torch.stack([pictures[:VIEWS], pictures[-VIEWS:]])
    shown = (shown[..., :3] + 1 - shown[..., 3:]).clamp(0, 1)
    rows = shown.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    renders = Image.fromarray((rows * 255).round().byte().cpu().numpy())
    renders = renders.resize((PREVIEW_WIDTH, PREVIEW_WIDTH * renders.height // renders.width), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (PREVIEW_WIDTH, renders.height + CURVE_HEIGHT), "white")
    sheet.paste(renders)
    width = PREVIEW_WIDTH // len(SHOWN)
    for index, (name, label) in enumerate(SHOWN.items()):
        values = curves.smoothed(name, done)
        curve = _sparkline(f"{label} {values[-1]:.3g}", values, len(curves.values), width, LINES[name])
        sheet.paste(curve, (index * width, renders.height))
    return np.asarray(sheet)


def _sparkline(label: str, values: np.ndarray, iterations: int, width: int, color: tuple[int, int, int]) -> Image.Image:
    """Values of the first of so many iterations, from their least to their greatest."""
    picture = Image.new("RGB", (width, CURVE_HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 6, 24, width - 7, CURVE_HEIGHT - 7
    draw.text((left, 5), label, INK, ImageFont.load_default(13))
    draw.rectangle((left, top, right, bottom), fill=PAPER)
    low, high = float(values.min()), float(values.max())
    steps = np.unique(np.linspace(0, len(values) - 1, min(len(values), right - left)).round().astype(int))
    across = left + (right - left) * (steps + 1) / iterations
    up = bottom - 2 - (bottom - top - 4) * (values[steps] - low) / (high - low if high > low else 1.0)
    points = list(zip(across.tolist(), up.tolist(), strict=True))
    if len(points) > 1:
        draw.line(points, fill=color, width=2, joint="curve")
    x, y = points[-1]
    draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
    return picture
