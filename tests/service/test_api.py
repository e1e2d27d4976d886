# SPDX-License-Identifier: GPL-3.0-or-later
"""The calls of the API, in this process and without a worker."""

import contextlib
import errno
import hashlib
import sqlite3
import threading
import time

import pytest

from backend.service import api as api_module
from backend.service import blobs as blobs_module
from backend.service import paths
from backend.service.settings import GIGABYTE
from blender_addon.contract import requests as contract
from tests.service.conftest import assert_problem
from tests.service.running import pictures, request_of

UNKNOWN = "0" * 16


def post(api, request, key="key", **body):
    return api.http.post("/v1/jobs", json={"request": request, **body}, headers={"Idempotency-Key": key})


def test_health_and_capabilities(api):
    health = api.http.get("/v1/health").json()
    assert health["product"] == "kinesplat"
    assert health["api_version"] == contract.API_VERSION
    assert health["started"] == 1.5
    capabilities = api.http.get("/v1/capabilities").json()
    assert capabilities["kinds"] == list(contract.KINDS)
    assert capabilities["bounds"]["gaussians"] == {"default": 5000, "minimum": 500, "maximum": 200_000}
    assert capabilities["device"] is None
    assert "fox, sneak" in capabilities["prompts"]
    api.queue.set_fact("device", {"type": "cpu", "name": "2 cores"})
    assert api.http.get("/v1/capabilities").json()["device"] == {"type": "cpu", "name": "2 cores"}


def test_blobs(api):
    data = b"picture" * 100_000
    sha256 = hashlib.sha256(data).hexdigest()
    address = f"/v1/blobs/{sha256}"
    assert api.http.head(address).status_code == 404
    answer = api.http.put(address, content=data)
    assert (answer.status_code, answer.json()) == (201, {"sha256": sha256, "size": len(data)})
    assert api.http.head(address).status_code == 200
    assert api.http.put(address, content=data).status_code == 200
    assert_problem(api.http.put(address, content=data[:-1]), 422, "wrong_hash")
    assert api.http.head(address).status_code == 200  # what was good stays
    stored = [path for path in api.home.blobs.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in stored] == [data]


def test_an_empty_blob(api):
    assert api.put(b"") == hashlib.sha256(b"").hexdigest()


def test_a_damaged_blob_counts_as_missing_and_can_be_sent_again(api):
    request = api.request()
    sha256 = request["inputs"]["moving"]["frames"][3]
    path = api.home.blobs / sha256[:2] / sha256
    data = path.read_bytes()
    path.write_bytes(data[:10] + b"!" + data[11:])
    problem = assert_problem(post(api, request), 422, "blobs_missing")
    assert problem["missing"] == [sha256]
    assert not path.exists()
    api.put(data)
    assert post(api, request).status_code == 201


def test_submit(api):
    request = api.request()
    answer = post(api, request, client="blender-1")
    assert answer.status_code == 201
    job = answer.json()
    assert (job["state"], job["name"], job["client"], job["ahead"]) == ("queued", "Fox", "blender-1", 0)
    again = post(api, request, client="blender-1")
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    assert_problem(post(api, {**request, "name": "Another"}), 409, "idempotency_conflict")
    second = post(api, request, key="another")
    assert (second.status_code, second.json()["ahead"]) == (201, 1)


def test_the_same_key_works_also_when_blobs_have_gone_since(api):
    request = api.request()
    job = post(api, request).json()
    for path in api.home.blobs.glob("*/*"):
        path.unlink()
    assert post(api, request).json()["id"] == job["id"]


