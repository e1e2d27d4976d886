# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands `serve`, `doctor` and `jobs`. Heavy modules are imported by the command that needs them."""

import argparse
import contextlib
import sys
from pathlib import Path

from backend.options import (
    ORBIT_HELP,
    STATIC_HELP,
    add_video_options,
    bounded,
    positive,
    result_file,
    video_inputs,
    video_options,
)
from backend.progress import DEVICES
from backend.service.settings import EXECUTORS, GPU, LOCAL
from blender_addon.contract.home import home_folder
from blender_addon.contract.requests import BOUNDS, GAUSSIANS_BY_PRESET, MODELS, PRESETS, SMALL

IDENTITY = [[float(row == column) for column in range(4)] for row in range(4)]  # object space is clip space
LOOPBACK = ("127.0.0.1", "localhost", "::1")
USAGE_EXIT = 2


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the service's commands; each sets `func`, a callable from the parsed options to the exit code."""
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument(
        "--home", type=Path, metavar="DIR", help="data directory (default: KINESPLAT_HOME, else the system's place)"
    )

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

    serve = commands.add_parser("serve", parents=[home, executor], help="run the backend for Blender, until Ctrl-C")
    serve.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: any free one)")
    serve.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="only this computer is allowed so far")
    serve.add_argument(
        "--min-free-gb", type=float, default=1.0, metavar="GB", help="leave this much disk space free (default: 1)"
    )
    serve.add_argument("--device", choices=DEVICES, default="auto", help="for all jobs (default: the GPU if it works)")
    serve.set_defaults(func=run_serve)

    doctor = commands.add_parser(
        "doctor", parents=[home, executor], help="check whether everything that is needed works"
    )
    doctor.set_defaults(func=run_doctor)

    jobs = commands.add_parser("jobs", help="submit, watch, cancel, fetch and list jobs of a running backend")
    verbs = jobs.add_subparsers(metavar="VERB", required=True)

    submit = verbs.add_parser("submit", parents=[home], help="submit a moving orbit or a video")
    subject = submit.add_mutually_exclusive_group(required=True)
    subject.add_argument("--orbit", type=Path, metavar="FOLDER", help=ORBIT_HELP)
    subject.add_argument("--video", type=Path, metavar="FILE|FOLDER", help="a film from the front, or its pictures")
    submit.add_argument("--static", type=Path, metavar="FOLDER", help=f"of --orbit: {STATIC_HELP}")
    submit.add_argument("--surface", type=Path, metavar="FILE", help="of --orbit: surface samples at time 0 (.npz)")
    submit.add_argument("--text", default="", metavar="TEXT", help="of --video: what the subject is and does")
    submit.add_argument("--model", choices=MODELS, default=SMALL, help="of --video (default: %(default)s)")
    add_video_options(submit)
    submit.add_argument("--name", help="name of the job (default: the folder's or the film's)")
    submit.add_argument("--preset", choices=PRESETS, default="preview", help="default: preview")
    numbers = ", ".join(f"{preset} {number:,}" for preset, number in GAUSSIANS_BY_PRESET.items())
    submit.add_argument("--gaussians", type=bounded("gaussians"), metavar="N", help=f"default: {numbers}")
    submit.add_argument("--seed", type=bounded("seed"), default=int(BOUNDS["seed"].default), metavar="N")
    submit.add_argument(
        "--fps", type=bounded("fps"), help="default: 24; of a video, as it plays; of a folder, its pictures'"
    )
    submit.add_argument("--watch", action="store_true", help="wait for its end and show its progress")
    submit.add_argument("--out", type=result_file, metavar="CLIP.npz", help="wait for its end and write the clip here")
    submit.set_defaults(func=run_submit, usage_error=submit.error)

    for verb, text, func in (
        ("watch", "show a job's progress until it ends", run_watch),
        ("cancel", "cancel a job", run_cancel),
        ("fetch", "write a job's clip to a file", run_fetch),
    ):
        parser = verbs.add_parser(verb, parents=[home], help=text)
        parser.add_argument("job", metavar="JOB", help="the job's id, or its first characters")
        if verb == "fetch":
            parser.add_argument("--out", type=result_file, required=True, metavar="CLIP.npz")
        parser.set_defaults(func=func)

    listing = verbs.add_parser("list", parents=[home], help="list the newest jobs")
    listing.add_argument("--limit", type=positive, default=20, metavar="N", help="how many (default: 20)")
    listing.set_defaults(func=run_list)


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

    return examine(Settings(home_folder(options.home), executor=options.executor, **cluster_settings(options)))


def cluster_settings(options: argparse.Namespace) -> dict[str, str]:
    """What the command line says about the Ray cluster."""
    folder = options.ray_folder and str(options.ray_folder.absolute())
    said = {"ray_address": options.ray_address, "ray_resource": options.ray_resource, "ray_folder": folder}
    return {name: value for name, value in said.items() if value}


