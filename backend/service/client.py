# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls on a running backend of this computer, for the command line."""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import requests

from backend.progress import UserError
from backend.service import paths
from blender_addon.contract.arrays import atomic_file
from blender_addon.contract.requests import API_VERSION, file_sha256

TIMEOUT = (3.0, 60.0)  # seconds to connect, to read
WAIT_SECONDS = 10
PATIENCE = 10.0  # seconds in which an API that died is there again
WATCH_PATIENCE = 120.0  # of those who wait for a job: somebody may start the backend, or its computer, anew
RETRY_SECONDS = 0.5
NOT_RUNNING = "not_running"
PAGE = 1000  # jobs that one answer lists at most


class CallError(UserError):
    """The backend refused a call. `status` is that of HTTP, `problem` the whole answer."""

    def __init__(self, status: int, problem: dict) -> None:
        super().__init__(
            str(problem.get("code", f"http_{status}")),
            str(problem.get("detail") or f"The backend answered with error {status}."),
            str(problem.get("hint", "")),
        )
        self.status = status
        self.problem = problem


class Client:
    """A backend, found by its data directory."""

    def __init__(self, home: Path) -> None:
        """Raises UserError where no backend of our version runs for `home`."""
        self.home = paths.Home(home)
        self.session = requests.Session()
        self.session.trust_env = False
        self._find()

    def _find(self) -> None:
        """Raises UserError where no backend of our version runs."""
        self.session.headers.pop("Authorization", None)
        server = paths.read_server(self.home)
        if server is None:
            raise self._not_running()
        self.url = f"http://127.0.0.1:{server['port']}/v1"
        try:
            health = self._answer("GET", "/health", patience=0.0).json()
        except (UserError, ValueError) as error:
            raise self._not_running() from error
        if health.get("product") != "kinesplat" or health.get("started") != server.get("started"):
            raise self._not_running()  # somebody else got the port since
        if health.get("api_version") != API_VERSION:
            raise UserError(
                "wrong_version",
                f"The backend that runs is version {health.get('version')}, which this command does not fit.",
                "Restart the backend.",
            )
        self.version = health["version"]
        try:
            token = self.home.token.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                "wrong_token",
                f"The backend's token in {self.home.folder} cannot be read.",
                "Run this as the user who runs it.",
            ) from error
        self.session.headers["Authorization"] = f"Bearer {token}"

    def capabilities(self) -> dict:
        """What the backend can do."""
        return self._answer("GET", "/capabilities").json()

    def upload(self, path: Path, sha256: str | None = None) -> str:
        """Send a file unless it is there; returns its sha256."""
        sha256 = sha256 or file_sha256(path)
        try:
            self._answer("HEAD", f"/blobs/{sha256}")
        except CallError as error:
            if error.status != 404:
                raise
            self._answer("PUT", f"/blobs/{sha256}", content=path)
        return sha256

    def submit(self, request: dict, key: str, client: str | None = None) -> dict:
        """Queue a request."""
        body = {"request": request, "client": client}
        return self._answer("POST", "/jobs", json=body, headers={"Idempotency-Key": key}).json()

    def jobs(self, limit: float = math.inf, **filters: object) -> list[dict]:
        """The newest `limit` jobs, or all of them, newest first; filters: `state`, `client`."""
        found: list[dict] = []
        while len(found) < limit:
            asked = filters | {"limit": min(limit - len(found), PAGE), "before": found[-1]["id"] if found else None}
            page = self._answer("GET", "/jobs", params=asked).json()["jobs"]
            found += page
            if len(page) < PAGE:
                break
        return found

    def job(self, job_id: str, after_rev: int | None = None, wait: float = 0) -> dict:
        """One job; with `after_rev` the answer waits up to `wait` seconds for a revision above that."""
        params = {} if after_rev is None else {"after_rev": after_rev, "wait": wait}
        return self._answer("GET", f"/jobs/{job_id}", params=params).json()

    def watch(self, job_id: str, on_change: Callable[[dict], None] = lambda job: None) -> dict:
        """Wait until a job has ended; returns it. A backend that starts anew meanwhile is waited for."""
        job = self.job(job_id)
        while True:
            on_change(job)
            if job["finished"] is not None:
                return job
            try:
                job = self.job(job_id, job["rev"], WAIT_SECONDS)
            except UserError as error:
                if error.code != NOT_RUNNING:
                    raise
                on_change({**job, "state": "running", "stage": "Waiting for the backend", "detail": None})
                if not self._is_back(time.monotonic() + WATCH_PATIENCE):
                    raise

    def cancel(self, job_id: str) -> dict:
        """Cancel a job."""
        return self._answer("POST", f"/jobs/{job_id}/cancel").json()

    def retry(self, job_id: str) -> dict:
        """Queue a job again."""
        return self._answer("POST", f"/jobs/{job_id}/retry").json()

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended; one that has gone already is no error, as a call may be made again."""
        try:
            self._answer("DELETE", f"/jobs/{job_id}")
        except CallError as error:
            if error.status != 404:
                raise

    def log(self, job_id: str) -> str:
        """A job's log."""
        text, offset = b"", 0
        while True:
            answer = self._answer("GET", f"/jobs/{job_id}/log", params={"offset": offset})
            if not answer.content:
                return text.decode(errors="replace")
            text += answer.content
            offset = int(answer.headers["X-Next-Offset"])

    def fetch(self, job_id: str, path: Path) -> int:
        """Write a job's result to `path` in one step; returns its size."""
        with self._answer("GET", f"/jobs/{job_id}/result", stream=True) as answer:
            arrived, size = hashlib.sha256(), 0
            with atomic_file(path) as file:
                try:
                    for chunk in answer.iter_content(1 << 18):
                        arrived.update(chunk)
                        size += file.write(chunk)
                except requests.RequestException as error:
                    raise UserError("cut_off", "The connection broke in the middle.", "Fetch it again.") from error
                if arrived.hexdigest() != answer.headers["ETag"].strip('"'):
                    raise UserError("damaged_result", "The result arrived damaged.", "Fetch it again.")
        return size

    def shut_down(self) -> None:
        """End the backend."""
        self._answer("POST", "/shutdown", patience=0.0)

    def _answer(
        self, method: str, path: str, patience: float = PATIENCE, content: Path | None = None, **options
    ) -> requests.Response:
        """The answer to a call. No call is harmed by repetition: where the connection breaks, because the API or the
        whole backend starts anew, it is made again until `patience` seconds have passed.
        """
        end = time.monotonic() + patience
        while True:
            try:
                with open(content, "rb") if content else contextlib.nullcontext() as data:
                    answer = self.session.request(
                        method, self.url + path, data=data, timeout=TIMEOUT, allow_redirects=False, **options
                    )
                break
            except requests.RequestException as error:
                if not self._is_back(end):
                    raise UserError(NOT_RUNNING, "The backend does not answer.", "Start it with: serve") from error
        if answer.status_code < 300:
            return answer
        problem: dict = {}
        with contextlib.suppress(ValueError):
            problem = answer.json()
        raise CallError(answer.status_code, problem if isinstance(problem, dict) else {})

    def _is_back(self, end: float) -> bool:
        """Wait until the backend answers again, if need be at another port; False where it does not before `end`."""
        while time.monotonic() < end:
            time.sleep(RETRY_SECONDS)
            try:
                self._find()
                return True
            except UserError as error:
                if error.code != NOT_RUNNING:  # such as a backend of another version: waiting does not help
                    raise
        return False

    def _not_running(self) -> UserError:
        return UserError(
            NOT_RUNNING,
            f"No backend runs for the data directory {self.home.folder}.",
            "Start one with 'python -m backend serve', or name another directory with --home.",
        )
