# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's own client against the real service: both sides of the HTTP API mean the same."""

import hashlib
import io
import json
import os
import signal
import sys
import threading
import time

import pytest
from PIL import Image

from blender_addon import client as addon_client
from blender_addon import local_backend
from blender_addon.client import BackendClient, BackendError
from blender_addon.contract.requests import KINDS
from tests.service.fake_pipelines import expected_result
from tests.service.running import ROOT, pictures, request_of, running, wait_for


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("addon") / "home") as service:
        yield service


@pytest.fixture
def client(service):
    server = local_backend.read_server(service.settings.home)
    client = BackendClient(server.url, server.token)
    yield client
    client.close()


def submit(client, tmp_path, name, key=None):
    frames = []
    for index, data in enumerate(pictures()):
        path = tmp_path / f"{index}.png"
        path.write_bytes(data)
        frames.append(hashlib.sha256(data).hexdigest())
        client.upload(path, frames[-1])
    return client.submit(request_of(name, frames), key or os.urandom(8).hex(), "blender")


def watched(client, job, seconds=30.0):
    """The job in all the forms that the add-on gets to see, until it ends."""
    deadline, seen = time.monotonic() + seconds, [job]
    while time.monotonic() < deadline:
        if seen[-1]["state"] in ("succeeded", "failed", "cancelled"):
            return seen
        now = client.job(job["id"], seen[-1]["rev"], wait=1.0)
        if now["rev"] > seen[-1]["rev"]:
            seen.append(now)
    raise AssertionError(f"still {seen[-1]['state']}")


def test_the_whole_way(client, service, tmp_path, monkeypatch):
    assert client.health().started == local_backend.read_server(service.settings.home).started
    assert client.capabilities()["kinds"] == list(KINDS)
    name = "steps=30 seconds=0.06"
    job = submit(client, tmp_path, name, "key-1")
    assert submit(client, tmp_path, name, "key-1")["id"] == job["id"]
    seen = watched(client, job)
    assert seen[-1]["state"] == "succeeded"
    assert any(item["preview_rev"] for item in seen)
    assert Image.open(io.BytesIO(client.preview(job["id"]))).format == "JPEG"
    path = tmp_path / "clip.npz"
    fractions = []
    sha256 = client.download_result(job["id"], path, fractions.append)
    assert sha256 == seen[-1]["result"]["sha256"]
    assert path.read_bytes() == expected_result({"name": name}, pictures())
    assert fractions[-1] == 1.0
    assert job["id"] in {item["id"] for item in client.jobs("blender")}
    names = [submit(client, tmp_path, f"steps=1 seconds=0.0{number}", f"more-{number}")["name"] for number in range(4)]
    for page in (1, 2, 5, 6):
        monkeypatch.setattr(addon_client, "MAX_JOBS", page)
        assert [item["name"] for item in client.jobs("blender")] == [*reversed(names), name]
    client.delete(job["id"])
    client.delete(job["id"])  # gone already
    assert job["id"] not in {item["id"] for item in client.jobs("blender")}


def test_a_download_goes_on_where_it_was_cut(client, tmp_path):
    job = submit(client, tmp_path, "steps=2")
    watched(client, job)
    path = tmp_path / "clip.npz"
    client.download_result(job["id"], path)
    whole = path.read_bytes()
    for have in (1, 1000, len(whole) - 1, len(whole)):
        path.unlink()
        (tmp_path / "clip.npz.part").write_bytes(whole[:have])
        (tmp_path / "clip.npz.etag").write_text(f'"{hashlib.sha256(whole).hexdigest()}"')
        client.download_result(job["id"], path)
        assert path.read_bytes() == whole


def test_failure_cancel_and_retry(client, tmp_path):
    job = submit(client, tmp_path, "user=1")
    failed = watched(client, job)[-1]
    assert (failed["error"]["message"], failed["error"]["hint"]) == (
        "The pictures are empty.", "Select an object with a surface.",
    )  # fmt: skip
    assert "The pictures are empty." in client.log(job["id"])
    assert client.retry(job["id"])["state"] == "queued"
    watched(client, job)
    slow = submit(client, tmp_path, "steps=500 seconds=0.02")
    wait_for(lambda: client.job(slow["id"])["state"] == "running")
    assert client.cancel(slow["id"])["state"] == "cancelling"
    assert watched(client, slow)[-1]["state"] == "cancelled"


def test_errors_arrive_as_codes_and_sentences(client, service, tmp_path):
    with pytest.raises(BackendError) as caught:
        client.job("0" * 16)
    assert (caught.value.code, caught.value.status) == ("job_unknown", 404)
    with pytest.raises(BackendError) as caught:
        client.submit(request_of("Fox", ["f" * 64] * 8), "key-x", "blender")
    assert caught.value.code == "blobs_missing"
    stranger = BackendClient(client.url, "0" * 64)
    stranger.health()
    with pytest.raises(BackendError) as caught:
        stranger.capabilities()
    assert caught.value.code == "wrong_token"


@pytest.mark.slow
def test_the_add_on_starts_and_stops_the_real_backend(tmp_path):
    home = tmp_path / "home"
    installation = local_backend.Installation(ROOT, sys.executable)
    server = local_backend.start(installation, home)
    try:
        assert json.loads((home / "server.json").read_text())["pid"] == server.pid
        # A second Start finds the first one.
        assert local_backend.start(installation, home).pid == server.pid
    finally:
        local_backend.stop(home)
    assert not local_backend.process_exists(server.pid)
    with pytest.raises(BackendError):
        local_backend.read_server(home)


@pytest.mark.slow
def test_the_backend_is_killed_while_the_add_on_polls(tmp_path):
    with running(tmp_path / "home") as service:
        server = local_backend.read_server(service.settings.home)
        client = BackendClient(server.url, server.token)
        job = submit(client, tmp_path, "steps=50 seconds=0.05")
        errors = []

        def poll():
            try:
                watched(client, job)
            except BackendError as error:
                errors.append(error)

        thread = threading.Thread(target=poll)
        thread.start()
        time.sleep(0.5)
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        thread.join(20)
        assert [error.code for error in errors] == ["not_running"]
        assert errors[0].is_temporary
        with pytest.raises(BackendError):
            local_backend.read_server(service.settings.home)
        service.start()
        server = local_backend.read_server(service.settings.home)
        client = BackendClient(server.url, server.token)
        assert [item["id"] for item in client.jobs("blender")] == [job["id"]]
        assert watched(client, client.job(job["id"]))[-1]["state"] == "succeeded"
