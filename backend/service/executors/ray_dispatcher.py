# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that gives jobs to a Ray cluster: as many at once as it has free GPUs, each followed by a thread.

Each attempt is a detached actor that outlives this process. So this one may be killed at any moment too; the next one
finds the actors by their names and goes on asking. Nobody but the queue counts attempts: Ray repeats nothing.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import filelock
import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from backend import __version__
from backend.progress import JobCancelled, Progress, Run, UserError
from backend.service import paths, processes
from backend.service.attempt import LOOK_SECONDS, Attempt, insist, next_job, note_put_back
from backend.service.blobs import BlobStore
from backend.service.executors.ray import (
    OPEN_EXIT,
    UNREACHABLE_EXIT,
    connect,
    end_actor,
    is_open,
    namespace_of,
    share_of,
)
from backend.service.executors.ray_attempt import RayAttempt
from backend.service.failures import crash_error, silent_error, stalled_error, unplaced_error
from backend.service.queue import Job, Queue
from backend.service.settings import Settings
from blender_addon.contract.requests import file_sha256

CHUNK_BYTES = 8 << 20
IDLE_SECONDS = 0.5  # between two looks at the queue and the cluster
BEGIN_SECONDS = 2.0  # from the begin of a job until the cluster no longer counts its GPU as free
FORGET_SECONDS = 5.0
PLACING, SENDING, WORKING, FETCHING = range(4)  # how far a conversation is

log = logging.getLogger(__name__)


class AttemptLost(BaseException):
    """The actor is dead, or as good as dead: the job is tried again. `error`: why it fails after too many of these."""

    def __init__(self, why: str, error: UserError) -> None:
        super().__init__(why)
        self.error = error


