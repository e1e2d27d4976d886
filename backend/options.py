# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several commands share."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from backend.progress import DEVICES, UserError
from blender_addon.contract.requests import (
    BOUNDS,
    COLOR_SPACES,
    CUTOUTS,
    GAUSSIANS_BY_PRESET,
    LOOPS,
    MAX_PROMPT_LENGTH,
    MODELS,
    MOTION_MODELS,
    PRESETS,
    PUBLISHED,
    REPRESENTATIONS,
    SMALL,
)

ORBIT_HELP = (
    "a moving orbit: frame_000.png ... with orbit.json, or multi_frame0.png ... as Diffusion4D's dataset has it"
)
CLIP_SUFFIX = ".npz"
SHEET_SUFFIX = ".png"
NO_FOLDER = "is not called like a folder, which has no dot but that of a version such as .v001"
STATIC_HELP = "the subject from all sides at time 0 (default: the static orbit of Diffusion4D's layout, where one is)"
PUBLISHED_DEFAULTS = {"steps": 50, "guidance_motion": 7.0, "guidance_static": 0.5}  # Diffusion4D, section 4.1


def bounded(name: str) -> Callable[[str], float]:
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


def positive(text: str) -> int:
    """A whole number above 0, as argparse wants it."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def clip_file(text: str) -> Path:
    """A file that a clip can be written to, as argparse wants it: to be told before the work, not after it.

    Its name ends in .npz, so that no slip of the pen replaces a model or a picture.
    """
    path = result_place(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it, such as {path / 'clip.npz'}")
    if path.suffix.lower() != CLIP_SUFFIX:
        raise argparse.ArgumentTypeError(f"{text} does not end in {CLIP_SUFFIX}, as clips do")
    return path


def sheet_or_folder(text: str) -> Path:
    """A PNG file, or a folder, as argparse wants it."""
    path = result_place(text)
    if path.suffix.lower() != SHEET_SUFFIX and not names_folder(path):
        raise argparse.ArgumentTypeError(f"{text} does not end in {SHEET_SUFFIX}, and {NO_FOLDER}")
    return path


def result_place(text: str) -> Path:
    """A file or a folder that can be written, as argparse wants it."""
    path = Path(text)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {folder} is no folder of yours")
    return path


def names_folder(path: Path) -> bool:
    """Whether a result at `path` is a folder: one that exists, or a name that does not look like that of a file."""
    return path.is_dir() or (not path.exists() and re.fullmatch(r"(\.v?\d+)?", path.suffix.lower()) is not None)


def replaced(options: argparse.Namespace) -> str:
    """What would be lost, in a sentence, because the result goes where an input lies; empty where nothing would."""
    for out in ("out", "frames_only"):
        for given in ("object", "image", "video", "orbit", "static", "surface"):
            paths = getattr(options, out, None), getattr(options, given, None)
            if all(path is not None and path.is_file() for path in paths) and paths[0].samefile(paths[1]):
                return f"--{out.replace('_', '-')} would replace the file that --{given} names"
    return ""


def add_home_option(parser: argparse.ArgumentParser) -> None:
    """Where the backend keeps everything."""
    parser.add_argument("--home", type=Path, metavar="DIR",
                        help="data directory (default: KINESPLAT_HOME, else the system's place)")  # fmt: skip


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """What a clip is made of: at most one of them, and what it does."""
    parser.add_argument("--text", default="", metavar="TEXT",
                        help='what it is and does, such as "a dog walks"; alone, it calls up a subject that '
                             "it fits")  # fmt: skip
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--object", type=Path, metavar="FILE.glb",
                         help="a still model (.glb, .gltf); needs Blender's Python module")  # fmt: skip
    subject.add_argument("--image", type=Path, metavar="FILE",
                         help="a picture of the subject (PNG, JPEG or WebP); --text says what it shows")  # fmt: skip
    subject.add_argument("--orbit", type=Path, metavar="FOLDER", help=f"{ORBIT_HELP}; nothing is invented")
    subject.add_argument("--video", type=Path, metavar="FILE|FOLDER",
                         help="a film of it from the front, or its pictures in order")  # fmt: skip


def add_model_option(parser: argparse._ActionsContainer) -> None:
    """Which network invents."""
    parser.add_argument("--model", choices=MODELS, default=SMALL,
                        help=f"{SMALL} (default) comes along; {PUBLISHED} is VideoMV and Diffusion4D, of videos "
                             "4DM, and needs weights and a GPU")  # fmt: skip


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """What every construction is told, beside its pictures."""
    gaussians = BOUNDS["gaussians"]
    numbers = ", ".join(f"{preset} {number:,}" for preset, number in GAUSSIANS_BY_PRESET.items())
    parser.add_argument("--static", type=Path, metavar="FOLDER", help=f"of --orbit: {STATIC_HELP}")
    parser.add_argument("--surface", type=Path, metavar="FILE", help="of --orbit: surface samples at time 0 (.npz)")
    parser.add_argument("--preset", choices=PRESETS, default="preview",
                        help="draft: about 20 s of one core for 24 x 128 pixels; preview (default): 41 s; final: 85 s "
                             "for 24 x 256 pixels; a sixth to a half of it where the surface's movement is "
                             "known")  # fmt: skip
    parser.add_argument("--gaussians", type=bounded("gaussians"), metavar="N",
                        help=f"{gaussians.minimum:,} to {gaussians.maximum:,} (default: {numbers})")  # fmt: skip
    add_seed_option(parser)
    parser.add_argument("--fps", type=bounded("fps"), metavar="N",
                        help="of the clip (default: 24; of a video, as it plays; of a folder, that of its "
                             "pictures)")  # fmt: skip
    parser.add_argument("--sh-degree", type=bounded("sh_degree"), default=0, metavar="D",
                        help="0 to 2: how much colors may change with the view (default: 0, not at all)")  # fmt: skip
    parser.add_argument("--color-space", choices=COLOR_SPACES, default=COLOR_SPACES[0],
                        help="in which Gaussians are fitted and blended (default: %(default)s)")  # fmt: skip
    parser.add_argument("--motion-model", choices=MOTION_MODELS, default=MOTION_MODELS[0],
                        help="blended rigid movements, or a deformation field (default: %(default)s)")  # fmt: skip


def fit_options(options: argparse.Namespace) -> dict:
    """Those of `add_fit_options` that `requests.construction_settings` takes, but for the frame rate."""
    names = ("preset", "gaussians", "seed", "sh_degree", "color_space", "motion_model")
    return {name: getattr(options, name) for name in names}


def add_seed_option(parser: argparse.ArgumentParser) -> None:
    """The seed, as all commands have it."""
    parser.add_argument("--seed", type=bounded("seed"), default=int(BOUNDS["seed"].default), metavar="N",
                        help="of all that is random; the same one gives the same result (default: "
                             "%(default)s)")  # fmt: skip


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """What the work runs on."""
    parser.add_argument("--device", choices=DEVICES, default="auto",
                        help="auto (default): the GPU if it works, or else the CPU")  # fmt: skip


def add_motion_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How a motion is invented; None where nothing is said."""
    motion = parser.add_argument_group("the invented motion")
    for name, bound, text in (
        ("--motion", "motion", "how much it moves: 0 is not at all, 3 a walk (Diffusion4D Eq. 1)"),
        ("--steps", "steps", "of denoising"),
        ("--guidance-motion", "guidance_motion", "how closely text and motion are followed (w1 of Eq. 3)"),
        ("--guidance-static", "guidance_static", "how closely the subject's looks are kept (w2 of Eq. 3)"),
    ):
        limits = BOUNDS[bound]
        default = f"{limits.default:g}"
        if bound in PUBLISHED_DEFAULTS:
            default += f", published {PUBLISHED_DEFAULTS[bound]:g}"
        motion.add_argument(name, type=bounded(bound), metavar="X",
                            help=f"{text}; {limits.minimum:g} to {limits.maximum:g}, default {default}")  # fmt: skip
    motion.add_argument("--loop", choices=LOOPS,
                        help=f"whether it ends as it began; {LOOPS[0]} (default): as the text says, a walk does and a "
                             "death does not")  # fmt: skip
    motion.add_argument("--invent", action="store_true", default=None,
                        help="invent all of it, also where a known motion would fit")  # fmt: skip
    return motion


