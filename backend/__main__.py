# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m backend ...`: the same parts without Blender's window. Each command's module is imported when it runs."""

import argparse
import logging
import sys
from pathlib import Path

from backend import __version__
from backend.progress import JobCancelled, UserError
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.requests import BOUNDS, PRESETS


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 cancelled."""
    from backend.service import cli as service

    parser = argparse.ArgumentParser(prog="python -m backend", description="Kinesplat's backend")
    parser.add_argument("--version", action="version", version=f"Kinesplat {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    service.add_commands(commands)
    add_generate(commands)
    add_construct(commands)
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


def add_generate(commands: argparse._SubParsersAction) -> None:
    """`generate --orbit FOLDER --out CLIP.npz`: from a request to a clip."""
    parser = commands.add_parser("generate", help="make a clip")
    parser.add_argument(
        "--orbit", type=Path, required=True, metavar="FOLDER", help="a moving orbit that exists already"
    )
    add_construction_options(parser)


def add_construct(commands: argparse._SubParsersAction) -> None:
    """`construct --orbit FOLDER [--static FOLDER] --out CLIP.npz`: the construction stage alone."""
    parser = commands.add_parser("construct", help="construct a clip from a moving orbit")
    parser.add_argument("--orbit", type=Path, required=True, metavar="FOLDER", help="the moving orbit")
    add_construction_options(parser)


def add_construction_options(parser: argparse.ArgumentParser) -> None:
    """What both ways to a clip have in common."""
    gaussians = BOUNDS["gaussians"]
    parser.add_argument("--static", type=Path, metavar="FOLDER", help="the subject from all sides at time 0")
    parser.add_argument("--surface", type=Path, metavar="FILE", help="surface samples at time 0 (.npz)")
    parser.add_argument("--preset", choices=PRESETS, default="preview")
    parser.add_argument("--gaussians", type=bounded("gaussians"), metavar="N",
                        help=f"{gaussians.minimum} to {gaussians.maximum}; by default as the preset says")  # fmt: skip
    parser.add_argument("--seed", type=bounded("seed"), default=int(BOUNDS["seed"].default))
    parser.add_argument("--fps", type=bounded("fps"), default=BOUNDS["fps"].default)
    parser.add_argument("--out", type=Path, required=True, metavar="CLIP.npz")
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="where checkpoints are kept (default: beside the clip)")  # fmt: skip
    parser.set_defaults(func=construct)


def bounded(name: str):
    """A number within the contract's bounds, as argparse wants it."""
    bound = BOUNDS[name]
    whole = isinstance(bound.default, int)

    def parse(text: str) -> float:
        value = int(text) if whole else float(text)
        if not bound.minimum <= value <= bound.maximum:
            raise argparse.ArgumentTypeError(f"must lie between {bound.minimum} and {bound.maximum}")
        return value

    parse.__name__ = name
    return parse


def construct(options: argparse.Namespace) -> int:
    """Construct a clip from orbit folders, with a progress bar; a second run resumes an interrupted one."""
    import shutil

    from backend.console import progress_bar
    from backend.pipelines import orbit_video
    from backend.progress import Run
    from blender_addon.contract.clip import write_clip

    work = options.work or options.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    with progress_bar() as show:
        clip = orbit_video.construct_folders(
            options.orbit,
            options.static,
            options.surface,
            preset=options.preset,
            gaussians=options.gaussians,
            seed=options.seed,
            fps=options.fps,
            name=options.out.stem,
            run=Run(work, on_progress=show),
        )
    write_clip(options.out, clip)
    if options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{options.out}: {clip.count} Gaussians, {clip.frame_count} frames")
    return 0


def warm_up(options: argparse.Namespace) -> int:
    """Compile the CPU kernels into the user's cache, and note for the add-on where the backend lies."""
    from backend.service import paths
    from backend.splatting.rasterize import warm_up

    warm_up(print)
    home = paths.Home(paths.home_folder())
    paths.prepare(home)
    paths.note_installation(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
