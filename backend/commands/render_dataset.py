# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `render-dataset`: videos of animated models, to train on and to look at."""

import argparse
import sys
from pathlib import Path

from backend.options import add_seed_option, positive


def add_render_dataset(commands: argparse._SubParsersAction) -> None:
    """`render-dataset --assets DIR --split NAME --out DIR`: videos to train on and to look at."""
    parser = commands.add_parser("render-dataset", help="render orbits of animated models")
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="animated models, manifest.json")
    parser.add_argument("--split", required=True, metavar="NAME", help="of the manifest")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets shards and manifest.json; a second run goes on from there")  # fmt: skip
    renderer = parser.add_mutually_exclusive_group()
    renderer.add_argument("--fast", action="store_const", const="fast", dest="renderer",
                          help="the rasterizer of training (default)")  # fmt: skip
    renderer.add_argument("--cycles", action="store_const", const="cycles", dest="renderer",
                          help="Blender, as the add-on renders")  # fmt: skip
    parser.add_argument("--resolution", type=positive, default=128, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--views", type=positive, default=2, metavar="N",
                        help="per clip, each with its start azimuth, elevation and light (default: "
                             "%(default)s)")  # fmt: skip
    parser.add_argument(
        "--samples", type=positive, default=16, metavar="N", help="of Cycles, per pixel (default: %(default)s)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="clips at most, of all families in turn")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per core)")
    add_seed_option(parser)
    parser.add_argument("--static-ssim", type=float, metavar="X", help="drop clips that are more alike (0.95)")
    parser.add_argument("--broken-ssim", type=float, metavar="X", help="drop clips that are less alike (0.4)")
    parser.add_argument("--least-magnitude", type=float, metavar="M", help="drop clips that move less (0.05)")
    parser.add_argument("--most-magnitude", type=float, metavar="M", help="drop clips that move more (40)")
    parser.set_defaults(func=render_dataset, renderer="fast")


def render_dataset(options: argparse.Namespace) -> int:
    """Render a dataset, with a progress bar; says what was left out."""
    import os

    from backend.console import progress_bar
    from backend.data.curation import Limits
    from backend.data.render_dataset import Settings, render_dataset
    from backend.progress import Run

    names = ("static_ssim", "broken_ssim", "least_magnitude", "most_magnitude")
    limits = Limits(**{name: value for name in names if (value := getattr(options, name)) is not None})
    names = ("split", "renderer", "resolution", "views", "samples", "seed")
    settings = Settings(**{name: getattr(options, name) for name in names}, limits=limits)
    workers = options.workers or os.cpu_count() or 1
    with progress_bar() as show:
        run = Run(options.out, on_progress=show)
        manifest = render_dataset(options.assets, options.out, settings, run, limit=options.limit, workers=workers)
    totals = manifest["totals"]
    print(f"{options.out}: {totals['samples']} samples, {totals['bytes'] / 1e6:.0f} MB")
    for reason, count in sorted(totals["rejected"].items()):
        print(f"left out: {count} ({reason})")
    if manifest["refused"]:
        print(f"refused: {len(manifest['refused'])} assets without a known free licence")
    for failure in manifest["failed"]:
        print(f"failed: {failure['what']}: {failure['reason']}", file=sys.stderr)
    return 1 if manifest["failed"] else 0