def motion_options(options: argparse.Namespace) -> dict:
    """Those of `add_motion_options` as `requests.generation_request` takes them, with what was not said."""
    said = {}
    for name in ("motion", "steps", "guidance_motion", "guidance_static"):
        default = PUBLISHED_DEFAULTS.get(name) if options.model == PUBLISHED else None
        value = getattr(options, name)
        said[name] = (BOUNDS[name].default if default is None else default) if value is None else value
    return {**said, "loop": options.loop or LOOPS[0], "known_motions": not options.invent}


def subject_problem(options: argparse.Namespace) -> str:
    """What does not go together in the options of a subject, of whichever command; empty where all does."""
    if not (options.text.strip() or options.object or options.image or options.orbit or options.video):
        return "name a subject: --text, --object, --image, --video or --orbit"
    names = ("motion", "loop", "invent", "steps", "guidance_motion", "guidance_static")
    said = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    if options.video and said:
        return f"--video goes without {said[0]}: its preset decides"
    if not options.video and (of_video := video_options(options)):
        return f"--{next(iter(of_video))} goes with --video"
    if options.orbit and (options.text or said):
        return f"--orbit holds its motion already: it goes without {'--text' if options.text else said[0]}"
    if not options.orbit and (options.static or options.surface):
        return "--static and --surface go with --orbit"
    if options.model == PUBLISHED and options.loop == "yes":
        return f"--loop yes goes with --model {SMALL}"
    return replaced(options)


