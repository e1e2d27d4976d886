# SPDX-License-Identifier: GPL-3.0-or-later
"""How far the rasterizer's pictures, from which networks learn, are from what the add-on renders.

    python -m benchmarks.picture_gap --assets DIR [--out FILE.json] [--limit 6] [--resolution 64] [--sheet FILE.png]

The same clips by the same cameras, by Cycles on the add-on's stage and by the rasterizer with the light that stands
for it. "unlit" is what the rasterizer's light has to beat: the plain colors of the surfaces.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from backend.data.baked import read_manifest
from backend.data.curation import Limits
from backend.data.fast_renderer import STAGE_LIGHT, FastRenderer
from backend.data.render_dataset import Settings, render_dataset
from backend.data.shards import read_dataset
from backend.data.views import DatasetView
from backend.evaluation.metrics import alpha_iou, foreground_psnr, psnr
from backend.pictures import over_white, premultiplied, ssim, tiled
from backend.progress import Run
from benchmarks.report import Figure, write_report

UNLIT = (STAGE_LIGHT[0], 1.0, 0.0)
KEEP_ALL = Limits(static_ssim=2, broken_ssim=-1, least_magnitude=0, most_magnitude=float("inf"))


def main() -> None:
    """Render, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="animated models with manifest.json and baked24")
    parser.add_argument("--split", default="train")
    parser.add_argument("--limit", type=int, default=6, help="clips, of all families in turn")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32, help="of Cycles, per pixel")
    parser.add_argument("--out", type=Path, help="JSON report")
    parser.add_argument("--sheet", type=Path, help="PNG: Cycles above, rasterizer below")
    options = parser.parse_args()

    entries = {entry["id"]: entry for entry in read_manifest(options.assets, options.split)}
    settings = Settings(options.split, "cycles", options.resolution, views=1, samples=options.samples, limits=KEEP_ALL)
    rows, strips = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), lambda progress: print(f"{progress.stage} {progress.fraction:.0%}", end="\r"))
        render_dataset(options.assets, Path(folder) / "out", settings, run, limit=options.limit)
        for sample in read_dataset(Path(folder) / "out"):
            entry, info = entries[sample.info["asset"]], sample.info
            clip = [one["action"] for one in entry["clips"]].index(info["action"])
            view = DatasetView(**info["view"])
            truth = premultiplied(sample.moving)
            renderers = (
                FastRenderer(options.assets, entry, options.resolution, light) for light in (STAGE_LIGHT, UNLIT)
            )
            fast, unlit = (premultiplied(renderer.video(clip, view, "moving")) for renderer in renderers)
            rows.append({"asset": info["asset"], "action": info["action"], **compare(truth, fast, unlit)})
            strips += [strip(truth), strip(fast)]
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key not in ("asset", "action")}
    figures = [
        Figure("PSNR of the subject", means["subject_psnr"], "dB", at_least=means["subject_psnr_unlit"] + 1),
        Figure("PSNR on white", means["psnr"], "dB"),
        Figure("SSIM on white", means["ssim"], "", at_least=0.95),
        Figure("IoU of the outlines", means["alpha_iou"], "", at_least=0.85),
    ]
    write_report("Cycles and the rasterizer of training", rows, figures, options.out)
    if options.sheet:
        Image.fromarray(np.concatenate(strips)).save(options.sheet)


def compare(truth: Tensor, fast: Tensor, unlit: Tensor) -> dict[str, float]:
    """Means over the frames [T, H, W, 4]."""
    white = over_white(truth)
    return {
        "psnr": float(psnr(over_white(fast), white).mean()),
        "ssim": float(ssim(over_white(fast), white).mean()),
        "subject_psnr": float(foreground_psnr(fast, truth).mean()),
        "subject_psnr_unlit": float(foreground_psnr(unlit, truth).mean()),
        "alpha_iou": float(alpha_iou(fast[..., 3], truth[..., 3]).mean()),
    }


def strip(frames: Tensor) -> np.ndarray:
    """Every third frame on white, side by side."""
    return tiled(over_white(frames[None, ::3]))


if __name__ == "__main__":
    main()