class Dispatcher:
    """The loop over queue and cluster."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.home = paths.Home(settings.home)
        self.queue = Queue(self.home.database)
        self.blobs = BlobStore.limited(self.home.blobs, settings)
        self._followed: set[str] = set()  # names of actors, each with a thread here
        self._capacity = -1
        self._next_begin = 0.0

    def run(self) -> None:
        """Work until killed."""
        self._sweep()
        while True:
            try:
                self._take_up()
                self._begin()
            except (OSError, sqlite3.OperationalError, RayError) as error:
                log.warning("Not now: %s", error)
            time.sleep(IDLE_SECONDS)

    def _sweep(self) -> None:
        """End actors whose jobs were taken from them while nobody looked."""
        wanted = {actor_name(job) for job in self.queue.live()}
        for name in set(ray.util.list_named_actors()) - wanted:
            log.warning("%s works for nobody: it is ended", name)
            end_actor(name)

    def _take_up(self) -> None:
        """Follow each live job that no thread follows, or put it back: its actor goes on, or is dead."""
        followed = set(self._followed)  # before the queue is asked: threads end while we look
        for job in self.queue.live():
            if actor_name(job) in followed:
                continue
            try:
                actor = ray.get_actor(actor_name(job))
            except ValueError:
                error = crash_error(None, self.settings.crash_limit)
                self._put_back(job, AttemptLost("its process has ended", error))
            else:
                self._follow(job, actor, f"{self.name} takes up attempt {job.attempt}.")

    def _begin(self) -> None:
        """Claim a job if there is a free GPU for it."""
        if time.monotonic() < self._next_begin or not self.queue.queued():
            return
        resource = self.settings.ray_resource
        capacity = int(ray.cluster_resources().get(resource, 0))
        if capacity != self._capacity:
            self._capacity = capacity
            self.queue.set_fact("device", {"type": "ray", "name": f"{capacity} {resource} of a Ray cluster"})
        if len(self._followed) >= capacity or ray.available_resources().get(resource, 0) < 1:
            if not self._followed:
                what = f"free {resource}" if capacity else f"machine with a {resource}"
                self.queue.note_waiting(f"Waiting for a {what} in the Ray cluster")
            return
        # A name for each claim, so that one job can be put back without the others.
        job = next_job(self.settings, self.queue, f"{self.name}-{secrets.token_hex(4)}")
        if job is not None:
            self._next_begin = time.monotonic() + BEGIN_SECONDS
            actor = make_actor(self.settings, job)
            self._follow(job, actor, f"Attempt {job.attempt} begins (Kinesplat {__version__}, {self.name}).")

    def _follow(self, job: Job, actor: ActorHandle, what: str) -> None:
        attempt = Attempt(self.settings, self.queue, self.blobs, job)
        attempt.log.write(what)
        self._followed.add(actor_name(job))
        threading.Thread(target=self._attend, args=(attempt, actor), name=actor_name(job), daemon=True).start()

    def _attend(self, attempt: Attempt, actor: ActorHandle) -> None:
        """One thread: bring one attempt to its end."""
        name = actor_name(attempt.job)
        conversation = Conversation(self.settings, attempt, actor)
        try:
            if attempt.run(conversation.run) == "succeeded":
                conversation.forget()
            end_actor(name)
        except AttemptLost as lost:
            end_actor(name)  # before another one may begin
            self._put_back(attempt.job, lost)
        except Exception:
            log.exception("%s: a fault while it was followed; it is taken up again", name)
        finally:
            self._followed.remove(name)

    def _put_back(self, job: Job, lost: AttemptLost) -> None:
        for now in insist(partial(self.queue.settle, job.worker, lost.error, self.settings.crash_limit)):
            note_put_back(self.home, now, f"Attempt {job.attempt} was lost: {lost}.")


class Conversation:
    """What is said to one actor, from its beginning or from anywhere in the middle."""

    def __init__(self, settings: Settings, attempt: Attempt, actor: ActorHandle) -> None:
        self._phase = PLACING
        self._settings = settings
        self._attempt = attempt
        self._actor = actor
        self._heard = time.monotonic()
        self._cancelled: float | None = None  # since when the actor knows that

    def run(self, request: dict, blob: Callable[[str], Path], run: Run) -> Path:
        """A pipeline: bring the inputs to the actor, follow its work, fetch the result.

        Raises:
            AttemptLost: the actor is dead, hangs, or makes no progress.
            JobCancelled: it has ended because of that, or was ended.
            UserError: what the actor's pipeline failed with, or why it cannot begin.
        """
        while True:
            try:
                self._bring(blob)
                return self._fetch(self._listen(), run.folder / "result")
            except ActorUnavailableError as error:  # the network stumbled; whatever was half said is said again
                if time.monotonic() - self._heard > 2 * self._settings.lease:
                    raise self._lost("its machine cannot be reached", silent_error(self._settings)) from error
                time.sleep(1.0)

    def forget(self) -> None:
        """The result is safe: the actor may remove the checkpoints."""
        with contextlib.suppress(RayError):
            ray.get(self._actor.forget.remote(), timeout=FORGET_SECONDS)

    def _bring(self, blob: Callable[[str], Path]) -> None:
        """Wait for the actor's GPU, send the inputs that its machine lacks, and let it begin."""
        self._phase = PLACING
        fraction = self._attempt.job.fraction
        self._attempt.show(Progress("Starting in the cluster", 0, 1, fraction, None))
        actor = json.loads(self._ask("prepare"))
        self._phase = SENDING
        if actor["version"] != __version__:
            raise UserError(
                "version_differs",
                f"Kinesplat {actor['version']} is installed on {actor['machine']}, and this is {__version__}.",
                "Install the same version on all machines of the cluster, and start Ray again there.",
            )
        if not actor["begun"]:
            self._attempt.log.write(f"Runs on {actor['machine']}, which lacks {len(actor['missing'])} inputs.")
        for sha256 in actor["missing"]:
            self._send(sha256, blob(sha256))
        self._ask("begin")

    def _send(self, sha256: str, path: Path) -> None:
        left = path.stat().st_size
        is_first = True
        with open(path, "rb") as file:
            while is_first or left:
                chunk = file.read(CHUNK_BYTES)
                left -= len(chunk)
                if trouble := self._ask("receive", sha256, chunk, is_first, not left):
                    raise UserError("disk_full", trouble, "Free some space there, then try again: nothing is lost.")
                is_first = False

    def _listen(self) -> dict:
        """Pass on what the actor tells, until it has ended; returns how."""
        self._phase = WORKING
        news = time.monotonic()
        while True:
            text, pictures = self._ask("poll")
            said = json.loads(text)
            for message in said["messages"]:
                self._attempt.log.write(message, aside=not said["end"])
            for fields, shape, picture in zip(said["news"], said["shapes"], pictures, strict=True):
                preview = np.frombuffer(picture, np.uint8).reshape(shape) if shape else None
                self._attempt.show(Progress(**fields | {"preview": preview}))
                news = time.monotonic()
            if said["end"]:
                return said["end"]
            if time.monotonic() - news > self._settings.stall_limit:
                raise self._lost("there was no progress", stalled_error(self._settings))
            self._check_cancelled()
            time.sleep(LOOK_SECONDS)

    def _fetch(self, end: dict, path: Path) -> Path:
        """The result as a file of ours, its bytes held against the actor's sha256; or how else the work ended."""
        if end["state"] == "cancelled":
            raise JobCancelled
        if end["state"] == "failed":
            raise UserError(end["code"], end["message"], end["hint"])
        self._phase = FETCHING
        with open(path, "wb") as file:
            for offset in range(0, end["size"], CHUNK_BYTES):
                file.write(self._ask("read", offset, CHUNK_BYTES))
        if file_sha256(path) != end["sha256"]:
            raise self._lost("its result arrived damaged")
        return path

    def _ask(self, call: str, *arguments: object) -> object:
        """One call of the actor. Its place in the cluster may take longer than an answer, but not for ever."""
        try:
            answer = getattr(self._actor, call).remote(*arguments)
            asked = time.monotonic()
            while not ray.wait([answer], timeout=LOOK_SECONDS)[0]:
                self._check_cancelled()
                waited = time.monotonic() - asked
                if self._phase == PLACING and waited > self._settings.ray_placing:
                    raise self._lost("the cluster gave it no place", unplaced_error(self._settings))
                if self._phase != PLACING and waited > 2 * self._settings.lease:
                    raise self._lost("it gave no sign of life", silent_error(self._settings))
            value = ray.get(answer)
        except (ActorUnavailableError, RayTaskError):
            raise
        except RayError as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise UserError(
                    "ray_machine_not_ready",
                    f"Kinesplat cannot be started on a machine of the cluster: {told(error)}.",
                    "Install the same version there. 'python -m backend doctor --executor ray' says where.",
                ) from error
            raise self._lost(told(error)) from error
        self._heard = time.monotonic()
        return value

    def _check_cancelled(self) -> None:
        """Cancel ladder: the pipeline is asked to leave off, and after a while its process ends."""
        if not self._attempt.is_cancelled():
            return
        if self._cancelled is None and self._phase == WORKING:
            self._cancelled = time.monotonic()
            self._actor.cancel.remote()
        elif self._phase != WORKING or time.monotonic() - self._cancelled > self._settings.cancel_grace:
            end_actor(actor_name(self._attempt.job))
            raise JobCancelled

    def _lost(self, why: str, error: UserError | None = None) -> AttemptLost:
        return AttemptLost(why, error or crash_error(None, self._settings.crash_limit))