def test_submit_names_what_is_missing(api):
    frames = [hashlib.sha256(data).hexdigest() for data in pictures(seed=5)]
    problem = assert_problem(post(api, request_of("Fox", frames)), 422, "blobs_missing")
    assert problem["missing"] == frames
    assert api.http.get("/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "ä", "a/b"])
def test_keys_that_are_none(api, key):
    answer = api.http.post(
        "/v1/jobs", json={"request": api.request()}, headers={b"Idempotency-Key": key.encode("latin-1")}
    )
    assert_problem(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"request": ' + b"9" * 5000 + b"}"]
)
def test_bodies_that_are_none(api, body):
    headers = {"Content-Type": "application/json", "Idempotency-Key": "key"}
    answer = api.http.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert_problem(answer, answer.status_code, answer.json()["code"])


def test_full_queue(make_api):
    api = make_api(max_queued=2)
    request = api.request()
    assert [post(api, request, key=key).status_code for key in "abc"] == [201, 201, 429]
    assert_problem(post(api, request, key="d"), 429, "queue_full")
    assert post(api, request, key="a").status_code == 200


def test_list(api):
    first, second = api.submit("1", key="1", client="a"), api.submit("2", key="2", client="b")
    api.queue.claim("worker", 15)

    def names(query):
        return [job["name"] for job in api.http.get(f"/v1/jobs{query}").json()["jobs"]]

    assert names("") == ["2", "1"]
    assert names("?client=a") == ["1"]
    assert names("?state=running") == ["1"]
    assert names("?state=running&state=queued") == ["2", "1"]
    assert names("?state=active&limit=1") == ["2"]
    assert names("?state=failed") == []
    assert names("?client=nobody") == []
    assert names(f"?before={second['id']}") == ["1"]
    assert names(f"?before={first['id']}&client=a") == []
    assert_problem(api.http.get("/v1/jobs?before=unknown"), 404, "job_unknown")
    assert_problem(api.http.get("/v1/jobs?state=sleeping"), 422, "invalid_request")
    assert_problem(api.http.get("/v1/jobs?limit=0"), 422, "invalid_request")
    assert first["id"] != second["id"]


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("GET", ""),
        ("GET", "/preview"),
        ("GET", "/log"),
        ("GET", "/result"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("DELETE", ""),
    ],
)
def test_unknown_jobs_are_404(api, method, part):
    assert_problem(api.http.request(method, f"/v1/jobs/{UNKNOWN}{part}"), 404, "job_unknown")


def test_unknown_addresses(api):
    assert_problem(api.http.get("/v1/nothing"), 404, "http_404")
    assert_problem(api.http.put("/v1/jobs"), 405, "http_405")


def test_polling_with_a_revision(api):
    job = api.submit()
    address = f"/v1/jobs/{job['id']}"
    assert api.http.get(f"{address}?after_rev={job['rev'] - 1}").json()["id"] == job["id"]
    assert api.http.get(f"{address}?after_rev={job['rev']}").json() == job
    started = time.monotonic()
    assert api.http.get(f"{address}?after_rev={job['rev']}&wait=0.5").json() == job
    assert 0.4 < time.monotonic() - started < 3
    threading.Timer(0.3, lambda: api.queue.claim("worker", 15)).start()
    started = time.monotonic()
    answer = api.http.get(f"{address}?after_rev={job['rev']}&wait=20")
    assert time.monotonic() - started < 3
    assert answer.json()["state"] == "running"
    assert_problem(api.http.get(f"{address}?after_rev=0&wait=21"), 422, "invalid_request")
    assert_problem(api.http.get(f"{address}?after_rev=0&wait=nan"), 422, "invalid_request")


def test_nobody_waits_for_a_job_that_has_ended(api):
    job = api.finished()
    started = time.monotonic()
    assert api.http.get(f"/v1/jobs/{job['id']}?after_rev={job['rev']}&wait=20").json() == job
    assert time.monotonic() - started < 2


def test_a_waiting_call_hears_of_a_deletion(api):
    job = api.finished()
    retried = api.http.get(f"/v1/jobs/{job['id']}").json()
    assert api.http.delete(f"/v1/jobs/{retried['id']}").status_code == 204
    assert_problem(api.http.get(f"/v1/jobs/{job['id']}?after_rev=99&wait=5"), 404, "job_unknown")


