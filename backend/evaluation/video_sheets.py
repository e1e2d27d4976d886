# SPDX-License-Identifier: GPL-3.0-or-later
"""Contact sheets and tables of clips that were made of videos."""

import numpy as np
from PIL import Image
from torch import Tensor

from backend.evaluation.sheets import SheetRow, sheet
from backend.evaluation.tables import aligned, caveats, cell, figures_table
from backend.evaluation.video_truth import ORTHOGONAL
from backend.pictures import over_white

TIMES = 4  # of the clip, on a sheet
SIDE = 96  # pixels of one picture on it


def clip_sheet(title: str, rows: dict[str, Tensor]) -> Image.Image:
    """One row for each label; columns are times within the four orthogonal views.

    rows: [4 or more, F, H, W, 4], colour multiplied by alpha, views in the order of `video_truth.AZIMUTHS`.
    """
    frames = next(iter(rows.values())).shape[1]
    chosen = np.linspace(0, frames - 1, min(TIMES, frames)).round().astype(int)
    shown = [SheetRow(label.replace(" ", "\n"), _on_white(pictures[:, chosen])) for label, pictures in rows.items()]
    heads = [f"{azimuth:.0f}° frame {frame}" for azimuth in ORTHOGONAL for frame in chosen]
    return sheet(title, shown, heads, SIDE, len(heads))


def title_of(about: str, by_case: dict[str, dict]) -> str:
    """A sheet's title: whose it is, and the first figure of each case."""
    figure = next((name for name in ("psnr_novel", "psnr_input") if any(name in row for row in by_case.values())), None)
    parts = [f"{label}: {row[figure]:.1f} dB" for label, row in by_case.items() if figure in row]
    return "   ".join([about, *([COLUMNS[figure]] if figure else []), *parts])


def _on_white(pictures: Tensor) -> np.ndarray:  # [V, T, H, W, 4] -> [4 T, H, W, 3] uint8
    return (over_white(pictures[: len(ORTHOGONAL)].flatten(0, 1)) * 255).round().byte().numpy()


# --- table -----------------------------------------------------------------------------------------------------------

COLUMNS = {
    "magnitude": "m", "psnr_novel": "PSNR novel", "psnr_novel_frozen": "frozen", "psnr_foreground_novel": "foreground",
    "ssim_novel": "SSIM novel", "lpips_novel": "LPIPS novel", "dssim_novel": "D-SSIM novel", "iou_novel": "IoU novel",
    "psnr_between": "PSNR between", "lpips_between": "LPIPS between", "dssim_between": "D-SSIM between",
    "psnr_input": "PSNR input", "ssim_input": "SSIM input", "iou_input": "IoU input", "lpips_input": "LPIPS input",
    "views_psnr_novel": "PSNR views", "views_iou_novel": "IoU views",
    "psnr_model_views": "PSNR to views", "stray": "stray", "clip_i": "CLIP-I", "clip_c": "CLIP-C",
    "fvd_handcrafted": "FVD handcr.", "fvd": "FVD", "seconds": "s",
}  # fmt: skip


def table(by_case: dict[str, dict], summary: dict) -> str:
    """All figures as Markdown that can be read as it is: the cases side by side, every clip of each, the time taken.

    by_case: each as `video_run.statistics` gives it.
    """
    heads = {name: head for name, head in COLUMNS.items() if any(name in own["mean"] for own in by_case.values())}
    both = ("mean", "median")
    lines = ["## All cases", ""]
    lines += figures_table("", heads, {f"{case}, {kind}": own[kind] for case, own in by_case.items() for kind in both})
    for case, own in by_case.items():
        rows = {f"{row['clip']}": row for row in own["assets"]}
        rows |= {f"**{kind}**": own[kind] for kind in both}
        lines += ["", f"## {case}", "", *figures_table("clip", heads, rows)]
    stages = list(dict.fromkeys(stage for own in by_case.values() for stage in own["stage_seconds"]))
    lines += ["", "## Seconds by stage, mean", ""]
    head = ["case", *stages]
    lines += aligned([head, *([case, *(cell(own["stage_seconds"].get(name)) for name in stages)]
                               for case, own in by_case.items())])  # fmt: skip
    about = f"{summary['model']}, {summary['preset']}, seed {summary['seed']}, {summary['frames']} frames"
    lines += ["", f"{about}; {summary['renderer'] or 'no truth'}, {summary['resolution']} px.", ""]
    return "\n".join(lines + caveats(summary)) + "\n"
