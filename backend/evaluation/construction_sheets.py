# SPDX-License-Identifier: GPL-3.0-or-later
"""Contact sheets and tables of constructed clips: what the means over views do not say."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from backend.data.views import FRAMES
from backend.evaluation.construction_truth import GridTruth
from backend.evaluation.sheets import SheetRow, difference, on_white, sheet
from backend.evaluation.tables import caveats, figures_table
from backend.pictures import straight
from backend.splatting.observations import Observations
from backend.splatting.render import render_clip
from blender_addon.contract.clip import Clip

VIEWS = 8  # on a sheet
SIDE = 192  # pixels of one picture on it
MARGIN = 4  # pixels round the subject
TURNS = (180.0, 90.0, 270.0)  # degrees from the view that is shown at the same time, in turn
VISIBLE = 25  # of 255


@dataclass(frozen=True)
class Result:
    """One construction of a clip."""

    case: str
    clip: Clip
    row: dict  # its figures


def clip_sheet(truth: GridTruth, results: list[Result]) -> Image.Image:
    """Truth, result and difference of each case, at times of the clip, seen from where nobody has shown it."""
    unseen = truth.unseen
    chosen = _views(unseen)
    cameras = unseen.cameras.picked(chosen)
    true = straight(unseen.images[chosen].numpy())
    drawn = {result.case: straight(render_clip(result.clip, cameras).numpy()) for result in results}
    rows, columns = _window([true, *drawn.values()])
    shown = [SheetRow("truth", on_white(true)[:, rows, columns])]
    for case, pictures in drawn.items():
        shown.append(SheetRow(case, on_white(pictures)[:, rows, columns]))
        shown.append(SheetRow("difference", difference(pictures, true)[:, rows, columns]))
    azimuths, elevations = _directions(cameras.camera_to_world)
    heads = [
        f"frame {time * (FRAMES - 1):.0f}: {azimuth:.0f}° / {elevation:.0f}°"
        for time, azimuth, elevation in zip(cameras.times, azimuths, elevations, strict=True)
    ]
    lines = "   ".join(f"{one.case}: {_title(one.row)}" for one in results)
    return sheet(f"{truth.clip.entry['id']} {truth.clip.action}   {lines}", shown, heads, SIDE)


def _views(unseen: Observations) -> list[int]:
    """One view for each of `VIEWS` times, mostly from behind or beside the camera that was shown at that time."""
    cameras = unseen.cameras
    azimuths, elevations = _directions(cameras.camera_to_world)
    times = np.unique(cameras.times)
    chosen = []
    for column, time in enumerate(times[np.linspace(0, len(times) - 1, min(VIEWS, len(times))).round().astype(int)]):
        level = sorted(set(elevations.round()))[column % len(set(elevations.round()))]
        wanted = 360 * time + TURNS[column % len(TURNS)]
        off = np.abs((azimuths - wanted + 180) % 360 - 180)
        off[(cameras.times != time) | (elevations.round() != level)] = np.inf
        chosen.append(int(off.argmin()))
    return chosen


def _window(sets: list[np.ndarray]) -> tuple[slice, slice]:
    """The smallest square part of the pictures [V, H, W, 4] outside which all of them are empty."""
    seen = np.max([pictures[..., 3].max(axis=0) for pictures in sets], axis=0) > VISIBLE
    size = min(seen.shape)
    if not seen.any():
        return slice(0, size), slice(0, size)
    ranges = [np.flatnonzero(seen.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    side = min(max(last - first + 1 for first, last in ranges) + 2 * MARGIN, size)
    starts = [int(np.clip((first + last + 1 - side) // 2, 0, size - side)) for first, last in ranges]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def _directions(camera_to_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [V, 4, 4] -> [V], [V] degrees
    x, y, z = camera_to_world[:, :3, 2].T
    return np.degrees(np.arctan2(x, -y)) % 360, np.degrees(np.arcsin(z.clip(-1, 1)))


def _title(row: dict) -> str:
    return (
        f"{row['psnr_unseen']:.1f} dB unseen ({row['psnr_gain']:+.1f}), {row['psnr_shown']:.1f} shown, "
        f"track {row['track_error']:.2f}"
    )


# --- table -----------------------------------------------------------------------------------------------------------

COLUMNS = {
    "magnitude": "m", "psnr_unseen": "PSNR unseen", "psnr_gain": "over frozen", "psnr_foreground_unseen": "foreground",
    "psnr_unseen_worst": "worst views", "ssim_unseen": "SSIM", "lpips_unseen": "LPIPS", "dssim_unseen": "D-SSIM",
    "iou_unseen": "IoU", "track_error": "track error", "psnr_shown": "PSNR shown", "iou_shown": "IoU shown",
    "seconds": "s", "cpu_seconds": "CPU s",
}  # fmt: skip


def table(by_case: dict[str, dict], summary: dict) -> str:
    """All figures as Markdown: the cases side by side, then every clip of each."""
    heads = {name: head for name, head in COLUMNS.items() if any(name in own["median"] for own in by_case.values())}
    both = ("median", "worst")
    sides = {f"{case}, {kind}": own[kind] for case, own in by_case.items() for kind in both}
    lines = ["## Median, and worst", "", *figures_table("", heads, sides)]
    for case, own in by_case.items():
        rows = {f"{row['asset']} {row['action']}": row for row in own["assets"]}
        rows |= {f"**{kind}**": own[kind] for kind in ("mean", *both)}
        lines += ["", f"## {case}", "", *figures_table("clip", heads, rows)]
        lines += ["", f"By PSNR on unseen views best: {own['best_clip']}, worst: {own['worst_clip']}."]
    lines += ["", f"{summary['preset']}; renderer {summary['renderer']}, {summary['resolution']} px.", ""]
    return "\n".join(lines + caveats(summary)) + "\n"