def test_cancel_is_idempotent(api):
    job = api.submit()
    for _ in range(2):
        assert api.http.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    running = api.submit("2", key="2")
    api.queue.claim("worker", 15)
    for _ in range(2):
        assert api.http.post(f"/v1/jobs/{running['id']}/cancel").json()["state"] == "cancelling"


def test_retry(api):
    job = api.submit()
    address = f"/v1/jobs/{job['id']}"
    assert api.http.post(f"{address}/retry").json()["state"] == "queued"
    api.http.post(f"{address}/cancel")
    assert api.http.post(f"{address}/retry").json()["state"] == "queued"
    api.http.post(f"{address}/cancel")
    done = api.finished("2")
    assert_problem(api.http.post(f"/v1/jobs/{done['id']}/retry"), 409, "already_succeeded")


def test_result(api):
    data = bytes(range(256)) * 4000
    job = api.finished("Füchsin / 2", data)
    assert job["result"] == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    address = f"/v1/jobs/{job['id']}/result"
    answer = api.http.get(address)
    etag = answer.headers["ETag"]
    assert (answer.status_code, answer.content, etag) == (200, data, f'"{job["result"]["sha256"]}"')
    assert "/" not in answer.headers["Content-Disposition"].split("filename", 1)[1]
    part = api.http.get(address, headers={"Range": "bytes=1000-"})
    assert (part.status_code, part.content) == (206, data[1000:])
    assert part.headers["ETag"] == etag
    part = api.http.get(address, headers={"Range": "bytes=1000-", "If-Range": etag})
    assert (part.status_code, part.content) == (206, data[1000:])
    part = api.http.get(address, headers={"Range": "bytes=1000-", "If-Range": '"another"'})
    assert (part.status_code, part.content) == (200, data)
    assert api.http.get(address, headers={"Range": f"bytes={len(data)}-"}).status_code == 416


def test_no_result_before_the_end(api):
    job = api.submit()
    assert_problem(api.http.get(f"/v1/jobs/{job['id']}/result"), 409, "not_finished")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_result_is_never_sent_and_can_be_made_again(api, damage):
    data = bytes(range(256)) * 400
    job = api.finished(data=data)
    sha256 = job["result"]["sha256"]
    path = api.home.blobs / sha256[:2] / sha256
    if damage == "remove":
        path.unlink()
    else:
        flipped = data[:500] + bytes([data[500] ^ 1]) + data[501:]
        path.write_bytes({"flip": flipped, "truncate": data[:-1], "empty": b""}[damage])
    for headers in ({}, {"Range": "bytes=0-10"}):
        assert_problem(api.http.get(f"/v1/jobs/{job['id']}/result", headers=headers), 410, "result_damaged")
    assert api.http.post(f"/v1/jobs/{job['id']}/retry").json()["state"] == "queued"


def test_delete(api):
    job = api.submit()
    assert_problem(api.http.delete(f"/v1/jobs/{job['id']}"), 409, "job_active")
    api.http.post(f"/v1/jobs/{job['id']}/cancel")
    api.home.work(job["id"]).mkdir(parents=True)
    assert api.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert not (api.home.jobs / job["id"]).exists()
    assert_problem(api.http.delete(f"/v1/jobs/{job['id']}"), 404, "job_unknown")


def test_log_in_pieces(api, monkeypatch):
    monkeypatch.setattr(api_module, "LOG_BYTES", 100)
    job = api.submit()
    address = f"/v1/jobs/{job['id']}/log"
    answer = api.http.get(address)
    assert (answer.status_code, answer.text, answer.headers["X-Next-Offset"]) == (200, "", "0")
    text = "".join(f"line {index} says ä\n" for index in range(50))
    path = api.home.log(job["id"])
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    got, offset = "", 0
    while (answer := api.http.get(f"{address}?offset={offset}")).content:
        got += answer.content.decode()
        offset = int(answer.headers["X-Next-Offset"])
    assert got == text
    assert api.http.get(f"{address}?offset={2**31}").text == ""
    assert_problem(api.http.get(f"{address}?offset={2**31 + 1}"), 422, "invalid_request")
    assert_problem(api.http.get(f"{address}?offset=-1"), 422, "invalid_request")


