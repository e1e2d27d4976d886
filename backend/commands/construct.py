# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `construct`: the construction stage alone, from orbit folders to a clip."""

import argparse
import sys
from pathlib import Path

from backend.options import ORBIT_HELP, add_device_option, add_fit_options, clip_file, fit_options, replaced
from blender_addon.contract.requests import BOUNDS


def add_construct(commands: argparse._SubParsersAction) -> None:
    """`construct --orbit FOLDER [--static FOLDER] --out CLIP.npz`: the construction stage alone."""
    parser = commands.add_parser("construct", help="construct a clip from a moving orbit")
    parser.add_argument("--orbit", type=Path, required=True, metavar="FOLDER", help=ORBIT_HELP)
    add_fit_options(parser)
    add_result_options(parser, needs_out=True)
    parser.set_defaults(func=construct, usage_error=parser.error)


def add_result_options(parser: argparse.ArgumentParser, *, needs_out: bool) -> None:
    """Where the work is done and its result goes."""
    add_device_option(parser)
    parser.add_argument("--out", type=clip_file, required=needs_out, metavar="CLIP.npz",
                        help="the clip; a former one is replaced")  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="where checkpoints are kept (default: beside the result)")  # fmt: skip


def construct(options: argparse.Namespace) -> int:
    """Construct a clip from orbit folders, with a progress bar; a second run resumes an interrupted one."""
    from backend.commands.work_folder import work_folder
    from backend.console import progress_bar
    from backend.pipelines import orbit_video
    from backend.progress import Run
    from blender_addon.contract.clip import write_clip

    if problem := replaced(options):
        options.usage_error(problem)
    size = options.preset, options.gaussians
    with work_folder(options.work, options.out) as work:
        estimate = orbit_video.estimate_folders(options.orbit, options.static, *size, options.device)
        print(estimate, file=sys.stderr)
        with progress_bar() as show:
            clip = orbit_video.construct_folders(
                options.orbit,
                options.static,
                options.surface,
                **fit_options(options),
                fps=BOUNDS["fps"].default if options.fps is None else options.fps,
                name=options.out.stem,
                run=Run(work, on_progress=show, device=options.device),
            )
        write_clip(options.out, clip)
    for warning in clip.provenance["warnings"]:
        print(warning, file=sys.stderr)
    print(f"{options.out}: {clip.count} Gaussians, {clip.frame_count} frames, made on {clip.provenance['engine']}")
    return 0
