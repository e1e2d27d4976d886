# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `train`: training of the networks, `train pack` and `train ship` for what comes of it."""

import argparse
from pathlib import Path

from backend.options import positive
from backend.progress import UserError


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
    parser.add_argument("--config", required=True, action="append", metavar="FILE|NAME", dest="configs",
                        help="TOML, or one of backend/training/configs; a second one, such as gpu, changes lines of "
                             "the first")  # fmt: skip
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
    parser.add_argument("--pack", type=Path, metavar="DIR",
                        help="folder that gets the run as small files (see `train pack`), at the start, at every save "
                             "and at the end, which --minutes then includes")  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="DIR",
                        help="published weights, for the published size (default: as for `weights`)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="only tell parameters and memory of each stage of the published size")  # fmt: skip
    parser.set_defaults(func=train, usage_error=parser.error, what=what)


def add_results_of_training(kinds: argparse._SubParsersAction) -> None:
    """`train pack` and `train ship`."""
    packing = kinds.add_parser("pack", help="newest checkpoint of a run as small files, to go on elsewhere")
    packing.add_argument("run", type=Path, metavar="RUN|WEIGHTS",
                         help="run, or weights such as those in backend/weights, of which each network becomes a "
                              "packed run in DIR")  # fmt: skip
    packing.add_argument("--out", type=Path, required=True, metavar="DIR", help="for --resume on the other machine")
    packing.set_defaults(func=pack_run)
    shipping = kinds.add_parser("ship", help="weights that the program loads, from finished runs")
    shipping.add_argument("--motion", type=Path, metavar="RUN", help="of kinesplat_small_motion")
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
    shipping.add_argument("--base", type=Path, metavar="RUN",
                          help="of --small-4dm: where the run of its base is now")  # fmt: skip
    shipping.add_argument("--assets", type=Path, metavar="DIR", help="what the runs were trained on")
    shipping.add_argument("--name", default="kinesplat-small", help="with a version, for the provenance of clips")
    shipping.add_argument("--out", type=Path, required=True, metavar="DIR")
    shipping.set_defaults(func=ship_runs)


def minutes(text: str) -> float:
    """A time above 0, as argparse wants it."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return float(text)


def train(options: argparse.Namespace) -> int:
    """Train until the plan is done, or somebody stops it."""
    try:
        from backend.training.config import read_config
        from backend.training.trainer import train as run_training
    except ModuleNotFoundError as error:
        hint = 'Install what training needs: pip install ".[train]".'
        raise UserError("no_training", f"The package {error.name} is missing.", hint) from error
    changes = [*options.changes, *([f"weights={options.weights}"] if options.weights else [])]
    source, *overlays = options.configs
    config = read_config(source, changes, overlays)
    what = "4dm" if config.task in ("fourdm", "small_fourdm") else "diffusion4d"
    if what != options.what:
        hint = f"Run: python -m backend train {what} --config ..."
        raise UserError("bad_config", f"{source} trains another network than {options.what}.", hint)
    if options.dry_run:
        from backend.commands.published_dry_run import print_training

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
        packed=options.pack,
        began=options.began,
    )
    return 0 if done else 130


def pack_run(options: argparse.Namespace) -> int:
    """Pack a run, or those of weights, for moving."""
    from backend.models.shipped import CARD
    from backend.training.packed import pack
    from backend.training.unship import unship

    shipped = (options.run / CARD).is_file()
    for folder in unship(options.run, options.out) if shipped else [pack(options.run, options.out)]:
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {size / 2**20:.1f} MiB. Go on with: train diffusion4d|4dm --resume {folder} ...")
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
        ship_small_fourdm(options.small_fourdm, options.out, name=options.name, base=options.base)
        print(f"{options.out}: {options.name}")
        return 0
    if options.scene_flow:
        ship_scene_flow(options.scene_flow, options.out, name=options.name)
        print(f"{options.out}: {options.name}")
        return 0
    if not (options.motion and options.assets):
        alone = "--scene-flow, --small-4dm, --published or --4dm"
        raise UserError("incomplete", f"A model needs --motion and --assets, or one of {alone}, alone.")
    runs = {"motion": options.motion, "static": options.static}
    ship({task: run for task, run in runs.items() if run}, options.assets, options.out, name=options.name)
    print(f"{options.out}: {options.name}")
    return 0
