# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the command `weights`; what its verbs do is in `published_weights`."""

import argparse
from pathlib import Path


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
    from backend.commands import published_weights

    return getattr(published_weights, options.verb)(options)
