# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m backend ...`: the same parts without Blender's window. Heavy modules are imported by their command."""

import argparse
import logging
import os
import sys
import time

from backend import STARTED, __version__
from backend.interpreter import environment_held

CANCELLED = "Cancelled. What was finished is kept: the same command goes on from there."


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 cancelled, 141 not read."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # also while modules are imported
        print(CANCELLED, file=sys.stderr)
        return 130


def _run(arguments: list[str] | None) -> int:
    from backend.commands.construct import add_construct
    from backend.commands.evaluate import add_evaluate
    from backend.commands.export import add_export
    from backend.commands.generate import add_generate
    from backend.commands.jobs import add_jobs
    from backend.commands.render_dataset import add_render_dataset
    from backend.commands.train import add_train
    from backend.commands.warm_up import add_warm_up
    from backend.commands.weights import add_weights
    from backend.progress import JobCancelled, UserError
    from backend.service import cli as service
    from blender_addon.contract.arrays import BadFileError

    parser = argparse.ArgumentParser(prog="python -m backend", description="Kinesplat's backend")
    parser.add_argument("--version", action="version", version=f"Kinesplat {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    service.add_commands(commands)
    add_jobs(commands)
    add_generate(commands)
    add_construct(commands)
    add_export(commands)
    add_evaluate(commands)
    add_train(commands)
    add_render_dataset(commands)
    add_weights(commands)
    add_warm_up(commands)

    options = parser.parse_args(arguments)
    options.began = STARTED if arguments is None else time.monotonic()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = options.func(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read the results has enough of them, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # there goes what is left at the end
        return 141  # as shells say it
    except UserError as error:
        print(f"{error} {error.hint}".rstrip(), file=sys.stderr)
        return 1
    except BadFileError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        file = error.filename2 or error.filename or "A file"  # the second of a pair is the one that people know
        print(f"{file} cannot be used: {error.strerror or error}.", file=sys.stderr)
        return 1
    except JobCancelled:
        print(CANCELLED, file=sys.stderr)
        return 130


def open_streams() -> None:
    """Open the standard streams that whoever started this process has closed, as some launchers of services do.

    The first sockets and databases would get their numbers else, and child processes take them for their streams.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


if __name__ == "__main__":
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # names may hold letters that a terminal or a log file lacks
    with environment_held():
        sys.exit(main())
