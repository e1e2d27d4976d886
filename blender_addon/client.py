# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP client of the backend. Knows nothing of Blender, blocks, and is meant for a thread of its own.

Every failure leaves as one `BackendError`: a code for programs, a sentence for people, and what they can do.
"""

import errno
import hashlib
import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from .contract.arrays import replace
from .contract.requests import API_VERSION, JOB_ID

PRODUCT = "kinesplat"
CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
UPLOAD_READ_SECONDS = 60.0  # the server hashes and syncs what it got before it answers
CHUNK_BYTES = 1 << 18
MAX_JOBS = 1000  # that the backend lists at once


class BackendError(Exception):
    """Something between Blender and the backend did not work.

    Its text is one sentence about what happened; `hint` says what to do; `code` is stable. The backend's own codes pass
    through; this module adds `not_running`, `not_kinesplat`, `wrong_version`, `wrong_token`, `bad_address`,
    `bad_answer`, `damaged_result`, `disk_full_here`, `file_problem`, and `stopped`.
    """

    def __init__(self, code: str, sentence: str, hint: str = "", status: int = 0) -> None:
        super().__init__(sentence)
        self.code = code
        self.hint = hint
        self.status = status  # of the HTTP answer; 0 where there was none

    @property
    def is_temporary(self) -> bool:
        """Whether the same call may work later without anybody changing the call."""
        return self.code in ("not_running", "starting") or self.status in (429, 502, 503, 504)


@dataclass(frozen=True)
class Health:
    """What a backend says about itself without being asked for a token."""

    version: str
    started: float  # seconds since 1970; tells one process from another


class BackendClient:
    """One backend at one address, with one token. Use it from one thread at a time."""

    def __init__(self, url: str, token: str) -> None:
        """Raises BackendError (`bad_address`) where `url` is no address."""
        self.url = normalize_url(url)
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy from the environment would catch 127.0.0.1
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def health(self) -> Health:
        """Whether a Kinesplat backend of our version answers here.

        Raises:
            BackendError: `not_running`, `not_kinesplat`, or `wrong_version`.
        """
        try:
            answer = self._call("GET", "/health", headers={"Authorization": None})  # who answers is not known yet
            data = _json(answer)
        except BackendError as error:
            if error.status or error.code == "bad_answer":
                raise self._not_kinesplat() from error
            raise
        if not isinstance(data, dict) or str(data.get("product", "")).lower() != PRODUCT:
            raise self._not_kinesplat()
        if data.get("api_version") != API_VERSION:
            raise BackendError(
                "wrong_version",
                f"The backend at {self.url} has version {data.get('version', 'unknown')} of Kinesplat, which does not "
                "fit this extension.",
                "Update the extension and the backend to the same version, then restart the backend.",
            )
        try:
            return Health(version=str(data["version"]), started=float(data["started"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self._not_kinesplat() from error

    def capabilities(self) -> dict:
        """What the backend can do. The first call that needs the right token."""
        return self._json_call("GET", "/capabilities")

    def upload(self, path: str | os.PathLike, sha256: str) -> None:
        """Send a file under its sha256, unless the backend has it already."""
        if self._call("HEAD", f"/blobs/{sha256}", accept=(404,)).status_code != 404:
            return
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
                self._call("PUT", f"/blobs/{sha256}", data=file, headers=headers, read_seconds=UPLOAD_READ_SECONDS)
        except OSError as error:
            raise file_problem(error, path) from error

    def submit(self, request: dict, idempotency_key: str, client: str) -> dict:
        """Queue a request and return its job. The same key gives the same job again, never a second one."""
        headers = {"Idempotency-Key": idempotency_key}
        return self._job_call("POST", "/jobs", json={"client": client, "request": request}, headers=headers)

    def jobs(self, client: str) -> list[dict]:
        """All jobs that this client has submitted, newest first."""
        found: dict[str, dict] = {}
        params = {"client": client, "limit": MAX_JOBS}
        while True:
            jobs = self._json_call("GET", "/jobs", params=params).get("jobs")
            if not isinstance(jobs, list):
                raise self._senseless()
            new = {str(job["id"]): job for job in map(self._checked, jobs)}
            if len(jobs) < MAX_JOBS or new.keys() <= found.keys():  # an older backend tells the newest again
                return list((found | new).values())
            found |= new
            params["before"] = list(new)[-1]

    def job(self, job_id: str, after_rev: int | None = None, wait: float = 0.0) -> dict:
        """One job. With `after_rev` the answer comes when its revision is above that, or after `wait` seconds."""
        params = {} if after_rev is None else {"after_rev": after_rev, "wait": wait}
        return self._job_call("GET", f"/jobs/{job_id}", params=params, read_seconds=READ_SECONDS + wait)

    def preview(self, job_id: str) -> bytes | None:
        """The latest preview picture (JPEG), or None where there is none yet."""
        answer = self._call("GET", f"/jobs/{job_id}/preview", accept=(404,))
        return answer.content if answer.status_code == 200 else None

    def log(self, job_id: str) -> str:
        """What a job's attempts have written down so far; empty where that is nothing."""
        data = b""
        while part := self._call("GET", f"/jobs/{job_id}/log", params={"offset": len(data)}).content:
            data += part
        return data.decode(errors="replace")

    def cancel(self, job_id: str) -> dict:
        """Ask for a job to end."""
        return self._job_call("POST", f"/jobs/{job_id}/cancel", json={})

    def retry(self, job_id: str) -> dict:
        """Queue a failed or cancelled job again; stages that are done are kept."""
        return self._job_call("POST", f"/jobs/{job_id}/retry", json={})

    def delete(self, job_id: str) -> None:
        """Remove a job and its result from the backend. A job that is gone already counts as removed."""
        self._call("DELETE", f"/jobs/{job_id}", accept=(404,))

    def download_result(
        self,
        job_id: str,
        path: str | os.PathLike,
        on_progress: Callable[[float], None] = lambda fraction: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> str:
        """Fetch a result to `path` and return its sha256.

        What came before an interruption stays in `path` + `.part` and is taken up again. `path` appears only once the
        whole file is there and its sha256 is right.

        Raises:
            BackendError: also `damaged_result`, `disk_full_here`, `file_problem`, `stopped`.
        """
        path = Path(path)
        part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".etag")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            have = part.stat().st_size if part.exists() and tag.exists() else 0
            headers = {"Range": f"bytes={have}-", "If-Range": tag.read_text().strip()} if have else {}
            answer = self._call("GET", f"/jobs/{job_id}/result", headers=headers, accept=(416,), stream=True)
            with answer:
                if answer.status_code == 416:  # all of it is here already, or what is here belongs to another result
                    part.unlink()
                    tag.unlink()
                    return self.download_result(job_id, path, on_progress, is_stopped)
                resumed = answer.status_code == 206
                etag = answer.headers.get("ETag", "")
                tag.write_text(etag)
                have = have if resumed else 0
                total = have + int(answer.headers.get("Content-Length") or 0)
                with open(part, "ab" if resumed else "wb") as file:
                    for chunk in self._chunks(answer):
                        if is_stopped():
                            raise BackendError("stopped", "The download was stopped.", "It goes on from here later.")
                        file.write(chunk)
                        have += len(chunk)
                        on_progress(min(have / total, 1.0) if total else 0.0)
                    file.flush()
                    os.fsync(file.fileno())
            with open(part, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != etag.removeprefix("W/").strip('"'):
                part.unlink()
                tag.unlink()
                raise BackendError(
                    "damaged_result",
                    "The result arrived damaged and was thrown away.",
                    "Fetch it again: the backend still has it.",
                )
            replace(part, path)
            tag.unlink(missing_ok=True)
        except OSError as error:
            raise file_problem(error, path) from error
        return sha256

    def shutdown(self) -> None:
        """Ask the backend to end. Its queue stays; a running job goes on at the next start."""
        self._call("POST", "/shutdown", json={})

    def _chunks(self, answer: requests.Response):
        try:
            yield from answer.iter_content(CHUNK_BYTES)
        except requests.RequestException as error:
            raise self._not_running() from error

    def _json_call(self, method: str, path: str, **options) -> dict:
        data = _json(self._call(method, path, **options))
        if not isinstance(data, dict):
            raise self._senseless()
        return data

    def _job_call(self, method: str, path: str, **options) -> dict:
        return self._checked(self._json_call(method, path, **options))

    def _checked(self, job: object) -> dict:
        """A job whose id may become the name of a file here; that of a stranger could lead out of our folder."""
        if not (isinstance(job, dict) and re.fullmatch(JOB_ID, str(job.get("id")))):
            raise self._senseless()
        return job

    def _call(
        self,
        method: str,
        path: str,
        *,
        accept: tuple[int, ...] = (),
        read_seconds: float = READ_SECONDS,
        **options,
    ) -> requests.Response:
        try:
            answer = self._session.request(
                method,
                f"{self.url}/v1{path}",
                timeout=(CONNECT_SECONDS, read_seconds),
                allow_redirects=False,  # a redirect would carry the token elsewhere
                **options,
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError) as error:
            raise _bad_address(self.url) from error
        except requests.exceptions.SSLError as error:
            raise BackendError(
                "not_running",
                f"No secure connection to {self.url}: its certificate is not accepted.",
                "Check the address, and whether it begins with https:// or http://.",
            ) from error
        except requests.RequestException as error:
            raise self._not_running() from error
        if answer.status_code < 300 or answer.status_code == 304 or answer.status_code in accept:
            return answer
        with answer:
            raise self._refused(answer)

    def _refused(self, answer: requests.Response) -> BackendError:
        """The backend's own words about an error where it has any."""
        status = answer.status_code
        if status == 401:
            return BackendError(
                "wrong_token",
                f"The backend at {self.url} does not accept the token.",
                "Restart the backend, or enter its token in the extension's preferences.",
                status,
            )
        try:
            problem = answer.json()
        except (ValueError, requests.RequestException):
            problem = None
        if not isinstance(problem, dict) or "code" not in problem:
            if status == 404:
                return self._not_kinesplat(status)
            return BackendError(
                "refused", f"The backend at {self.url} answered with error {status}.", "Look into its log.", status
            )
        sentence = str(problem.get("detail") or problem.get("title") or f"The backend answered with error {status}.")
        return BackendError(str(problem["code"]), sentence, str(problem.get("hint") or ""), status)

    def _senseless(self) -> BackendError:
        return BackendError("bad_answer", f"The backend at {self.url} gave an answer that makes no sense.")

    def _not_running(self) -> BackendError:
        return BackendError(
            "not_running", f"No backend answers at {self.url}.", "Start the backend, or check its address."
        )

    def _not_kinesplat(self, status: int = 0) -> BackendError:
        return BackendError(
            "not_kinesplat",
            f"Something else than Kinesplat answers at {self.url}.",
            "Check the address and the port in the extension's preferences.",
            status,
        )


def normalize_url(text: str) -> str:
    """`127.0.0.1:8080`, `localhost:8080/`, `http://host/v1` ... as `scheme://host[:port][/path]`.

    Raises:
        BackendError: `bad_address`.
    """
    text = text.strip()
    with_scheme = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(with_scheme)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _bad_address(text) from error
    if parts.scheme.lower() not in ("http", "https") or not host or parts.username or " " in host:
        raise _bad_address(text)
    host = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme.lower()}://{host}{f':{port}' if port else ''}{path}"


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this computer. Other addresses need the user's consent to go online."""
    host = urlsplit(normalize_url(url)).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def file_problem(error: OSError, path: str | os.PathLike) -> BackendError:
    """A file on this computer that cannot be read or written, as a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BackendError(
            "disk_full_here",
            f"The disk of {Path(path).parent} is full.",
            "Free some space, then try again: nothing is lost.",
        )
    return BackendError("file_problem", f"{path} cannot be used: {error.strerror or error}.")


def _bad_address(text: str) -> BackendError:
    return BackendError(
        "bad_address",
        f"{text!r} is not an address of a backend.",
        "Enter something like 127.0.0.1:8080 or https://render-box:8443.",
    )


def _json(answer: requests.Response):
    try:
        return answer.json()
    except (ValueError, requests.RequestException) as error:
        raise BackendError("bad_answer", "The backend gave an answer that cannot be read.") from error