def one_line(prompt: str) -> str:
    """A prompt as requests have it.

    Raises:
        UserError: it is too long.
    """
    prompt = " ".join(prompt.split())
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise UserError("long_prompt", f"The text is longer than {MAX_PROMPT_LENGTH} letters.", "Shorten it.")
    return prompt


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """What a request of kind `video` is told beside its video; None where nothing is said."""
    video = parser.add_argument_group("the video")
    video.add_argument("--start", type=bounded("video_seconds"), metavar="S",
                       help="seconds from its first frame (default: 0)")  # fmt: skip
    video.add_argument("--end", type=bounded("video_seconds"), metavar="S",
                       help="the same of the last frame to be used")  # fmt: skip
    video.add_argument("--frames", type=bounded("video_frames"), metavar="N",
                       help="how many are taken, evenly; 8 (default) to 64")  # fmt: skip
    video.add_argument("--cutout", choices=CUTOUTS, help="how it is told from its background (default: auto)")
    video.add_argument("--representation", choices=REPRESENTATIONS,
                       help="what follows the video model: Gaussians (default, faster), or the radiance field of "
                            "4Diffusion")  # fmt: skip


def video_options(options: argparse.Namespace) -> dict:
    """Those that were said, as `requests.video_request` takes them; range and frames of a video file."""
    names = ("start", "end", "frames", "cutout", "representation")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def video_inputs(source: Path, start: float, end: float | None, fps: float | None, blob: Callable[[Path], str]) -> dict:
    """A video and its rate as `requests.video_request` takes them.

    Args:
        source: a video file, or a folder of pictures, of which as many are taken as a request may have, evenly.
        start, end: of the range, seconds.
        fps: of the clip, None being as fast as the video; of a folder that of its pictures, None being 24.
        blob: gives a file's sha256.

    Raises:
        UserError: the folder holds no pictures, or too few of them in the range.
    """
    from backend.video.reading import Span, picture_files, pictures_within

    if not source.is_dir():
        return {"video": blob(source), "start": start, "end": end, "fps": fps}
    rate = BOUNDS["fps"].default if fps is None else fps
    chosen, rate = pictures_within(picture_files(source), Span(start, end), rate)
    rate = min(max(rate, BOUNDS["fps"].minimum), BOUNDS["fps"].maximum)
    return {"pictures": [blob(path) for path in chosen], "pictures_fps": rate, "fps": None}
