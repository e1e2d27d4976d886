# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything at its published size on a GPU, within a budget of minutes: one table a section, one JSON.

    python -m benchmarks.gpu [--only NAME ...] [--minutes M] [--out FILE.json]

Networks have random weights: they cost what trained ones cost. The JSON is written anew after each line of a table, so
that nothing measured is lost, whatever comes after it. A section that fails is told, and the next one begins. Without a
GPU there is nothing to measure, and it says so.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.gpu.sections import SECTIONS, run_sections
from benchmarks.gpu.setting import Setting


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all figures are met and no section failed or was left out, or if there is no GPU."""
    about = "; ".join(f"{section.name}: {section.about}" for section in SECTIONS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0], epilog=f"Sections: {about}."
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"sections: {', '.join(names)}")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin nothing for which too little of it is left")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of denoising an orbit (default: 50)")
    parser.add_argument("--plans", nargs="+", metavar="NAME", help="of the orbit: only these memory plans, or '12 GB'")
    parser.add_argument("--assets", type=Path, metavar="DIR", help="for training (default: those of the tests)")
    parser.add_argument("--workers", type=int, metavar="N", help="of training: processes that draw samples")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE.json", help="(default: gpu.json)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use: nothing was measured.")
        return 0
    setting = Setting.published(torch.device("cuda"), steps=options.steps, plans=options.plans)
    setting = setting.with_training(assets=options.assets, workers=options.workers)
    return run_sections(setting, options.only or names, options.minutes, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
