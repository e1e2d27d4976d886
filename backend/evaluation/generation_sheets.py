# SPDX-License-Identifier: GPL-3.0-or-later
"""What evaluation of generated motion shows: sheets of pictures, and all figures as a table."""

from pathlib import Path

import numpy as np

from backend.evaluation.generation_truth import Truth
from backend.evaluation.sheets import SheetRow, difference, on_white, sheet, stacked
from backend.evaluation.tables import caveats, cell, figures_table

OVERVIEW = 3  # best, median, worst: so many of each


def write_sheets(
    folder: Path,
    setting: str,
    truths: list[Truth],
    moving: list[np.ndarray],
    static: list[np.ndarray],
    rows: list[dict],
) -> None:
    """A sheet per clip, of `moving` made from `static`, and an overview of the best, median and worst clips."""
    own_folder = folder / setting
    own_folder.mkdir(parents=True, exist_ok=True)
    for truth, made, still, row in zip(truths, moving, static, rows, strict=True):
        shown = [SheetRow("static", on_white(still)), SheetRow("truth", on_white(truth.moving))]
        shown.append(SheetRow("generated", on_white(made)))
        if setting != "text":
            shown.append(SheetRow("difference", difference(made, truth.moving)))
        sheet(_title(row), shown).save(own_folder / f"{truth.clip.name}.png")

    order = np.argsort([_wrongness(row) for row in rows], kind="stable")
    middle = max((len(order) - OVERVIEW) // 2, 0)
    groups = {"best": order[:OVERVIEW], "median": order[middle : middle + OVERVIEW], "worst": order[-OVERVIEW:]}
    shown_already: set[int] = set()
    blocks = []
    for label, indices in groups.items():
        for index in indices:
            if index in shown_already:
                continue
            shown_already.add(index)
            pair = [SheetRow("truth", on_white(truths[index].moving))]
            pair.append(SheetRow("generated", on_white(moving[index])))
            blocks.append(sheet(f"{label}: {_title(rows[index])}", pair))
    stacked(blocks).save(folder / f"{setting}_overview.png")


def _wrongness(row: dict) -> float:
    """For ranking: energy error, as the motion error favors what hardly moves; without a truth, how far m is missed."""
    return row.get("energy_error", abs(np.log(max(row["magnitude_ratio"], 1e-6))))


def _title(row: dict) -> str:
    text = f'{row["asset"]}: "{row["prompt"]}"   m {row["magnitude"]:.2f}, measured {row["magnitude_measured"]:.2f}'
    if "psnr" in row:
        text += f"   PSNR {row['psnr']:.1f} dB (no motion {row['psnr_static']:.1f})"
        text += f"   motion error {row['motion_error']:.3f} (no motion {row['motion_error_static']:.3f})"
    return text


COLUMNS = {
    "magnitude": "m asked", "magnitude_measured": "m measured", "psnr": "PSNR", "psnr_static": "PSNR no motion",
    "ssim": "SSIM", "ssim_static": "SSIM no motion", "motion_error": "motion error",
    "motion_error_static": "motion error no motion", "energy_error": "energy error", "motion_cosine": "cosine",
    "sharpness": "sharpness", "stray": "stray", "stray_true": "stray in truth",
    "lpips": "LPIPS", "clip_f": "CLIP-F", "clip_o": "CLIP-O", "psnr_closing": "closing PSNR",
    "spearman": "Spearman", "psnr_m0": "PSNR m = 0", "seconds": "s",
    "cpu_seconds": "CPU s",
}  # fmt: skip


def table(results: dict[str, dict], summary: dict) -> str:
    """All figures as Markdown: every clip in each setting, and the notes."""
    lines = [line for setting, result in results.items() for line in _section(setting, result)]
    lines.append(f"{summary['preset']}, {summary['sampling']['seeds']} seed(s), renderer {summary['renderer']}.")
    return "\n".join([*lines, "", *caveats(summary)]) + "\n"


def _section(setting: str, result: dict) -> list[str]:
    mean = result["mean"]
    heads = {name: head for name, head in COLUMNS.items() if name in mean}
    rows = {f"{row['asset']} {row['action']}": row for row in result["assets"]} | {"**mean**": mean}
    rest = {name: value for name, value in mean.items() if name.startswith("fvd") or name == "spearman_per_object"}
    lines = [f"## {setting}", "", *figures_table("clip", heads, rows), ""]
    lines += [f"- {name}: {cell(value)}" for name, value in rest.items()]
    for row in result["assets"]:
        if "ladder" in row:
            steps = ", ".join(f"{asked} -> {measured:.2f}" for asked, measured in row["ladder"].items())
            lines.append(f"- m asked -> measured, {row['asset']}: {steps}")
    return [*lines, ""]
