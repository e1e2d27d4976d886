# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands `serve` and `doctor`. Heavy modules are imported by the command that needs them."""

import argparse
import contextlib
import sys
from pathlib import Path

from backend.options import add_home_option
from backend.progress import DEVICES
from backend.service.settings import EXECUTORS, GPU, LOCAL
from blender_addon.contract.home import home_folder

LOOPBACK = ("127.0.0.1", "localhost", "::1")
USAGE_EXIT = 2


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the service's commands; each sets `func`, a callable from the parsed options to the exit code."""
    executor = argparse.ArgumentParser(add_help=False)
    executor.add_argument(
        "--executor", choices=EXECUTORS, default=LOCAL, help="what runs the jobs: this computer, or a Ray cluster"
    )
    cluster = executor.add_argument_group("with --executor ray (docs/several_machines.md)")
    cluster.add_argument(
        "--ray-address", metavar="HOST:PORT", help="head of the cluster (default: of the one that Ray runs in here)"
    )
    cluster.add_argument(
        "--ray-resource", metavar="NAME", help=f"of which each job takes one (default: {GPU}); for machines without it"
    )
    cluster.add_argument("--ray-folder", type=Path, metavar="DIR", help="for checkpoints; the same one on all machines")

    serve = commands.add_parser("serve", parents=[executor], help="run the backend for Blender, until Ctrl-C")
    serve.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: any free one)")
    serve.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="only this computer is allowed so far")
    serve.add_argument(
        "--min-free-gb", type=float, default=1.0, metavar="GB", help="leave this much disk space free (default: 1)"
    )
    serve.add_argument("--device", choices=DEVICES, default="auto", help="for all jobs (default: the GPU if it works)")
    add_home_option(serve)
    serve.set_defaults(func=run_serve)

    doctor = commands.add_parser("doctor", parents=[executor], help="check whether everything that is needed works")
    doctor.add_argument("--json", action="store_true", help="print what was found for programs")
    add_home_option(doctor)
    doctor.set_defaults(func=run_doctor)


def run_serve(options: argparse.Namespace) -> int:
    """Run the service in the foreground."""
    from backend.progress import UserError
    from backend.service.settings import GIGABYTE, Settings
    from backend.service.supervisor import AlreadyRunningError, serve

    if options.listen not in LOOPBACK:
        return refuse(
            f"The backend does not listen on {options.listen}: other computers need an encrypted connection, which "
            "this version does not offer. Use an SSH tunnel: ssh -L PORT:127.0.0.1:PORT this-computer"
        )
    if not 0 <= options.port <= 65535:
        return refuse("A port is a number from 0 to 65535.")
    if not 0 <= options.min_free_gb < float("inf"):
        return refuse("The free disk space is a number of gigabytes, 0 or more.")
    if options.executor == LOCAL and cluster_settings(options):
        return refuse("--ray-address, --ray-resource and --ray-folder go with --executor ray.")
    settings = Settings(
        home_folder(options.home),
        executor=options.executor,
        **cluster_settings(options),
        port=options.port,
        min_free=int(options.min_free_gb * GIGABYTE),
        device=options.device,
    )

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # whoever read our output has gone; the service does not depend on that
            print(line, flush=True)

    try:
        serve(settings, say)
    except AlreadyRunningError as error:
        return refuse(f"{error} {error.hint}")
    except UserError as error:
        print(f"{error} {error.hint}".rstrip(), file=sys.stderr)
        return 1
    say("The backend has ended. Its jobs are kept.")
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    """Check the installation; exit code 1 where something that is needed does not work."""
    from backend.service.doctor import examine
    from backend.service.settings import Settings

    settings = Settings(home_folder(options.home), executor=options.executor, **cluster_settings(options))
    return examine(settings, as_json=options.json)


def cluster_settings(options: argparse.Namespace) -> dict[str, str]:
    """What the command line says about the Ray cluster."""
    folder = options.ray_folder and str(options.ray_folder.absolute())
    said = {"ray_address": options.ray_address, "ray_resource": options.ray_resource, "ray_folder": folder}
    return {name: value for name, value in said.items() if value}


def refuse(sentence: str) -> int:
    """Say why this command line cannot be followed."""
    print(sentence, file=sys.stderr)
    return USAGE_EXIT
