# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `evaluate video`: 4Diffusion as the product has it, on clips with a truth or on films without one."""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable

import torch

from backend.console import progress_bar
from backend.evaluation.choice import ChosenClip, chosen_clips, named_clips
from backend.evaluation.networks import load_networks
from backend.evaluation.video_cases import cases_of, shipped_maker
from backend.evaluation.video_run import Film, evaluate_films, evaluate_videos
from backend.evaluation.video_truth import MOST_FRAMES, RESOLUTION
from backend.progress import Progress, Run, UserError
from backend.video.framing import Framing
from backend.video.intake import STAGE_SHARES, take_in
from blender_addon.contract.requests import SMALL


def evaluate(options: Namespace) -> int:
    """Do it, and print the table; returns the exit code.

    Raises:
        UserError: the options do not fit together, or what is needed is missing.
        BadFileError: a file of the assets is missing or damaged.
    """
    if options.small_weights and options.model != SMALL:
        raise UserError("bad_options", f"--small-weights goes with --model {SMALL}.")
    cases = cases_of(options.preset, options.case, options.representation, options.seed, options.model)
    networks = load_networks(options.lpips, options.i3d, options.clip)
    if options.video is None and options.frames > MOST_FRAMES:
        raise UserError("frame_count", f"A known truth has at most {MOST_FRAMES} frames.", "Ask for fewer --frames.")
    options.out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as show:
        run = Run(options.out, on_progress=show, device=options.device)
        maker = shipped_maker(options.model, options.preset, options.weights, run, options.small_weights)
        rest = {"networks": networks, "resolution": max(RESOLUTION, maker.model.framing.size), "run": run}
        if options.video:
            summary = evaluate_films(films_of(options, maker.model.framing, show), options.out, maker, cases, **rest)
        else:
            summary = evaluate_videos(
                options.assets,
                clips_of(options),
                options.out,
                maker,
                cases,
                frames=options.frames,
                renderer="fast" if options.fast else "cycles",
                limit=options.limit,
                truths=options.truth,
                **rest,
            )
    print((options.out / "table.md").read_text(encoding="utf-8"))
    for name, reason in summary["failed"].items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"{len(summary['assets'])} clips; look at {options.out / 'table.md'} and {options.out / 'sheets'}")
    return 1 if summary["failed"] else 0


def clips_of(options: Namespace) -> list[ChosenClip]:
    """The clips of the manifest that are asked for."""
    if options.clips:
        return named_clips(options.assets, options.clips)
    return chosen_clips(options.assets, options.split, options.clips_per_asset, families=options.families)


def films_of(options: Namespace, framing: Framing, show: Callable[[Progress], None]) -> list[Film]:
    """The videos that are named, cut out and framed; each with a name of its own.

    Raises:
        UserError: one cannot be read, or shows no subject that can be told from its background.
    """
    seen: Counter[str] = Counter()
    films = []
    for path in options.video[: options.limit]:
        run = Run(options.out, on_progress=show, device=options.device)
        run.plan(STAGE_SHARES)
        intake = take_in(path, run, count=options.frames, framing=framing, method=options.cutout)
        seen[path.stem] += 1
        name = path.stem if seen[path.stem] == 1 else f"{path.stem}_{seen[path.stem]}"
        video = torch.from_numpy(intake.frames).movedim(-1, 1).contiguous()
        films.append(Film(name, options.text, video, tuple(run.notes)))
    return films