def actor_name(job: Job) -> str:
    """Under which the actor of the job's attempt is known."""
    return f"job-{job.id}-{job.attempt}"


def make_actor(settings: Settings, job: Job) -> ActorHandle:
    """The actor of a new attempt. It lives until it is ended, wherever its maker is then."""
    spec = json.dumps({"id": job.id, "kind": job.kind, "request": json.loads(job.request)})
    options = {"lifetime": "detached", "get_if_exists": True, "max_restarts": 0, "num_cpus": 0}
    actor = ray.remote(RayAttempt).options(name=actor_name(job), **options, **share_of(settings.ray_resource))
    return actor.remote(settings.to_json(), spec)


def told(error: RayError) -> str:
    """What is worth telling of one of Ray's errors, which are long."""
    return str(error).strip().splitlines()[-1].split(". ")[0].strip(" .")


def main(settings_json: str, launch_json: str) -> int:
    """The dispatcher's process, started by the supervisor; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings, launch = Settings.from_json(settings_json), json.loads(launch_json)
    processes.follow_parent(launch["parent"], lambda: os._exit(0))
    # A dispatcher that a dead supervisor has left behind ends within seconds; each actor is followed by one alone.
    with filelock.FileLock(paths.Home(settings.home).worker_lock):
        dispatcher = Dispatcher(settings, launch["name"])
        try:
            address = connect(settings, namespace_of(dispatcher.queue))
        except UserError as error:
            log.warning("%s %s", error, error.hint)
            dispatcher.queue.note_waiting("Waiting for the Ray cluster")
            return UNREACHABLE_EXIT
        # Nothing is to be put in order first; attempts go on. Ray has set a handler of its own before.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if is_open(address):
            log.error("The cluster at %s answers also without its token", address)
            return OPEN_EXIT
        processes.say_ready()
        dispatcher.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
