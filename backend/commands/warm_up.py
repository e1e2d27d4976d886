# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `warm-up`: compile the kernels, and tell the add-on where the backend lies."""

import argparse


def add_warm_up(commands: argparse._SubParsersAction) -> None:
    """`warm-up`: what set-up ends with."""
    parser = commands.add_parser("warm-up", help="the end of set-up: compile the kernels")
    parser.set_defaults(func=warm_up)


def warm_up(options: argparse.Namespace) -> int:
    """Compile the kernels of all pipelines into the user's cache, and note for the add-on where the backend lies.

    Where there is a GPU, gsplat's kernels too, also if that has failed before; the CPU does without them.
    """
    from backend.service import paths, worker
    from backend.splatting.engine import choose_engine
    from backend.splatting.rasterize import warm_up
    from blender_addon.contract.home import home_folder

    for kind in worker.PIPELINES:
        worker.load_pipeline(f"{worker.__name__}:PIPELINES", kind)  # which makes their kernels known
    warm_up(print)
    told: set[str] = set()

    def tell(message: str) -> None:
        if message not in told:
            print(message, flush=True)
            told.add(message)

    engine = choose_engine("auto", tell, retry=True)
    print(*engine.notes, f"Splatting runs on {engine.name}.", sep="\n")
    home = paths.Home(home_folder())
    paths.prepare(home)
    paths.note_installation(home)
    return 0
