# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m backend ...`: the same parts without Blender's window. Each command's module is imported when it runs."""

import argparse
import logging
import sys
from pathlib import Path

from backend import __version__
from backend.options import add_video_options, bounded, video_options
from backend.progress import DEVICES, JobCancelled, UserError
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.requests import (
    BOUNDS,
    COLOR_SPACES,
    CUTOUTS,
    MODELS,
    MOTION_MODELS,
    PIPELINES,
    PRESETS,
    PUBLISHED,
    REPRESENTATIONS,
    SMALL,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 cancelled."""
    from backend.service import cli as service

    parser = argparse.ArgumentParser(prog="python -m backend", description="Kinesplat's backend")
    parser.add_argument("--version", action="version", version=f"Kinesplat {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    service.add_commands(commands)
    add_generate(commands)
    add_construct(commands)
    add_evaluate(commands)
    add_train(commands)
    add_render_dataset(commands)
    add_weights(commands)
    commands.add_parser("warm-up", help="the end of set-up: compile the splatting kernels").set_defaults(func=warm_up)

    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return options.func(options)
    except UserError as error:
        print(f"{error} {error.hint}".rstrip(), file=sys.stderr)
        return 1
    except BadFileError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        return 1
    except (JobCancelled, KeyboardInterrupt):
        print("Cancelled. What was finished is kept: the same command goes on from there.", file=sys.stderr)
        return 130


PUBLISHED_DEFAULTS = {"steps": 50, "guidance_motion": 7.0, "guidance_static": 0.5}  # Diffusion4D, section 4.1


def add_generate(commands: argparse._SubParsersAction) -> None:
    """`generate`: from an object, an image, a text or an orbit to a clip."""
    parser = commands.add_parser(
        "generate",
        help="make a clip of an object, an image, a text, a video or an orbit",
        description="Invent a motion for a subject and construct its clip. A second run goes on where one was stopped.",
    )
    parser.add_argument("--text", default="", metavar="TEXT", help='what it is and does, such as "a dog walks"')
    parser.add_argument("--pipeline", choices=sorted(set(PIPELINES.values())), help="(default: by the subject)")
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--object", type=Path, metavar="FILE.glb", help="a still model; needs Blender's Python module")
    subject.add_argument("--image", type=Path, metavar="FILE", help="a picture of the subject, seen from the front")
    subject.add_argument("--orbit", type=Path, metavar="FOLDER",
                         help="a moving orbit that exists already: nothing is invented")  # fmt: skip
    subject.add_argument("--video", type=Path, metavar="FILE|FOLDER",
                         help="a film of it from the front, or its pictures in order")  # fmt: skip
    motion = parser.add_argument_group("the invented motion")
    for name, bound, text in (
        ("--motion", "motion", "how much it moves: 0 is not at all, 3 a walk (Diffusion4D Eq. 1)"),
        ("--steps", "steps", "of denoising"),
        ("--guidance-motion", "guidance_motion", "how closely text and motion are followed (w1 of Eq. 3)"),
        ("--guidance-static", "guidance_static", "how closely the subject's looks are kept (w2 of Eq. 3)"),
    ):
        default = f"{BOUNDS[bound].default:g}"
        if bound in PUBLISHED_DEFAULTS:
            default += f", published {PUBLISHED_DEFAULTS[bound]:g}"
        motion.add_argument(name, type=bounded(bound), metavar="X", help=f"{text}; default {default}")
    motion.add_argument("--frames-only", type=Path, metavar="OUT",
                        help="write the frames alone, of a video its four views: a contact sheet (OUT.png) or a "
                             "folder of orbits")  # fmt: skip
    published = parser.add_argument_group("the published size (docs/published_size.md)")
    published.add_argument("--model", choices=MODELS, default=SMALL,
                           help=f"{SMALL} (default) comes along; {PUBLISHED} is VideoMV and Diffusion4D, of videos "
                                "4DM, and needs weights and a GPU")  # fmt: skip
    published.add_argument("--weights", type=Path, metavar="DIR",
                           help="where its weights are (default: as for `weights`)")  # fmt: skip
    published.add_argument("--refine", action="store_true",
                           help="refine the still subject through Gaussians (3D-aware denoising)")  # fmt: skip
    published.add_argument("--dry-run", action="store_true",
                           help="only tell parameters and memory of each stage, by each memory plan")  # fmt: skip
    add_video_options(parser)
    add_construction_options(parser, needs_out=False)
    parser.set_defaults(func=generate, usage_error=parser.error)


def add_construct(commands: argparse._SubParsersAction) -> None:
    """`construct --orbit FOLDER [--static FOLDER] --out CLIP.npz`: the construction stage alone."""
    parser = commands.add_parser("construct", help="construct a clip from a moving orbit")
    parser.add_argument("--orbit", type=Path, required=True, metavar="FOLDER", help="the moving orbit")
    add_construction_options(parser)


def add_construction_options(parser: argparse.ArgumentParser, *, needs_out: bool = True) -> None:
    """What both ways to a clip have in common."""
    gaussians = BOUNDS["gaussians"]
    parser.add_argument("--static", type=Path, metavar="FOLDER", help="the subject from all sides at time 0")
    parser.add_argument("--surface", type=Path, metavar="FILE", help="surface samples at time 0 (.npz)")
    parser.add_argument("--preset", choices=PRESETS, default="preview",
                        help="draft: about 12 s of one core for 24 x 128 pixels, 2,000 Gaussians; preview (default): "
                        "25 s, 5,000; final: 55 s for 24 x 256 pixels, 20,000")  # fmt: skip
    parser.add_argument("--gaussians", type=bounded("gaussians"), metavar="N",
                        help=f"{gaussians.minimum} to {gaussians.maximum}; by default as the preset says")  # fmt: skip
    parser.add_argument("--seed", type=bounded("seed"), default=int(BOUNDS["seed"].default))
    parser.add_argument(
        "--fps",
        type=bounded("fps"),
        help="default: 24; of a video, as it plays; of a folder, that of its pictures",
    )
    parser.add_argument("--sh-degree", type=bounded("sh_degree"), default=0, metavar="D",
                        help="0 to 2: how much colors may change with the view (default: 0, not at all)")  # fmt: skip
    parser.add_argument("--color-space", choices=COLOR_SPACES, default=COLOR_SPACES[0],
                        help="in which Gaussians are fitted and blended (default: %(default)s)")  # fmt: skip
    parser.add_argument("--motion-model", choices=MOTION_MODELS, default=MOTION_MODELS[0],
                        help="blended rigid movements, or a deformation field (default: %(default)s)")  # fmt: skip
    parser.add_argument("--device", choices=DEVICES, default="auto",
                        help="auto (default): the GPU if it works, or else the CPU")  # fmt: skip
    parser.add_argument("--out", type=Path, required=needs_out, metavar="CLIP.npz")
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="where checkpoints are kept (default: beside the clip)")  # fmt: skip
    parser.set_defaults(func=construct)


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """`evaluate generation|construction|video --assets DIR --split NAME --out DIR`: figures and contact sheets."""
    kinds = commands.add_parser("evaluate", help="measure quality").add_subparsers(metavar="WHAT", required=True)
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
    parser.add_argument("--clips-per-asset", type=positive, default=2, metavar="N")
    parser.add_argument("--renderer", choices=("cycles", "fast"), default="cycles",
                        help="of the truth: Blender, or the rasterizer of training (needs baked assets)")  # fmt: skip
    parser.add_argument("--subjects", type=int, default=4, metavar="N",
                        help="assets for which the control of motion is measured, 6 generations each")  # fmt: skip
    parser.add_argument("--seed", type=bounded("seed"), default=int(BOUNDS["seed"].default))
    parser.add_argument("--seeds", type=positive, default=1, metavar="K", help="samples per clip")
    parser.add_argument("--steps", type=bounded("steps"), default=int(BOUNDS["steps"].default))
    for name, bound, text in (
        ("--w1", "guidance_motion", "guidance by prompt and magnitude"),
        ("--w2", "guidance_static", "guidance away from the static model; 0 is the ablation without it"),
    ):
        parser.add_argument(name, type=bounded(bound), default=BOUNDS[bound].default, help=text)
    parser.add_argument("--weights", type=Path, metavar="DIR", help="other weights than the shipped ones")
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
    parser.add_argument("--clips-per-asset", type=positive, default=1, metavar="N")
    parser.add_argument("--limit", type=positive, metavar="N", help="clips at most")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets summary.json, table.md, sheets; a second run goes on from there")  # fmt: skip
    parser.add_argument("--case", nargs="+", choices=("object", "hull", "views8"), default=["object", "hull"],
                        help="what construction is given: with surface samples (object), without (hull), "
                             "8 views of each time (views8)")  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="preview")
    parser.add_argument("--gaussians", type=bounded("gaussians"), metavar="N")
    parser.add_argument("--seed", type=bounded("seed"), default=int(BOUNDS["seed"].default))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                        help="another setting of the fit, for ablations; may be repeated")  # fmt: skip
    parser.add_argument("--device", choices=DEVICES, default="auto",
                        help="auto (default): the GPU if it works, or else the CPU")  # fmt: skip
    parser.add_argument("--renderer", choices=("cycles", "fast"), default="cycles",
                        help="of the truth: Blender, or the rasterizer of training (needs baked assets)")  # fmt: skip
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
    parser.add_argument("--clips-per-asset", type=positive, default=1, metavar="N")
    parser.add_argument("--limit", type=positive, metavar="N", help="clips at most")
    parser.add_argument("--text", default="", metavar="TEXT", help="of --video: what is seen")
    parser.add_argument("--cutout", choices=CUTOUTS, default=CUTOUTS[0],
                        help="of --video: how the subject is told from its background (default: auto)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets summary.json, table.md, sheets; a second run goes on from there")  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="preview")
    parser.add_argument("--case", nargs="+", choices=("full", "no-sds", "anchor-only", "no-anchor"),
                        help="as the product does it, or without a part of it (default: full no-sds no-anchor; of the "
                             "preset draft, which has no such parts, full)")  # fmt: skip
    parser.add_argument("--representation", nargs="+", choices=REPRESENTATIONS, default=[REPRESENTATIONS[0]],
                        help=f"what is fitted (default: {REPRESENTATIONS[0]})")  # fmt: skip
    parser.add_argument("--frames", type=bounded("video_frames"), default=8, metavar="N",
                        help="of each video; at most 24 where the truth is known (default: 8)")  # fmt: skip
    parser.add_argument("--seed", type=bounded("seed"), default=int(BOUNDS["seed"].default))
    parser.add_argument("--model", choices=MODELS, default=SMALL,
                        help="that invents the other views (default: %(default)s)")  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="DIR", help="where the published model's weights are")
    parser.add_argument("--device", choices=DEVICES, default="auto",
                        help="auto (default): the GPU if it works, or else the CPU")  # fmt: skip
    parser.add_argument("--fast", action="store_true",
                        help="truth by the rasterizer of training (needs baked assets) instead of Blender")  # fmt: skip
    parser.add_argument("--truth", type=Path, metavar="DIR",
                        help="where true pictures are kept, for several runs to share (default: in --out)")  # fmt: skip
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="TorchScript of VGG16 for LPIPS")
    parser.add_argument("--i3d", type=Path, metavar="FILE", help="TorchScript of I3D for FVD")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="CLIP model for CLIP-I and CLIP-C")
    parser.set_defaults(func=evaluate_video, usage_error=parser.error)


def add_train(commands: argparse._SubParsersAction) -> None:
    """`train diffusion4d|4dm --config NAME --assets DIR --out DIR`; `train pack`, `train ship` for what comes of it."""
    kinds = commands.add_parser("train", help="train the networks").add_subparsers(metavar="WHAT", required=True)
    for what, told in (
        ("diffusion4d", "the networks that invent motion; see docs/training.md"),
        ("4dm", "4Diffusion's multi-view video network: on ImageDream, or the small one"),
    ):
        add_training_options(kinds.add_parser(what, help=told), what)
    add_results_of_training(kinds)


def add_training_options(parser: argparse.ArgumentParser, what: str) -> None:
    """What all training has in common."""
    parser.add_argument("--config", required=True, metavar="FILE|NAME", help="TOML, or one of backend/training/configs")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                        help="another value for one line of the configuration; may be repeated")  # fmt: skip
    parser.add_argument("--assets", type=Path, metavar="DIR", help="baked animated models")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="checkpoints, figures, sheets; the same command goes on from there")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=minutes, metavar="M", help="length of the run; the learning rate follows it")
    length.add_argument("--steps", type=positive, metavar="N", help="the same in steps: exactly repeatable")
    parser.add_argument("--resume", type=Path, metavar="DIR",
                        help="run, checkpoint or packed run to train on, by a new --minutes or --steps")  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="DIR",
                        help="published weights, for the published size (default: as for `weights`)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="only tell parameters and memory of each stage of the published size")  # fmt: skip
    parser.set_defaults(func=train, usage_error=parser.error, what=what)


def add_results_of_training(kinds: argparse._SubParsersAction) -> None:
    """`train pack` and `train ship`."""
    packing = kinds.add_parser("pack", help="newest checkpoint of a run as small files, to go on elsewhere")
    packing.add_argument("run", type=Path, metavar="RUN")
    packing.add_argument("--out", type=Path, required=True, metavar="DIR", help="for --resume on the other machine")
    packing.set_defaults(func=pack_run)
    shipping = kinds.add_parser("ship", help="weights that the program loads, from finished runs")
    shipping.add_argument("--motion", type=Path, metavar="RUN", help="of kinesplat_small_motion")
    shipping.add_argument("--decoder", type=Path, metavar="RUN", help="of kinesplat_small_decoder")
    shipping.add_argument("--static", type=Path, metavar="RUN",
                          help="of kinesplat_small_static (without it: memory and inflation)")  # fmt: skip
    shipping.add_argument(
        "--scene-flow",
        type=Path,
        metavar="RUN",
        help="of kinesplat_small_scene_flow: a model of its own, without the others",
    )
    shipping.add_argument("--published", type=Path, metavar="RUN",
                          help="of diffusion4d_published: weights for `generate --model published`, without the "
                               "others")  # fmt: skip
    shipping.add_argument("--4dm", type=Path, metavar="RUN", dest="fourdm",
                          help="of fourdm_published: motion modules in the place of the released ones, without the "
                               "others")  # fmt: skip
    shipping.add_argument("--small-4dm", type=Path, metavar="RUN", dest="small_fourdm",
                          help="of kinesplat_small_4dm_motion: a model of its own, without the others")  # fmt: skip
    shipping.add_argument("--assets", type=Path, metavar="DIR", help="what the runs were trained on")
    shipping.add_argument("--name", default="kinesplat-small", help="with a version, for the provenance of clips")
    shipping.add_argument("--out", type=Path, required=True, metavar="DIR")
    shipping.set_defaults(func=ship_runs)


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
    parser.add_argument("--resolution", type=positive, default=128, metavar="PIXELS")
    parser.add_argument("--views", type=positive, default=2, metavar="N",
                        help="per clip, each with its start azimuth, elevation and light")  # fmt: skip
    parser.add_argument("--samples", type=positive, default=16, metavar="N", help="of Cycles, per pixel")
    parser.add_argument("--limit", type=positive, metavar="N", help="clips at most, of all families in turn")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--seed", type=bounded("seed"), default=int(BOUNDS["seed"].default))
    parser.add_argument("--static-ssim", type=float, metavar="X", help="drop clips that are more alike (0.95)")
    parser.add_argument("--broken-ssim", type=float, metavar="X", help="drop clips that are less alike (0.4)")
    parser.add_argument("--least-magnitude", type=float, metavar="M", help="drop clips that move less (0.05)")
    parser.add_argument("--most-magnitude", type=float, metavar="M", help="drop clips that move more (40)")
    parser.set_defaults(func=render_dataset, renderer="fast")


def add_weights(commands: argparse._SubParsersAction) -> None:
    """`weights list|fetch|verify|convert`: networks that other people have published."""
    verbs = commands.add_parser("weights", help="published weights: list, fetch, verify, convert").add_subparsers(
        metavar="VERB", required=True
    )
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--dir", type=Path, metavar="DIR",
                       help="where weights are kept (default: KINESPLAT_WEIGHTS, else the user's data)")  # fmt: skip
    halves = argparse.ArgumentParser(add_help=False)
    halves.add_argument("--half", action="store_true", help="converted weights in 16 bit: half the space")

    parser = verbs.add_parser("list", parents=[place], help="what there is, its licence, and what is here")
    parser.add_argument("--details", action="store_true", help="sources, digests and notes, too")
    parser.set_defaults(func=weights_command, verb="list_weights")

    parser = verbs.add_parser(
        "fetch", parents=[place, halves], help="download from the Hugging Face hub; again, to go on"
    )
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--accept-licence", action="store_true",
                        help="you accept a licence that forbids commercial use, or may forbid it")  # fmt: skip
    parser.add_argument("--source", default="", metavar="REPOSITORY", help="this one of several (default: the first)")
    parser.add_argument("--keep-download", action="store_true", help="keep what was converted, too")
    parser.set_defaults(func=weights_command, verb="fetch_weights")

    parser = verbs.add_parser("verify", parents=[place], help="sizes, digests, names and shapes of tensors")
    parser.add_argument("names", nargs="*", metavar="NAME", help="(default: all that are here)")
    parser.set_defaults(func=weights_command, verb="verify_weights")

    parser = verbs.add_parser("convert", parents=[place, halves], help="a checkpoint, or a zip of them, from this disk")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--name", default="", metavar="NAME", help="of the weights (default: by the file's name)")
    parser.add_argument("--replace", action="store_true", help="even if they are here already")
    parser.set_defaults(func=weights_command, verb="convert_weights")


def weights_command(options: argparse.Namespace) -> int:
    """One of the verbs of `weights`."""
    from backend import published_weights

    return getattr(published_weights, options.verb)(options)


def minutes(text: str) -> float:
    """A time above 0, as argparse wants it."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return float(text)


def positive(text: str) -> int:
    """A whole number above 0, as argparse wants it."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def generate(options: argparse.Namespace) -> int:
    """Generate a clip, or the frames alone, with progress bars; a second run resumes an interrupted one."""
    import shutil

    from backend.console import progress_bar
    from backend.progress import Run
    from blender_addon.contract.clip import write_clip

    if problem := generate_problem(options):
        options.usage_error(problem)
    if options.orbit:
        return construct(options)
    if options.video:
        return generate_from_video(options)
    published = options.model == PUBLISHED
    for name in ("motion", *PUBLISHED_DEFAULTS):
        if getattr(options, name) is None:
            default = PUBLISHED_DEFAULTS[name] if published and name in PUBLISHED_DEFAULTS else BOUNDS[name].default
            setattr(options, name, default)
    if options.dry_run:
        from backend.published_dry_run import print_generation

        return print_generation(options)

    from backend.data.object_capture import capture_object
    from backend.generate import generate_files, write_generated

    out = options.out or options.frames_only
    work = options.work or out.with_suffix(".work")
    captured = None
    if options.object:
        with progress_bar() as show:
            captured = capture_object(options.object, work / "object", Run(work, on_progress=show))
    with progress_bar() as show:
        frames, clip = generate_files(
            work,
            Run(work, on_progress=show, device=options.device),
            name=out.stem,
            prompt=options.text,
            image=options.image,
            captured=captured,
            model=options.model,
            published={"weights": options.weights, "refine": options.refine} if published else {},
            seed=options.seed,
            motion=options.motion,
            steps=options.steps,
            guidance_motion=options.guidance_motion,
            guidance_static=options.guidance_static,
            preset=options.preset,
            gaussians=options.gaussians,
            fps=BOUNDS["fps"].default if options.fps is None else options.fps,
            sh_degree=options.sh_degree,
            color_space=options.color_space,
            motion_model=options.motion_model,
            result="clip" if options.out else "frames",
        )
    for warning in (clip or frames).provenance["warnings"]:
        print(warning, file=sys.stderr)
    print(f"Motion: {options.motion:g} asked, {frames.motion_measured:.2f} measured")
    if options.frames_only:
        write_generated(frames, options.frames_only)
        print(f"{options.frames_only}: {len(frames.moving)} frames")
    if clip is not None:
        write_clip(options.out, clip)
        print(f"{options.out}: {clip.count} Gaussians, {clip.frame_count} frames")
    if options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def generate_from_video(options: argparse.Namespace) -> int:
    """The clip of a video, or the four views alone, with progress bars; a second run resumes an interrupted one."""
    import shutil

    from backend.console import progress_bar
    from backend.generate import generate_video_files, write_views
    from backend.progress import Run
    from blender_addon.contract.clip import write_clip

    if options.dry_run:
        from backend.published_dry_run import print_generation

        return print_generation(options)
    out = options.out or options.frames_only
    work = options.work or out.with_suffix(".work")
    names = ("preset", "gaussians", "seed", "fps", "sh_degree", "color_space", "motion_model", "model", "weights")
    asked = {name: getattr(options, name) for name in names} | video_options(options)
    asked |= {"name": out.stem, "prompt": options.text}

    def made(*, views_alone: bool):
        with progress_bar() as show:
            run = Run(work, on_progress=show, device=options.device)
            found = generate_video_files(work, run, options.video, views_alone=views_alone, **asked)
        for warning in run.notes:
            print(warning, file=sys.stderr)
        return found

    if options.out:
        clip = made(views_alone=False)
        write_clip(options.out, clip)
        print(f"{options.out}: {clip.count} Gaussians, {clip.frame_count} frames")
    if options.frames_only:
        video, views = made(views_alone=True)
        write_views(video, views, options.frames_only, f"{options.text or 'no text'}, seed {options.seed}")
        print(f"{options.frames_only}: {len(views.cameras)} views of {len(video.frames)} frames")
    if options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def generate_problem(options: argparse.Namespace) -> str:
    """What does not go together in the options of `generate`; empty where all does."""
    if not (options.text.strip() or options.object or options.image or options.orbit or options.video):
        return "name a subject: --text, --object, --image, --video or --orbit"
    kind = next((kind for kind in ("object", "image", "orbit", "video") if getattr(options, kind)), "text")
    if options.pipeline not in (None, PIPELINES[kind]):
        return f"--pipeline {options.pipeline} does not begin with this subject; its own is {PIPELINES[kind]}"
    invented = (options.motion, options.steps, options.guidance_motion, options.guidance_static)
    if options.video and (options.refine or any(one is not None for one in invented)):
        return "--video goes without --refine, --motion, --steps and --guidance-...: its preset decides"
    if not options.video and (said := video_options(options)):
        return f"--{next(iter(said))} goes with --video"
    if options.orbit and (options.text or options.frames_only):
        return "--orbit holds its motion already: it goes with neither --text nor --frames-only"
    if not options.orbit and (options.static or options.surface):
        return "--static and --surface go with --orbit"
    if options.model != PUBLISHED and (options.weights or options.refine or options.dry_run):
        return f"--weights, --refine and --dry-run go with --model {PUBLISHED}"
    if not (options.out or options.frames_only or options.dry_run):
        return "say where the result goes: --out CLIP.npz or --frames-only OUT"
    return ""


def construct(options: argparse.Namespace) -> int:
    """Construct a clip from orbit folders, with a progress bar; a second run resumes an interrupted one."""
    import shutil

    from backend.console import progress_bar
    from backend.pipelines import orbit_video
    from backend.progress import Run
    from blender_addon.contract.clip import write_clip

    work = options.work or options.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    size = options.preset, options.gaussians
    print(orbit_video.estimate_folders(options.orbit, options.static, *size, options.device))
    with progress_bar() as show:
        clip = orbit_video.construct_folders(
            options.orbit,
            options.static,
            options.surface,
            preset=options.preset,
            gaussians=options.gaussians,
            seed=options.seed,
            fps=BOUNDS["fps"].default if options.fps is None else options.fps,
            sh_degree=options.sh_degree,
            color_space=options.color_space,
            motion_model=options.motion_model,
            name=options.out.stem,
            run=Run(work, on_progress=show, device=options.device),
        )
    write_clip(options.out, clip)
    if options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    for warning in clip.provenance["warnings"]:
        print(warning, file=sys.stderr)
    print(f"{options.out}: {clip.count} Gaussians, {clip.frame_count} frames, made on {clip.provenance['engine']}")
    return 0


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
    generator = shipped_generator(options.weights)
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
    from backend.evaluate_video import evaluate

    return evaluate(options)


def train(options: argparse.Namespace) -> int:
    """Train until the plan is done, or somebody stops it."""
    try:
        from backend.training.config import read_config
        from backend.training.trainer import train as run_training
    except ModuleNotFoundError as error:
        hint = 'Install what training needs: pip install ".[train]".'
        raise UserError("no_training", f"The package {error.name} is missing.", hint) from error
    changes = [*options.changes, *([f"weights={options.weights}"] if options.weights else [])]
    config = read_config(options.config, changes)
    what = "4dm" if config.task in ("fourdm", "small_fourdm") else "diffusion4d"
    if what != options.what:
        hint = f"Run: python -m backend train {what} --config ..."
        raise UserError("bad_config", f"{options.config} trains another network than {options.what}.", hint)
    if options.dry_run:
        from backend.published_dry_run import print_training

        return print_training(config)
    if not (options.assets and options.out):
        options.usage_error("--assets and --out are needed")
    done = run_training(
        config,
        options.assets,
        options.out,
        minutes=options.minutes,
        steps=options.steps,
        resume=options.resume,
    )
    return 0 if done else 130


def pack_run(options: argparse.Namespace) -> int:
    """Pack a run for moving."""
    from backend.training.checkpoint import pack

    folder = pack(options.run, options.out)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 2**20:.1f} MiB. Go on with: train diffusion4d --resume {folder} ...")
    return 0


def ship_runs(options: argparse.Namespace) -> int:
    """Make the weights that the program loads."""
    from backend.training.ship import ship, ship_fourdm, ship_published, ship_scene_flow, ship_small_fourdm

    if options.fourdm:
        ship_fourdm(options.fourdm, options.out)
        print(f"{options.out}: motion modules of 4DM")
        return 0
    if options.published:
        ship_published(options.published, options.out)
        print(f"{options.out}: Diffusion4D of published size")
        return 0
    if options.small_fourdm:
        ship_small_fourdm(options.small_fourdm, options.out, name=options.name)
        print(f"{options.out}: {options.name}")
        return 0
    if options.scene_flow:
        ship_scene_flow(options.scene_flow, options.out, name=options.name)
        print(f"{options.out}: {options.name}")
        return 0
    if not (options.motion and options.decoder and options.assets):
        raise UserError("incomplete", "A model needs --motion, --decoder and --assets, or --scene-flow alone.")
    runs = {"motion": options.motion, "decoder": options.decoder, "static": options.static}
    ship({task: run for task, run in runs.items() if run}, options.assets, options.out, name=options.name)
    print(f"{options.out}: {options.name}")
    return 0


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


def warm_up(options: argparse.Namespace) -> int:
    """Compile the kernels into the user's cache, and note for the add-on where the backend lies.

    Where there is a GPU, gsplat's kernels too, also if that has failed before; the CPU does without them.
    """
    from backend.service import paths
    from backend.splatting.engine import choose_engine
    from backend.splatting.rasterize import warm_up

    warm_up(print)
    told: set[str] = set()

    def tell(message: str) -> None:
        if message not in told:
            print(message, flush=True)
            told.add(message)

    engine = choose_engine("auto", tell, retry=True)
    print(*engine.notes, f"Splatting runs on {engine.name}.", sep="\n")
    home = paths.Home(paths.home_folder())
    paths.prepare(home)
    paths.note_installation(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
