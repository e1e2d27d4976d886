# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `export`: a clip, or splat files of whichever program, as files that other programs read."""

import argparse
import sys
from pathlib import Path

from backend.options import NO_FOLDER, bounded, names_folder, result_place
from blender_addon.contract.clip import COLOR_SPACES
from blender_addon.contract.requests import BOUNDS

FORMATS = ("ply", "usd", "glb")
UP_AXES = {"z": "Z", "y": "Y", "y-down": "Y_DOWN"}


def add_export(commands: argparse._SubParsersAction) -> None:
    """`export CLIP.npz|SPLATS|FOLDER --to ply|usd|glb --out PATH`: splat files for other programs."""
    parser = commands.add_parser(
        "export",
        help="write a clip or splat files as PLY sequence, USD or glTF",
        description="Write a clip as files that other programs read: a PLY file for each frame, one animated USD file, "
        "or one moment as glTF. In place of a clip it takes a splat file (.ply, .spz, .splat, .sog, .glb), or a "
        "folder of numbered ones. docs/exchange.md says what each of them keeps.",
    )
    parser.add_argument("clip", type=Path, metavar="CLIP.npz|SPLATS|FOLDER")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format")
    parser.add_argument("--out", type=result_place, required=True, metavar="PATH",
                        help="of ply: NAME.ply, beside which NAME_0001.ply and so on are made, or a folder; of usd: "
                             "NAME.usd, .usdc or .usda; of glb: NAME.glb")  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--frames", type=frame_range, metavar="A-B",
                       help="stored frames, counted from 0 (default: all of them)")  # fmt: skip
    which.add_argument("--frame", type=float, metavar="T",
                       help="one moment alone, also between two frames (of glb, default: 0)")  # fmt: skip
    parser.add_argument("--space", choices=("object", "clip"), default="object",
                        help="object (default): place and size of what the clip was made from; clip: about the origin, "
                             "its longest side 1")  # fmt: skip
    parser.add_argument("--up", choices=UP_AXES,
                        help="of ply, which axis points up: z (default) as in Blender, y as in Houdini and Maya, "
                             "y-down for viewers that turn PLY files over, such as SuperSplat")  # fmt: skip
    parser.add_argument("--color-space", choices=COLOR_SPACES,
                        help="of the file (default: that of the clip; of ply srgb, as its readers expect)")  # fmt: skip
    given = parser.add_argument_group("splat files that are taken")
    given.add_argument(
        "--from-up", choices=UP_AXES, help="which axis points up in them (default: as they or their format say)"
    )
    given.add_argument(
        "--fps",
        type=bounded("fps"),
        help=f"frames per second where they do not say it (default {BOUNDS['fps'].default:g})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    parser.set_defaults(func=export, usage_error=parser.error)


def export(options: argparse.Namespace) -> int:
    """Write the files, with a progress bar; whoever stops it leaves nothing behind."""
    if problem := export_problem(options):
        options.usage_error(problem)
    try:
        written = write_files(options)
    except KeyboardInterrupt:
        print("Cancelled. Nothing was written.", file=sys.stderr)
        return 130
    print(written)
    return 0


def write_files(options: argparse.Namespace) -> str:
    """Write what the options say, and tell it in a sentence.

    Raises:
        UserError: there is no such frame, or nothing at it, files are there already, or a package is missing.
        BadFileError: the clip is none, or splat files are none or not one clip.
        OSError: something cannot be read or written.
    """
    import numpy as np

    from backend.exchange.moments import Shot, still
    from backend.exchange.usd import require_usd
    from backend.progress import UserError
    from blender_addon.contract.placement import UP_AXES as TURNS

    if options.to == "usd":
        require_usd()
    clip = read_input(options)
    out = options.out
    if options.to == "ply" and names_folder(out):
        out = out / f"{options.clip.resolve().stem}.ply"
    frames = chosen_frames(options, clip.frame_count)
    sequence = options.to == "ply" and options.frame is None
    if not options.overwrite:
        refuse_existing(out, sequence)
    matrix = np.eye(4) if options.space == "clip" else np.asarray(clip.to_object, np.float64)
    up_axis = UP_AXES[options.up or "z"]
    if options.to == "ply":
        matrix = TURNS[up_axis] @ matrix
    if options.to == "glb" or options.frame is not None:
        (moment,), frames = frames, [0.0]
        clip = still(clip, moment)
        if not clip.count:
            raise UserError("nothing_there", f"{options.clip} shows nothing at frame {moment:g}.",
                            "Choose another moment with --frame.")  # fmt: skip
    color_space = options.color_space or ("srgb" if options.to == "ply" else clip.color_space)
    shot = Shot(clip, frames, matrix, color_space)
    for note in notes(shot):
        print(note, file=sys.stderr)
    where = write_shot(options.to, out, shot, up_axis, sequence)
    return f"{where}: {clip.count} Gaussians, {len(frames)} frame{'s' if len(frames) > 1 else ''}"


def read_input(options: argparse.Namespace):
    """The clip that the options name, of whichever kind of file.

    Raises:
        UserError: a folder holds no splat files, or several sequences of them.
        BadFileError, OSError: see `write_files`.
    """
    from backend.exchange.webp import decode_webp
    from backend.progress import UserError
    from blender_addon.contract.clip import read_clip
    from blender_addon.contract.splat_clip import read_splat_clip, sequences
    from blender_addon.contract.splat_files.opening import SUFFIXES

    path = options.clip
    if not (path.is_dir() or path.suffix.lower() in SUFFIXES):
        return read_clip(path)
    paths = [path]
    if path.is_dir():
        found = sequences(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if len(found) != 1:
            names = ", ".join(files[0].name for files in found[:5])
            what = f"several clips, which begin with {names}" if found else "no splat files"
            raise UserError(
                "not_one_clip", f"{path} holds {what}.", "Name a folder with the numbered files of one clip."
            )
        (paths,) = found
    up_axis = UP_AXES.get(options.from_up)
    fps = options.fps or BOUNDS["fps"].default
    clip, said = read_splat_clip(paths, fps=fps, decode_webp=decode_webp, up_axis=up_axis)
    for sentence in said:
        print(f"{sentence}.", file=sys.stderr)
    return clip


def write_shot(to: str, out: Path, shot, up_axis: str, sequence: bool) -> str:
    """Write the frames in one of FORMATS, with a progress bar; returns where they are."""
    from backend.console import progress_bar
    from backend.exchange import gltf, ply, usd
    from backend.progress import Run, UserError

    with progress_bar() as show:
        run = Run(out.parent, on_progress=show)
        run.plan({"Writing frames": 1})
        run.begin("Writing frames")
        where = str(out)
        try:
            if to == "usd":
                usd.write_usd(out, shot, run.report)
            elif to == "glb":
                gltf.write_glb(out, shot)
            elif sequence:
                files = ply.write_sequence(out, shot, up_axis, run.report)
                where = f"{files[0]} to {files[-1].name}" if len(files) > 1 else str(files[0])
            else:
                ply.write_moment(out, shot, up_axis)
        except ValueError as error:  # the clip's own transform is flat
            raise UserError("flat_clip", str(error), "Try --space clip.") from error
        run.finish()
    return where


def export_problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the options alone."""
    from backend.exchange.usd import SUFFIXES

    suffixes = {"ply": (".ply",), "usd": SUFFIXES, "glb": (".glb",)}[options.to]
    folder = options.to == "ply" and names_folder(options.out)
    if not folder and options.out.suffix.lower() not in suffixes:
        more = f"; as a folder it {NO_FOLDER}" if options.to == "ply" else ""
        return f"--out must end in {' or '.join(suffixes)}{more}"
    if options.clip.suffix.lower() == ".npz" and (options.from_up or options.fps):
        return "--from-up and --fps go with splat files: a clip says them itself"
    if folder and options.frame is not None:
        return "--out must end in .ply where --frame asks for a single file"
    if options.to == "glb" and options.frames:
        return "splats have no time in glTF: choose a moment with --frame, or another format"
    if options.up and options.to != "ply":
        return "--up goes with --to ply: Z is up in USD files, Y in glTF files"
    return None


def frame_range(text: str) -> tuple[int, int]:
    """`3-8`: the first and the last frame, as argparse wants it."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
        raise argparse.ArgumentTypeError("must be two frames such as 0-11")
    return int(first), int(last)


def chosen_frames(options: argparse.Namespace, count: int) -> list[float]:
    """The frames that the options name.

    Raises:
        UserError: the clip does not have them.
    """
    from backend.progress import UserError

    if options.frames:
        first, last = options.frames
    elif options.frame is not None or options.to == "glb":
        first = last = options.frame or 0.0
    else:
        first, last = 0, count - 1
    if not 0 <= first <= last <= count - 1:
        raise UserError("no_such_frame", f"{options.clip} has the frames 0 to {count - 1}.")
    return [first] if first == last else list(range(first, last + 1))


def refuse_existing(out: Path, sequence: bool) -> None:
    """Refuse to replace files.

    Raises:
        UserError: there are such files already.
    """
    from backend.progress import UserError
    from blender_addon.contract.splat_files.ply_writer import existing_sequence

    former = existing_sequence(out) if sequence else [out]
    if former and former[0].exists():
        which = former[0] if len(former) == 1 else f"{former[0]} and {len(former) - 1} more"
        raise UserError("file_exists", f"{which} would be replaced.", "Choose another --out, or add --overwrite.")


def notes(shot) -> list[str]:
    """What the file will not show as the clip does, in sentences."""
    from blender_addon.contract.spherical_harmonics import SHARED_DEGREE

    said = []
    if shot.clip.sh_degree > SHARED_DEGREE:
        said.append(f"Spherical harmonics above degree {SHARED_DEGREE} are left out: the format has none.")
    if shot.color_space != shot.clip.color_space:
        spaces = f"{shot.clip.color_space} to {shot.color_space}"
        said.append(f"Colors are converted from {spaces}: soft edges come out a little different.")
    return said
