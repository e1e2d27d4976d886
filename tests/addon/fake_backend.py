# SPDX-License-Identifier: GPL-3.0-or-later
"""A small backend over real HTTP that obeys docs/http_api.md and can be told to misbehave."""

import contextlib
import hashlib
import io
import json
import os
import re
import socket
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from blender_addon.contract.clip import write_clip
from blender_addon.contract.frames import write_frames
from blender_addon.contract.requests import API_VERSION, TERMINAL_STATES, request_blobs, request_result
from tests.contract.clips import random_clip, random_frames

TOKEN = "0" * 64
LOG_BYTES = 32  # of a log that are told at once


class FakeBackend:
    """Start with `with FakeBackend(home) as backend`; it writes server.json and token into `home`."""

    def __init__(self, home: Path, *, steps: int = 2, frames: int = 5, gaussians: int = 50) -> None:
        self.home = home
        self.steps = steps  # looks at a job until it has succeeded; -1: never
        self.blobs: dict[str, bytes] = {}
        self.jobs: dict[str, dict] = {}
        self.requests: dict[str, dict] = {}  # by job id
        self.keys: dict[str, str] = {}
        self.health = {"product": "kinesplat", "version": "0.1.0", "api_version": API_VERSION, "started": time.time()}
        self.capabilities: dict = {}
        self.problems: dict[tuple[str, str], tuple[int, dict]] = {}  # (method, path pattern) -> what to answer
        self.logs: dict[str, bytes] = {}  # by job id
        self.calls: list[tuple[str, str]] = []
        self.break_result_after: int | None = None  # bytes, once
        self.corrupt_result = False
        self.delay = 0.0
        self.connections: set[socket.socket] = set()
        self._ended = False
        home.mkdir(parents=True, exist_ok=True)
        write_clip(home / "result.npz", random_clip(n=gaussians, frames=frames, name="Result"))
        self.result = (home / "result.npz").read_bytes()
        write_frames(home / "frames.npz", random_frames(size=32))
        self.frames = (home / "frames.npz").read_bytes()
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), (200, 120, 40)).save(picture, "JPEG")
        self.picture = picture.getvalue()

    def __enter__(self) -> "FakeBackend":
        handler = type("Handler", (_Handler,), {"backend": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.announce()
        return self

    def __exit__(self, *_) -> None:
        (self.home / "server.json").unlink(missing_ok=True)
        self._ended = True
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes it
        self._thread.join()
        self._server.server_close()
        for connection in list(self.connections):  # as the system does when a process ends
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        """As `serve_forever`, which wakes again and again with nobody there.

        Python that runs while Blender renders can crash it (see `http_thread.HttpThread.held`).
        """
        while not self._ended:
            self._server.handle_request()

    def announce(self, **changes) -> None:
        server = {**self.health, "host": "127.0.0.1", "port": self.port, "pid": os.getpid(), **changes}
        (self.home / "server.json").write_text(json.dumps(server))
        (self.home / "token").write_text(TOKEN + "\n")

    def submit(self, key: str, body: dict) -> tuple[int, dict]:
        if key in self.keys:
            return 200, self.jobs[self.keys[key]]
        missing = [sha256 for sha256 in request_blobs(body["request"]) if sha256 not in self.blobs]
        if missing:
            return 422, {"code": "blobs_missing", "detail": "Some pictures are missing.", "missing": missing}
        job_id = uuid.uuid4().hex[:16]
        self.keys[key] = job_id
        self.requests[job_id] = body["request"]
        self.jobs[job_id] = {
            "id": job_id, "kind": body["request"]["kind"], "name": body["request"]["name"],
            "client": body.get("client"), "detail": None,
            "state": "queued", "stage": "", "step": 0, "total": 1, "fraction": 0.0, "seconds_left": None,
            "rev": 1, "preview_rev": 0, "attempt": 1, "ahead": 0, "created": time.time(),
            "started": None, "finished": None, "error": None, "result": None,
            "result_kind": request_result(body["request"]),
        }  # fmt: skip
        return 201, self.jobs[job_id]

    def advance(self, job: dict) -> dict:
        """One look at a job brings it one step further."""
        if job["state"] in TERMINAL_STATES or self.steps < 0:
            return job
        job["rev"] += 1
        if job["state"] == "cancelling":
            job["state"] = "cancelled"
        elif job["step"] < self.steps:
            job["step"] += 1
            job.update(state="running", stage="Fitting the motion", total=self.steps + 1, seconds_left=12.0)
            job.update(detail="loss 0.12")
            job.update(fraction=job["step"] / (self.steps + 1), preview_rev=job["step"])
        else:
            result = self.result_of(job)
            digest = hashlib.sha256(result).hexdigest()
            job.update(state="succeeded", stage="Done", detail=None, fraction=1.0, seconds_left=0.0)
            job.update(result={"sha256": digest, "size": len(result)})
        return job

    def result_of(self, job: dict) -> bytes:
        """The bytes that the job ends with."""
        return self.frames if job["result_kind"] == "frames" else self.result


class _Handler(BaseHTTPRequestHandler):
    backend: FakeBackend
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.backend.connections.add(self.connection)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the other side has gone while it waited
            super().handle()

    def finish(self) -> None:
        self.backend.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle_call(self) -> None:
        backend, path = self.backend, self.path.split("?")[0].removeprefix("/v1")
        backend.calls.append((self.command, path))
        time.sleep(backend.delay)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for (method, pattern), (status, problem) in backend.problems.items():
            if method == self.command and re.fullmatch(pattern, path):
                return self.answer(status, problem, "application/problem+json")
        if path == "/health":
            return self.answer(200, backend.health)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"code": "unauthorized", "detail": "The token is wrong."})
        if path == "/capabilities":
            return self.answer(200, {"device": None, **backend.capabilities})
        if match := re.fullmatch("/blobs/([0-9a-f]{64})", path):
            return self.blob(match[1], body)
        if path == "/jobs" and self.command == "POST":
            return self.answer(*backend.submit(self.headers["Idempotency-Key"], json.loads(body)))
        if path == "/jobs":
            client = re.search(r"client=([^&]+)", self.path)[1]
            jobs = [job for job in backend.jobs.values() if job["client"] == client]
            return self.answer(200, {"jobs": jobs[::-1]})
        if match := re.fullmatch("/jobs/([0-9a-f]{16})(/[a-z]+)?", path):
            return self.job(match[1], match[2] or "")
        if path == "/shutdown":
            (backend.home / "server.json").unlink(missing_ok=True)
            return self.answer(202, {"state": "ending"})
        return self.answer(404, {"code": "not_found", "detail": "No such call."})

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_call  # noqa: N815

    def blob(self, sha256: str, body: bytes) -> None:
        known = sha256 in self.backend.blobs
        if self.command == "HEAD":
            return self.answer(200 if known else 404, {})
        if hashlib.sha256(body).hexdigest() != sha256:
            return self.answer(422, {"code": "wrong_hash", "detail": "The bytes are not those of the name."})
        self.backend.blobs[sha256] = body
        return self.answer(200 if known else 201, {"sha256": sha256, "size": len(body)})

    def job(self, job_id: str, what: str) -> None:
        backend = self.backend
        job = backend.jobs.get(job_id)
        if job is None:
            return self.answer(404, {"code": "job_unknown", "detail": "There is no job with this id."})
        if self.command == "DELETE":
            del backend.jobs[job_id]
            return self.answer(204, None)
        if what == "/cancel":
            job.update(state="cancelled" if job["state"] == "queued" else "cancelling", rev=job["rev"] + 1)
        if what == "/retry":
            job.update(state="queued", step=0, fraction=0.0, error=None, rev=job["rev"] + 1)
        if what == "/preview":
            if not job["preview_rev"]:
                return self.answer(404, {"code": "no_preview", "detail": "There is none yet."})
            return self.answer(200, backend.picture, "image/jpeg")
        if what == "/result":
            return self.result(job)
        if what == "/log":
            offset = int(urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["offset"][0])
            return self.answer(200, backend.logs.get(job_id, b"")[offset : offset + LOG_BYTES], "text/plain")
        return self.answer(200, backend.advance(job) if not what else job)

    def result(self, job: dict) -> None:
        backend = self.backend
        if job["state"] != "succeeded":
            return self.answer(409, {"code": "not_finished", "detail": "This job has no result."})
        data, status, extra = backend.result_of(job), 200, {"ETag": f'"{job["result"]["sha256"]}"'}
        if backend.corrupt_result:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.headers.get("If-Range") == extra["ETag"] and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        self.answer(status, data, "application/octet-stream", extra, stop_after=backend.break_result_after)
        backend.break_result_after = None

    def answer(self, status, data, kind="application/json", extra=None, stop_after=None) -> None:
        content = data if isinstance(data, bytes) else b"" if data is None else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:stop_after])
        if stop_after is not None:
            self.close_connection = True

    def log_message(self, *_) -> None:
        pass
