# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `generate`: from an object, an image, a text, a video or an orbit to a clip."""

import argparse
import sys
from pathlib import Path

from backend.commands.construct import add_result_options, construct
from backend.options import (
    add_fit_options,
    add_model_option,
    add_motion_options,
    add_subject_options,
    add_video_options,
    fit_options,
    motion_options,
    sheet_or_folder,
    subject_problem,
    video_options,
)
from blender_addon.contract.requests import BOUNDS, PIPELINES, PUBLISHED, RESOLUTION_BY_PRESET

USAGE = (  # what is needed alone: all options would push the error that stands below it out of sight
    "%(prog)s [--object FILE.glb | --image FILE | --video FILE|FOLDER | --orbit FOLDER] [--text TEXT] [options] "
    "(--out CLIP.npz | --frames-only OUT)"
)


def add_generate(commands: argparse._SubParsersAction) -> None:
    """`generate`: from an object, an image, a text or an orbit to a clip."""
    parser = commands.add_parser(
        "generate",
        usage=USAGE,
        help="make a clip of an object, an image, a text, a video or an orbit",
        description="Invent a motion for a subject and construct its clip. A second run goes on where one was stopped.",
    )
    add_subject_options(parser)
    parser.add_argument("--pipeline", choices=sorted(set(PIPELINES.values())), help="(default: by the subject)")
    motion = add_motion_options(parser)
    motion.add_argument("--frames-only", type=sheet_or_folder, metavar="OUT",
                        help="write the frames alone, of a video its four views: a contact sheet (OUT.png) or a "
                             "folder of orbits; former ones are replaced")  # fmt: skip
    published = parser.add_argument_group("the published size (docs/published_size.md)")
    add_model_option(published)
    published.add_argument("--weights", type=Path, metavar="DIR",
                           help="where its weights are (default: as for `weights`)")  # fmt: skip
    published.add_argument("--refine", action="store_true",
                           help="refine the still subject through Gaussians (3D-aware denoising)")  # fmt: skip
    published.add_argument("--compile", action="store_true",
                           help="compile what lies between the matrix products of VideoMV's networks: the first use "
                                "takes longer")  # fmt: skip
    published.add_argument("--dry-run", action="store_true",
                           help="only tell parameters and memory of each stage, by each memory plan")  # fmt: skip
    add_video_options(parser)
    add_fit_options(parser)
    add_result_options(parser, needs_out=False)
    parser.set_defaults(func=generate, usage_error=parser.error)


def generate(options: argparse.Namespace) -> int:
    """Generate a clip, or the frames alone, with progress bars; a second run resumes an interrupted one."""
    if problem := generate_problem(options):
        options.usage_error(problem)
    if options.orbit:
        return construct(options)
    if options.dry_run:
        from backend.commands.published_dry_run import print_generation

        return print_generation(options)

    from backend.commands.work_folder import work_folder

    with work_folder(options.work, options.out or options.frames_only) as work:
        (generate_from_video_in if options.video else generate_in)(work, options)
    return 0


def generate_in(work: Path, options: argparse.Namespace) -> None:
    """What `generate` makes of an object, an image or a text, with its checkpoints in the folder `work`."""
    from backend.commands.generate_files import generate_files
    from backend.commands.orbit_folders import write_generated
    from backend.console import progress_bar
    from backend.data.object_capture import capture_object
    from backend.progress import Run
    from blender_addon.contract.clip import write_clip

    captured, motion = None, motion_options(options)
    if options.object:
        with progress_bar() as show:
            resolution = RESOLUTION_BY_PRESET[options.preset]  # as the add-on captures
            run = Run(work, on_progress=show)
            captured = capture_object(options.object, work / "object", run, resolution=resolution)
    with progress_bar() as show:
        frames, clip = generate_files(
            work,
            Run(work, on_progress=show, device=options.device),
            name=(options.out or options.frames_only).stem,
            prompt=options.text,
            image=options.image,
            captured=captured,
            model=options.model,
            published=published_options(options) if options.model == PUBLISHED else {},
            **motion,
            **fit_options(options),
            fps=BOUNDS["fps"].default if options.fps is None else options.fps,
            result="clip" if options.out else "frames",
        )
    for warning in (clip or frames).provenance["warnings"]:
        print(warning, file=sys.stderr)
    print(f"Motion: {motion['motion']:g} asked, {frames.motion_measured:.2f} measured")
    if known := frames.provenance.get("moves_as"):
        print(f"Moves as: {known}. (A known motion; --invent goes without.)")
    if options.frames_only:
        write_generated(frames, options.frames_only)
        print(f"{options.frames_only}: {len(frames.moving)} frames")
    if clip is not None:
        write_clip(options.out, clip)
        print(f"{options.out}: {clip.count} Gaussians, {clip.frame_count} frames")


def published_options(options: argparse.Namespace) -> dict:
    """What `diffusion4d_published.generate` is told beside the request."""
    return {"weights": options.weights, "refine": options.refine, "compiled": options.compile}


def generate_from_video_in(work: Path, options: argparse.Namespace) -> None:
    """What `generate` makes of a video, with its checkpoints in the folder `work`."""
    from backend.commands.generate_files import generate_video_files, write_views
    from backend.console import progress_bar
    from backend.progress import Run
    from blender_addon.contract.clip import write_clip

    asked = {name: getattr(options, name) for name in ("fps", "model", "weights")}
    asked |= fit_options(options) | video_options(options)
    asked |= {"name": (options.out or options.frames_only).stem, "prompt": options.text}

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


def generate_problem(options: argparse.Namespace) -> str:
    """What does not go together in the options of `generate`; empty where all does."""
    if problem := subject_problem(options):
        return problem
    kind = next((kind for kind in ("object", "image", "orbit", "video") if getattr(options, kind)), "text")
    if options.pipeline not in (None, PIPELINES[kind]):
        return f"--pipeline {options.pipeline} does not begin with this subject; its own is {PIPELINES[kind]}"
    if options.video and (options.refine or options.compile):
        return "--refine and --compile are for VideoMV's networks, not for --video"
    if options.orbit and options.frames_only:
        return "--orbit holds its frames already: it goes without --frames-only"
    if options.model != PUBLISHED and (options.weights or options.refine or options.compile or options.dry_run):
        return f"--weights, --refine, --compile and --dry-run go with --model {PUBLISHED}"
    if not (options.out or options.frames_only or options.dry_run):
        return "say where the result goes: --out CLIP.npz or --frames-only OUT"
    return ""
