# SPDX-License-Identifier: GPL-3.0-or-later
"""The local executor: one worker process beside the API, which takes one job after the other."""

import logging
import time
from dataclasses import dataclass, replace

from backend.progress import UserError
from backend.service import paths
from backend.service.attempt import note_put_back
from backend.service.failures import crash_error, silent_error, stalled_error
from backend.service.job_log import JobLog
from backend.service.processes import Child, Kept, exit_text
from backend.service.queue import Job, Queue
from backend.service.settings import RAY, Settings

WATCH_SECONDS = 0.5
LONGEST_LOOK = 5.0  # more than that between two looks, and the computer slept

log = logging.getLogger(__name__)


@dataclass
class Patience:
    """How long the worker has been seen in a state that it should leave."""

    mark: tuple  # what would have to change
    seconds: float = 0.0


class LocalExecutor:
    """Keeps the worker; ends it where a job needs that, and puts back into the queue what a dead one has left."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self.settings = settings
        self.queue = queue
        self.home = paths.Home(settings.home)
        self.process = Kept(lambda: Child("backend.service.worker", settings, self.home.logs / "worker.log"))
        self._dead: list[tuple[str, UserError, str]] = []  # workers whose jobs are not yet put back: name, why, how
        self._patience: dict[str, Patience] = {}  # what the worker is watched for
        self._last_watch = time.monotonic()
        if (address := queue.fact("ray_address")) is not None:  # a cluster worked for this queue before
            former = replace(settings, executor=RAY, ray_address=address)
            Child("backend.service.executors.ray", former, self.home.logs / "ray.log")

    def put_back(self) -> None:
        """No attempt outlives the worker."""
        error = crash_error(None, self.settings.crash_limit)
        for job in self.queue.settle(None, error, self.settings.crash_limit):
            note_put_back(self.home, job, f"Attempt {job.attempt} was cut off by the end of the backend.")

    def tick(self) -> None:
        """Keep the worker, and look twice a second at what it does."""
        self._keep()
        now = time.monotonic()
        if now - self._last_watch >= WATCH_SECONDS:
            # On Windows this clock goes on while the computer sleeps, and nobody is to be blamed for that.
            self._watch(min(now - self._last_watch, LONGEST_LOOK))
            self._last_watch = now

    def _keep(self) -> None:
        name = self.process.child.name if self.process.child else ""
        code = self.process.reap()
        if code is not None:
            log.log(logging.INFO if code == 0 else logging.WARNING, "%s ended (%s)", name, exit_text(code))
            killed = self._patience.get("killed")
            error = killed.mark[0] if killed else crash_error(code, self.settings.crash_limit)
            self._patience.clear()
            self._dead.append((name, error, exit_text(code)))
        while self._dead:
            name, error, what = self._dead[0]
            jobs = self.queue.settle(name, error, self.settings.crash_limit)
            del self._dead[0]
            for job in jobs:
                note_put_back(self.home, job, f"Attempt {job.attempt} ended: {what}.")

    def _watch(self, passed: float) -> None:
        """Cancel ladder, silence, standstill: what a living worker may do to a job, and what happens then.

        passed: seconds since the last look.
        """
        worker = self.process.child
        jobs = [job for job in self.queue.live() if worker and job.worker == worker.name]
        if not jobs or "killed" in self._patience:
            if not jobs:
                self._patience.clear()
            return
        job = jobs[0]
        if job.state == "cancelling":
            waited = self._waited("cancel", (job.id, job.attempt), passed)
            if waited > self.settings.cancel_grace + self.settings.kill_grace:
                self._kill(job, "it is cancelled and did not end by itself", stalled_error(self.settings))
            elif waited > self.settings.cancel_grace:
                worker.end()
            return
        if job.lease is not None and job.lease < time.time():
            if self._waited("lease", (job.id, job.attempt, job.lease), passed) > self.settings.lease / 2:
                self._kill(job, "it gave no sign of life", silent_error(self.settings))
        else:
            self._patience.pop("lease", None)
        if self._waited("stall", (job.id, job.attempt, job.rev), passed) > self.settings.stall_limit:
            self._kill(job, "there was no progress", stalled_error(self.settings))

    def _waited(self, what: str, mark: tuple, passed: float) -> float:
        patience = self._patience.get(what)
        if patience is None or patience.mark != mark:
            patience = self._patience[what] = Patience(mark)
        else:
            patience.seconds += passed
        return patience.seconds

    def _kill(self, job: Job, why: str, error: UserError) -> None:
        log.warning("Job %s: the worker is killed: %s", job.id, why)
        JobLog(self.home.log(job.id)).write(f"The worker is killed: {why}.")
        self._patience["killed"] = Patience((error,))
        self.process.child.kill()