def test_preview(api):
    job = api.submit()
    address = f"/v1/jobs/{job['id']}/preview"
    assert_problem(api.http.get(address), 404, "no_preview")
    path = api.home.preview(job["id"])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xd8 picture")
    answer = api.http.get(address)
    assert (answer.content, answer.headers["content-type"]) == (b"\xff\xd8 picture", "image/jpeg")
    assert api.http.get(address, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


# Full disks


def test_too_little_free_space(make_api, monkeypatch):
    api = make_api(min_free=GIGABYTE)
    request = api.request()
    monkeypatch.setattr(paths, "free_bytes", lambda folder: GIGABYTE - 1)
    assert_problem(post(api, request), 507, "disk_full")
    problem = assert_problem(api.http.put("/v1/blobs/" + "a" * 64, content=b"x"), 507, "disk_full")
    assert "nothing is lost" in problem["hint"]
    monkeypatch.setattr(paths, "free_bytes", lambda folder: 2 * GIGABYTE)
    assert post(api, request).status_code == 201


def test_quota(make_api):
    api = make_api(quota=10_000)
    api.put(b"a" * 6000)
    data = b"b" * 6000
    address = f"/v1/blobs/{hashlib.sha256(data).hexdigest()}"
    assert_problem(api.http.put(address, content=data), 507, "disk_full")
    assert api.http.head(address).status_code == 404
    assert not list(api.home.blobs.glob(".tmp-*"))


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_the_disk_fills_up_during_an_upload(api, monkeypatch, where):
    data = b"b" * 3_000_000
    sha256 = hashlib.sha256(data).hexdigest()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(blobs_module.Incoming, "write", full)
        else:
            patch.setattr(blobs_module.os, "fsync", full)
        assert_problem(api.http.put(f"/v1/blobs/{sha256}", content=data), 507, "disk_full")
    assert not list(api.home.blobs.glob(".tmp-*"))
    assert api.http.head(f"/v1/blobs/{sha256}").status_code == 404
    assert api.put(data) == sha256


def test_the_disk_fills_up_during_a_submission(make_api, monkeypatch):
    """The database cannot grow: 507, the rows stay, and it goes on once there is space."""
    connections = []
    plain = sqlite3.connect

    def connect(*arguments, **options):
        connections.append(plain(*arguments, **options))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", connect)
    api = make_api()
    request = api.request()
    kept = post(api, request, key="kept").json()["id"]
    for connection in connections:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size, which is more
    accepted = [kept]
    for index in range(60):
        answer = post(api, request, key=f"first-{index}")
        if answer.status_code != 201:
            break
        accepted.append(answer.json()["id"])
    assert_problem(answer, 507, "disk_full")
    for connection in connections:
        with contextlib.suppress(sqlite3.ProgrammingError):  # closed, because its write failed
            connection.execute("PRAGMA max_page_count = 100000")
    later = post(api, request, key="later")
    assert later.status_code == 201
    assert api.queue.problems() == []
    assert {job["id"] for job in api.http.get("/v1/jobs").json()["jobs"]} == {*accepted, later.json()["id"]}


def test_a_fault_of_ours_is_one_sentence(api, monkeypatch):
    monkeypatch.setattr(api_module.JobsModel, "__init__", lambda *_, **__: 1 / 0)
    problem = assert_problem(api.http.get("/v1/jobs"), 500, "internal_error")
    assert "ZeroDivision" not in str(problem)


# OpenAPI


def test_every_error_is_declared(api):
    document = api.http.get("/v1/openapi.json").json()
    assert document["components"]["schemas"]["Problem"]["required"]
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            declared = set(call["responses"])
            assert {"401", "403", "421", "422"} <= declared, (method, path)
            if "{job_id}" in path:
                assert "404" in declared
            for status, answer in call["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, status)
