# SPDX-License-Identifier: GPL-3.0-or-later
"""The API in this process, over a data directory that nobody else uses."""

import hashlib
from dataclasses import dataclass

import pytest

from backend.service import paths
from backend.service.api import create_app
from backend.service.queue import Queue
from backend.service.settings import Settings
from tests.service.running import pictures, request_of

PORT = 47111


@dataclass
class Api:
    """What a test of the API needs."""

    http: object  # a client that shows the token
    home: paths.Home
    queue: Queue
    token: str

    def put(self, data: bytes) -> str:
        """Store a blob; returns its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        assert self.http.put(f"/v1/blobs/{sha256}", content=data).status_code in (200, 201)
        return sha256

    def request(self, name: str = "Fox", **settings: object) -> dict:
        """A request whose blobs are there."""
        return request_of(name, [self.put(data) for data in pictures()], **settings)

    def submit(self, name: str = "Fox", key: str = "key", client: str | None = None) -> dict:
        """A queued job."""
        answer = self.http.post(
            "/v1/jobs", json={"request": self.request(name), "client": client}, headers={"Idempotency-Key": key}
        )
        assert answer.status_code == 201, answer.text
        return answer.json()

    def finished(self, name: str = "Fox", data: bytes = b"PK result") -> dict:
        """A job that has succeeded with this result."""
        job = self.submit(name, key=hashlib.sha256(name.encode()).hexdigest())
        sha256 = self.put(data)
        claimed = self.queue.claim("worker", 15)
        self.queue.succeed(claimed.id, claimed.attempt, sha256, len(data), lambda name: True)
        return self.http.get(f"/v1/jobs/{job['id']}").json()


@pytest.fixture
def make_api(tmp_path):
    """Makes an Api with settings of the test's choice."""
    from starlette.testclient import TestClient

    opened = []

    def make(**settings: object) -> Api:
        home = paths.Home(tmp_path / "home")
        paths.prepare(home)
        token = paths.ensure_token(home)
        app = create_app(Settings(home.folder, **{"min_free": 0, **settings}), token=token, port=PORT, started=1.5)
        http = TestClient(app, base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False)
        http.headers["Authorization"] = f"Bearer {token}"
        queue = Queue(home.database)
        opened.append(queue)
        return Api(http, home, queue, token)

    yield make
    for queue in opened:
        queue.close()


@pytest.fixture
def api(make_api):
    """An Api with the usual settings."""
    return make_api()


def assert_problem(answer, status: int, code: str) -> dict:
    """The answer is a problem of this status and code, told in sentences and without a traceback."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["title"]
    assert problem["detail"].endswith(".")
    assert "Traceback" not in answer.text
    return problem
