# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `construct`: the construction stage alone, from orbit folders to a clip."""

import argparse
import sys
from pathlib import Path

from backend.options import ORBIT_HELP, STATIC_HELP, bounded, result_file
from backend.progress import DEVICES
from blender_addon.contract.requests import BOUNDS, COLOR_SPACES, MOTION_MODELS, PRESETS


def add_construct(commands: argparse._SubParsersAction) -> None:
    """`construct --orbit FOLDER [--static FOLDER] --out CLIP.npz`: the construction stage alone."""
    parser = commands.add_parser("construct", help="construct a clip from a moving orbit")
    parser.add_argument("--orbit", type=Path, required=True, metavar="FOLDER", help=ORBIT_HELP)
    add_construction_options(parser)


def add_construction_options(parser: argparse.ArgumentParser, *, needs_out: bool = True) -> None:
    """What both ways to a clip have in common."""
    gaussians = BOUNDS["gaussians"]
    parser.add_argument("--static", type=Path, metavar="FOLDER", help=STATIC_HELP)
    parser.add_argument("--surface", type=Path, metavar="FILE", help="surface samples at time 0 (.npz)")
    parser.add_argument("--preset", choices=PRESETS, default="preview",
                        help="draft: about 20 s of one core for 24 x 128 pixels, 2,000 Gaussians; preview (default): "
                        "41 s, 5,000; final: 85 s for 24 x 256 pixels, 20,000; a sixth to a half of it where "
                        "the surface's movement is known")  # fmt: skip
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
    parser.add_argument("--out", type=result_file, required=needs_out, metavar="CLIP.npz")
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="where checkpoints are kept (default: beside the clip)")  # fmt: skip
    parser.set_defaults(func=construct)


def construct(options: argparse.Namespace) -> int:
    """Construct a clip from orbit folders, with a progress bar; a second run resumes an interrupted one."""
    from backend.commands.work_folder import work_folder
    from backend.console import progress_bar
    from backend.pipelines import orbit_video
    from backend.progress import Run
    from blender_addon.contract.clip import write_clip

    size = options.preset, options.gaussians
    with work_folder(options.work, options.out) as work:
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
    for warning in clip.provenance["warnings"]:
        print(warning, file=sys.stderr)
    print(f"{options.out}: {clip.count} Gaussians, {clip.frame_count} frames, made on {clip.provenance['engine']}")
    return 0
