# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands `evaluate generation`, `evaluate construction` and `evaluate video`."""

import argparse
import sys
from pathlib import Path

from backend.options import add_device_option, add_seed_option, bounded, positive
from blender_addon.contract.requests import BOUNDS, CUTOUTS, MODELS, PRESETS, REPRESENTATIONS, SMALL


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """`evaluate generation|construction|video --assets DIR --split NAME --out DIR`: figures and contact sheets."""
    kinds = commands.add_parser("evaluate", help="measure clips and models against the truth").add_subparsers(
        metavar="WHAT", required=True
    )
    add_evaluate_construction(kinds)
    add_evaluate_video(kinds)
    parser = kinds.add_parser(
        "generation", help="generated motion against true clips, and whether it obeys the motion magnitude"
    )
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="animated models, manifest.json")
    parser.add_argument("--split", required=True, metavar="NAME", help="of the manifest")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets summary.json, table.md, sheets; a second run goes on from there")  # fmt: skip
    parser.add_argument("--setting", choices=("static3d", "image", "text", "all"), default="static3d",
                        help="what generation is given (default: the static orbit)")  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="clips at most")
    parser.add_argument("--clips-per-asset", type=positive, default=2, metavar="N",
                        help="evenly, of each model (default: %(default)s)")  # fmt: skip
    parser.add_argument("--renderer", choices=("cycles", "fast"), default="cycles",
                        help="of the truth: Blender (cycles, default), or the rasterizer of training (needs "
                             "baked assets)")  # fmt: skip
    parser.add_argument("--subjects", type=int, default=4, metavar="N",
                        help="assets for which the control of motion is measured, 6 generations each (default: "
                             "%(default)s)")  # fmt: skip
    add_seed_option(parser)
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="K", help="samples per clip (default: %(default)s)"
    )
    parser.add_argument("--steps", type=bounded("steps"), default=int(BOUNDS["steps"].default), metavar="N",
                        help="of denoising (default: %(default)s)")  # fmt: skip
    for name, bound, text in (
        ("--w1", "guidance_motion", "guidance by prompt and magnitude"),
        ("--w2", "guidance_static", "guidance away from the static model; 0 is the ablation without it"),
    ):
        parser.add_argument(name, type=bounded(bound), default=BOUNDS[bound].default, metavar="X",
                            help=f"{text} (default: %(default)s)")  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="DIR", help="other weights than the shipped ones")
    parser.add_argument("--invented", action="store_true", help="motions as the network invents them, no known ones")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="TorchScript of VGG16 for LPIPS")
    parser.add_argument("--i3d", type=Path, metavar="FILE", help="TorchScript of I3D for FVD")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="CLIP model for CLIP-F and CLIP-O")
    parser.set_defaults(func=evaluate_generation)


def add_evaluate_construction(kinds: argparse._SubParsersAction) -> None:
    """`evaluate construction`: clips from true pictures, seen from where nobody has shown them."""
    parser = kinds.add_parser("construction", help="constructed clips against views that they were not made from")
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="animated models, manifest.json")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--split", metavar="NAME", help="of the manifest")
    which.add_argument("--clips", nargs="+", metavar="ID:ACTION", help="exactly these")
    parser.add_argument("--families", nargs="+", metavar="NAME", help="of the split, only these")
    parser.add_argument("--actions", nargs="+", metavar="WORD", help="only actions whose name holds one of these words")
    parser.add_argument("--clips-per-asset", type=positive, default=1, metavar="N",
                        help="evenly, of each model (default: %(default)s)")  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="clips at most")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets summary.json, table.md, sheets; a second run goes on from there")  # fmt: skip
    parser.add_argument("--case", nargs="+", default=["object", "hull"],
                        choices=("object", "pictures", "hull", "views8"),
                        help="what construction is given: the surface with its movement (object), without the movement "
                             "(pictures), no surface (hull), 8 views of each time (views8); "
                             "default: object hull")  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="preview",
                        help="of the construction (default: %(default)s)")  # fmt: skip
    parser.add_argument("--gaussians", type=bounded("gaussians"), metavar="N", help="default: by the preset")
    add_seed_option(parser)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                        help="another setting of the fit, for ablations; may be repeated")  # fmt: skip
    add_device_option(parser)
    parser.add_argument("--renderer", choices=("cycles", "fast"), default="cycles",
                        help="of the truth: Blender (cycles, default), or the rasterizer of training (needs "
                             "baked assets)")  # fmt: skip
    parser.add_argument("--truth", type=Path, metavar="DIR",
                        help="where true pictures are kept, for several runs to share (default: in --out)")  # fmt: skip
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="TorchScript of VGG16 for LPIPS")
    parser.set_defaults(func=evaluate_construction)