def run_submit(options: argparse.Namespace) -> int:
    """Send an orbit folder or a video as a request."""
    import uuid

    if options.orbit and (options.text or video_options(options)):
        options.usage_error("--text, --start, --end, --frames, --cutout and --representation go with --video")
    if options.video and (options.static or options.surface):
        options.usage_error("--static and --surface go with --orbit")
    client = connect(options)
    request = request_of_video(options, client) if options.video else request_of_orbit(options, client)
    job = client.submit(request, str(uuid.uuid4()), "command-line")
    print(job["id"], flush=True)
    if not (options.watch or options.out):
        return 0
    try:
        job = watch(client, job["id"])
    except KeyboardInterrupt:
        return left_alone(job["id"])
    if job["state"] == "succeeded" and options.out:
        try:
            client.fetch(job["id"], options.out)
        except OSError:
            print(f"The clip is kept. Write it elsewhere with: jobs fetch {job['id']} --out CLIP.npz", file=sys.stderr)
            raise
        print(options.out)
    return outcome(job)


def request_of_orbit(options: argparse.Namespace, client) -> dict:
    """A request of kind `orbit`, whose blobs have been sent."""
    from backend.splatting.orbit_folders import OrbitFiles, find_orbits
    from blender_addon.contract.requests import orbit_request

    def sent(orbit: OrbitFiles) -> dict:
        return {"frames": [client.upload(path) for path in orbit.frames], "cameras": orbit.cameras.to_json()}

    moving, static = (orbit and sent(orbit) for orbit in find_orbits(options.orbit, options.static))
    surface = client.upload(options.surface) if options.surface else None
    name, fps = options.name or options.orbit.resolve().name, options.fps or BOUNDS["fps"].default
    return orbit_request(name, moving, static, surface, IDENTITY, fps=fps, **construction_of(options))


def request_of_video(options: argparse.Namespace, client) -> dict:
    """A request of kind `video`, whose blobs have been sent."""
    from blender_addon.contract.requests import video_request

    said = video_options(options)
    inputs = video_inputs(options.video, said.pop("start", 0.0), said.pop("end", None), options.fps, client.upload)
    settings = {"prompt": options.text, "model": options.model, **said}
    name = options.name or options.video.resolve().stem
    return video_request(name, IDENTITY, **inputs, **settings, **construction_of(options))


def construction_of(options: argparse.Namespace) -> dict:
    """What `requests.construction_settings` takes of the options."""
    return {"preset": options.preset, "gaussians": options.gaussians, "seed": options.seed}


def run_watch(options: argparse.Namespace) -> int:
    """Follow a job to its end. Ctrl-C ends the watching, not the job."""
    client = connect(options)
    job_id = find(client, options.job)
    try:
        return outcome(watch(client, job_id))
    except KeyboardInterrupt:
        return left_alone(job_id)


def run_cancel(options: argparse.Namespace) -> int:
    """Cancel a job and wait until it has ended."""
    client = connect(options)
    job = client.cancel(find(client, options.job))
    if job["state"] == "cancelling":
        job = client.watch(job["id"])
    print(f"{job['id']} {job['state']}")
    return 0 if job["state"] == "cancelled" else 1


def run_fetch(options: argparse.Namespace) -> int:
    """Write a job's clip to a file."""
    client = connect(options)
    size = client.fetch(find(client, options.job), options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB")
    return 0


def run_list(options: argparse.Namespace) -> int:
    """A table of the newest jobs."""
    import datetime

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("job", no_wrap=True), "name", "state", "progress", "stage", "since")
    for job in connect(options).jobs(options.limit):
        since = datetime.datetime.fromtimestamp(job["created"]).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            job["id"], escape(job["name"]), job["state"], f"{job['fraction']:.0%}", escape(job["stage"]), since
        )
    Console().print(table)
    return 0


def connect(options: argparse.Namespace):
    """A client of the backend of this data directory."""
    from backend.service.client import Client

    return Client(home_folder(options.home))


def find(client, text: str) -> str:
    """The job that `text` begins the id of. Raises UserError where there is none or are several."""
    from backend.progress import UserError

    found = [job["id"] for job in client.jobs() if text and job["id"].startswith(text)]
    if len(found) != 1:
        raise UserError(
            "job_unknown",
            f"{'Several jobs begin' if found else 'There is no job that begins'} with {text!r}.",
            "'jobs list' shows them.",
        )
    return found[0]


def watch(client, job_id: str) -> dict:
    """A progress bar until the job ends; returns the job."""
    from backend.console import progress_bar
    from backend.progress import Progress

    with progress_bar() as show:

        def on_change(job: dict) -> None:
            stage = job["stage"] if job["state"] != "queued" else f"Queued, {job['ahead']} before it"
            where = job["step"], job["total"], job["fraction"], job["seconds_left"]
            show(Progress(stage or job["state"], *where, detail=job["detail"] or ""))

        return client.watch(job_id, on_change)


def left_alone(job_id: str) -> int:
    """Say what becomes of a job that somebody has stopped watching; returns the exit code."""
    print(
        "The job goes on. Watch it with: jobs watch", job_id, "- cancel it with: jobs cancel", job_id, file=sys.stderr
    )
    return 130


def outcome(job: dict) -> int:
    """Say how a job ended; returns the exit code."""
    if job["state"] == "failed":
        print(f"{job['error']['message']} {job['error']['hint']}".rstrip(), file=sys.stderr)
        return 1
    print(f"{job['id']} {job['state']}")
    return 0 if job["state"] == "succeeded" else 1


def refuse(sentence: str) -> int:
    """Say why this command line cannot be followed."""
    print(sentence, file=sys.stderr)
    return USAGE_EXIT
