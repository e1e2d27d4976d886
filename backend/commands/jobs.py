# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `jobs`: what a person or a script says to a running backend.

Results go to standard output, with `--json` as the HTTP API gives them; progress and errors to standard error.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from backend.options import (
    add_fit_options,
    add_home_option,
    add_model_option,
    add_motion_options,
    add_subject_options,
    add_video_options,
    clip_file,
    positive,
    subject_problem,
)
from blender_addon.contract.arrays import BadFileError, read_arrays
from blender_addon.contract.home import home_folder
from blender_addon.contract.requests import JOB_STATES

USAGE = (
    "%(prog)s [--object FILE.glb | --image FILE | --video FILE|FOLDER | --orbit FOLDER] [--text TEXT] "
    "[--watch] [--out CLIP.npz] [options]"
)


def add_jobs(commands: argparse._SubParsersAction) -> None:
    """`jobs submit|watch|cancel|retry|fetch|log|delete|list`."""
    jobs = commands.add_parser("jobs", help="submit, watch, cancel, fetch and list jobs of a running backend")
    verbs = jobs.add_subparsers(metavar="VERB", required=True)

    submit = verbs.add_parser(
        "submit",
        usage=USAGE,
        help="submit an object, an image, a text, a video or a moving orbit",
        description="Put a job into the queue and print its id. An object is captured here, before it is submitted.",
    )
    add_subject_options(submit)
    submit.add_argument("--name", help="name of the job (default: the file's and the text)")
    add_fit_options(submit)
    add_motion_options(submit)
    add_model_option(submit)
    add_video_options(submit)
    submit.add_argument("--watch", action="store_true", help="wait for its end and show its progress")
    submit.add_argument("--out", type=clip_file, metavar="CLIP.npz",
                        help="wait for its end and write the clip here; a former one is replaced")  # fmt: skip
    submit.set_defaults(func=run_submit, usage_error=submit.error)

    watching = verbs.add_parser("watch", help="show a job's progress until it ends")
    cancel = verbs.add_parser("cancel", help="cancel a job, and wait until it has ended")
    retry = verbs.add_parser("retry", help="queue a failed or cancelled job again: it goes on from its checkpoints")
    fetch = verbs.add_parser("fetch", help="write a job's clip to a file")
    fetch.add_argument("--out", type=clip_file, required=True, metavar="CLIP.npz",
                       help="the clip; a former one is replaced")  # fmt: skip
    log = verbs.add_parser("log", help="print a job's log")
    delete = verbs.add_parser("delete", help="remove jobs that have ended, with their results")
    calls = (
        (watching, run_watch),
        (cancel, run_cancel),
        (retry, run_retry),
        (fetch, run_fetch),
        (log, run_log),
        (delete, run_delete),
    )
    for parser, func in calls:
        name, several = ("jobs", {"nargs": "+"}) if parser is delete else ("job", {})
        parser.add_argument(name, metavar="JOB", help="the job's id, or its first characters", **several)
        parser.set_defaults(func=func)

    listing = verbs.add_parser("list", help="list the newest jobs")
    listing.add_argument("--limit", type=positive, default=20, metavar="N", help="how many (default: 20)")
    listing.add_argument("--state", choices=(*JOB_STATES, "active"), action="append",
                         help="only those; may be repeated; active: all that have not ended")  # fmt: skip
    listing.set_defaults(func=run_list)

    for parser in (submit, watching, cancel, retry, listing):
        parser.add_argument("--json", action="store_true",
                            help="print " + ("jobs" if parser is listing else "the job")
                            + " as the HTTP API gives " + ("them" if parser is listing else "it"))  # fmt: skip
    for parser in verbs.choices.values():
        add_home_option(parser)


def run_submit(options: argparse.Namespace) -> int:
    """Send a request, and wait for its end where that is asked for."""
    import uuid

    if problem := subject_problem(options):
        options.usage_error(problem)
    from backend.commands.submit import request_of

    client = connect(options)
    job = client.submit(request_of(options, client), str(uuid.uuid4()), "command-line")
    waits = options.watch or options.out
    if not options.json:
        print(job["id"], flush=True)
    if not waits:
        if options.json:
            print_json(job)
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
        tell_warnings(options.out)
        if not options.json:
            print(options.out)
    return outcome(job, options)


def run_watch(options: argparse.Namespace) -> int:
    """Follow a job to its end. Ctrl-C ends the watching, not the job."""
    client = connect(options)
    job_id = find(client, options.job)
    try:
        return outcome(watch(client, job_id), options)
    except KeyboardInterrupt:
        return left_alone(job_id)


def run_cancel(options: argparse.Namespace) -> int:
    """Cancel a job and wait until it has ended."""
    client = connect(options)
    job = client.cancel(find(client, options.job))
    if job["state"] == "cancelling":
        job = client.watch(job["id"])
    tell(job, options)
    return 0 if job["state"] == "cancelled" else 1


def run_retry(options: argparse.Namespace) -> int:
    """Queue a job again."""
    client = connect(options)
    tell(client.retry(find(client, options.job)), options)
    return 0


def run_fetch(options: argparse.Namespace) -> int:
    """Write a job's clip to a file."""
    client = connect(options)
    size = client.fetch(find(client, options.job), options.out)
    tell_warnings(options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB")
    return 0


def run_log(options: argparse.Namespace) -> int:
    """Print a job's log."""
    client = connect(options)
    print(client.log(find(client, options.job)), end="")
    return 0


def run_delete(options: argparse.Namespace) -> int:
    """Remove jobs that have ended."""
    client = connect(options)
    for job_id in dict.fromkeys([find(client, text) for text in options.jobs]):  # a wrong one is told before any goes
        client.delete(job_id)
        print(f"{job_id} deleted")
    return 0


def run_list(options: argparse.Namespace) -> int:
    """A table of the newest jobs."""
    import datetime

    from rich.markup import escape
    from rich.table import Column, Table

    from backend.console import print_table

    jobs = connect(options).jobs(options.limit, state=options.state)
    if options.json:
        print_json(jobs)
        return 0
    table = Table(Column("job", no_wrap=True), "name", "state", "progress", "stage", "since")
    for job in jobs:
        since = datetime.datetime.fromtimestamp(job["created"]).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            job["id"], escape(job["name"]), job["state"], f"{job['fraction']:.0%}", escape(job["stage"]), since
        )
    print_table(table)
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


def outcome(job: dict, options: argparse.Namespace) -> int:
    """Say how a job ended; returns the exit code."""
    if job["state"] == "failed":
        print(f"{job['error']['message']} {job['error']['hint']}".rstrip(), file=sys.stderr)
    if job["state"] != "failed" or options.json:
        tell(job, options)
    return 0 if job["state"] == "succeeded" else 1


def tell(job: dict, options: argparse.Namespace) -> None:
    """Print a job: its id and state, or all of it."""
    if options.json:
        print_json(job)
    else:
        print(f"{job['id']} {job['state']}")


def tell_warnings(path: Path) -> None:
    """What a result says against itself, as `generate` tells it."""
    with contextlib.suppress(BadFileError, LookupError, TypeError, ValueError):
        provenance = json.loads(read_arrays(path)["meta"].tobytes())["provenance"]
        for warning in provenance["warnings"]:
            print(warning, file=sys.stderr)


def print_json(found: dict | list[dict]) -> None:
    """What programs read: ASCII, so that no terminal's encoding changes it."""
    print(json.dumps(found, indent=2))