def add_evaluate_video(kinds: argparse._SubParsersAction) -> None:
    """`evaluate video`: clips of videos, seen from where the video was not filmed."""
    parser = kinds.add_parser(
        "video", help="clips of videos against true views from other sides, or by themselves where there are none"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--split", metavar="NAME", help="of the manifest of --assets")
    which.add_argument("--clips", nargs="+", metavar="ID:ACTION", help="exactly these clips of --assets")
    which.add_argument("--video", nargs="+", type=Path, metavar="PATH",
                       help="films, or folders of pictures, whose other sides nobody knows")  # fmt: skip
    parser.add_argument("--assets", type=Path, metavar="DIR", help="animated models, manifest.json")
    parser.add_argument("--families", nargs="+", metavar="NAME", help="of the split, only these")
    parser.add_argument("--clips-per-asset", type=positive, default=1, metavar="N",
                        help="evenly, of each model (default: %(default)s)")  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="clips at most")
    parser.add_argument("--text", default="", metavar="TEXT", help="of --video: what is seen")
    parser.add_argument("--cutout", choices=CUTOUTS, default=CUTOUTS[0],
                        help="of --video: how the subject is told from its background (default: auto)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets summary.json, table.md, sheets; a second run goes on from there")  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="preview",
                        help="of the construction (default: %(default)s)")  # fmt: skip
    parser.add_argument("--case", nargs="+", choices=("full", "no-sds", "anchor-only", "no-anchor"),
                        help="as the product does it, or without a part of it (default: full no-sds no-anchor; of the "
                             "preset draft, which has no such parts, full)")  # fmt: skip
    parser.add_argument("--representation", nargs="+", choices=REPRESENTATIONS, default=[REPRESENTATIONS[0]],
                        help=f"what is fitted (default: {REPRESENTATIONS[0]})")  # fmt: skip
    parser.add_argument("--frames", type=bounded("video_frames"), default=8, metavar="N",
                        help="of each video; at most 24 where the truth is known (default: 8)")  # fmt: skip
    add_seed_option(parser)
    parser.add_argument("--model", choices=MODELS, default=SMALL,
                        help="that invents the other views (default: %(default)s)")  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="DIR", help="where the published model's weights are")
    parser.add_argument("--small-weights", type=Path, metavar="DIR",
                        help="other weights of the small model than the shipped ones")  # fmt: skip
    add_device_option(parser)
    parser.add_argument("--fast", action="store_true",
                        help="truth by the rasterizer of training (needs baked assets) instead of Blender")  # fmt: skip
    parser.add_argument("--truth", type=Path, metavar="DIR",
                        help="where true pictures are kept, for several runs to share (default: in --out)")  # fmt: skip
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="TorchScript of VGG16 for LPIPS")
    parser.add_argument("--i3d", type=Path, metavar="FILE", help="TorchScript of I3D for FVD")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="CLIP model for CLIP-I and CLIP-C")
    parser.set_defaults(func=evaluate_video, usage_error=parser.error)


def evaluate_generation(options: argparse.Namespace) -> int:
    """Evaluate generated motion, with a progress bar."""
    from backend.console import progress_bar
    from backend.evaluation.choice import chosen_clips
    from backend.evaluation.generation import SETTINGS, Sampling, evaluate_generation
    from backend.evaluation.networks import load_networks
    from backend.evaluation.shipped import shipped_generator
    from backend.progress import Run

    networks = load_networks(options.lpips, options.i3d, options.clip)
    clips = chosen_clips(options.assets, options.split, options.clips_per_asset)
    generator = shipped_generator(options.weights, known=not options.invented)
    options.out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as show:
        summary = evaluate_generation(
            options.assets,
            clips,
            options.out,
            generator,
            settings=SETTINGS if options.setting == "all" else (options.setting,),
            sampling=Sampling(options.seed, options.steps, options.w1, options.w2),
            seeds=options.seeds,
            renderer=options.renderer,
            limit=options.limit,
            control_subjects=options.subjects,
            networks=networks,
            run=Run(options.out, on_progress=show),
        )
    for name, value in summary["mean"].items():
        print(f"{name:<24}{value:8.3f}")
    print(f"{len(summary['assets'])} clips; look at {options.out / 'table.md'} and {options.out / 'sheets'}")
    return 0


def evaluate_construction(options: argparse.Namespace) -> int:
    """Evaluate construction, with a progress bar."""
    from backend.console import progress_bar
    from backend.evaluation.choice import chosen_clips, named_clips
    from backend.evaluation.construction_run import evaluate_constructions
    from backend.evaluation.constructor import shipped_constructor
    from backend.evaluation.networks import load_networks
    from backend.progress import Run

    networks = load_networks(options.lpips)
    if options.clips:
        clips = named_clips(options.assets, options.clips)
    else:
        per_asset, families, actions = options.clips_per_asset, options.families, options.actions
        clips = chosen_clips(options.assets, options.split, per_asset, families=families, actions=actions)
    changes = tuple(options.changes)
    constructor = shipped_constructor(options.preset, options.gaussians, options.seed, options.device, changes)
    options.out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as show:
        summary = evaluate_constructions(
            options.assets,
            clips,
            options.out,
            constructor,
            cases=tuple(dict.fromkeys(options.case)),
            renderer=options.renderer,
            limit=options.limit,
            truths=options.truth,
            networks=networks,
            run=Run(options.out, on_progress=show, device=options.device),
        )
    cases = {summary["case"]: summary, **summary["cases"]}
    print(" " * 28 + "".join(f"{case:>10}" for case in cases) + "   (medians)")
    for name in summary["median"]:
        print(f"{name:<28}" + "".join(f"{case['median'].get(name, float('nan')):10.3f}" for case in cases.values()))
    for name, reason in summary["failed"].items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"{len(summary['assets'])} clips; look at {options.out / 'table.md'} and {options.out / 'sheets'}")
    return 1 if summary["failed"] else 0


def evaluate_video(options: argparse.Namespace) -> int:
    """Evaluate clips of videos, with progress bars."""
    if options.video is None and options.assets is None:
        options.usage_error("--split and --clips need --assets")
    if options.video is not None and (options.assets or options.fast or options.truth or options.families):
        options.usage_error("--video goes without --assets and what belongs to them")
    from backend.commands.evaluate_video import evaluate

    return evaluate(options)
