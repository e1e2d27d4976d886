# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against a real HTTP server: every answer becomes a result or one sentence."""

import errno
import hashlib
import socket
import time

import pytest

from blender_addon import client as client_module
from blender_addon.client import BackendClient, BackendError, is_loopback, normalize_url
from blender_addon.contract.requests import orbit_request
from tests.addon.fake_backend import TOKEN, FakeBackend


@pytest.fixture
def backend(tmp_path):
    with FakeBackend(tmp_path / "home") as running:
        yield running


@pytest.fixture
def client(backend):
    connected = BackendClient(backend.url, TOKEN)
    yield connected
    connected.close()


def a_request(sha256: str) -> dict:
    return orbit_request("Fox", {"frames": [sha256], "cameras": {}}, None, None, [[1.0, 0, 0, 0]] * 4)


def submit(client, tmp_path, key="key-1") -> dict:
    picture = tmp_path / "frame.png"
    picture.write_bytes(b"a picture")
    sha256 = hashlib.sha256(b"a picture").hexdigest()
    client.upload(picture, sha256)
    return client.submit(a_request(sha256), key, "me")


def finished_job(client, tmp_path) -> str:
    job = submit(client, tmp_path)
    while job["state"] != "succeeded":
        job = client.job(job["id"])
    return job["id"]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        (" localhost:8080/ ", "http://localhost:8080"),
        ("http://render-box:8443/v1", "http://render-box:8443"),
        ("HTTPS://Render-Box/kinesplat/", "https://render-box/kinesplat"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("render-box", "http://render-box"),
    ],
)
def test_any_form_of_address_is_understood(text, url) -> None:
    assert normalize_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://host", "http://", "host:port", "http://user:pass@host", "a b", "x:99999"])
def test_what_is_no_address_is_refused_with_an_example(text) -> None:
    with pytest.raises(BackendError) as caught:
        normalize_url(text)
    assert caught.value.code == "bad_address"
    assert "127.0.0.1:8080" in caught.value.hint


def test_loopback_is_told_from_the_rest() -> None:
    assert all(is_loopback(url) for url in ("127.0.0.1:1", "localhost", "http://[::1]:2", "127.8.9.1"))
    assert not any(is_loopback(url) for url in ("192.168.1.2", "render-box", "localhost.example.org", "8.8.8.8"))


def test_from_upload_to_result(client, backend, tmp_path) -> None:
    assert client.health().version == "0.1.0"
    job = submit(client, tmp_path)
    assert job["state"] == "queued"
    assert [known["id"] for known in client.jobs("me")] == [job["id"]]
    assert client.jobs("somebody-else") == []
    assert client.preview(job["id"]) is None
    assert client.job(job["id"])["state"] == "running"
    assert client.preview(job["id"]) == backend.picture
    while client.job(job["id"])["state"] != "succeeded":
        pass
    seen = []
    path = tmp_path / "results" / "clip.npz"
    assert client.download_result(job["id"], path, seen.append) == hashlib.sha256(backend.result).hexdigest()
    assert path.read_bytes() == backend.result
    assert seen[-1] == 1.0
    assert [other.name for other in path.parent.iterdir()] == ["clip.npz"]
    client.delete(job["id"])
    client.delete(job["id"])  # gone already: fine
    with pytest.raises(BackendError) as caught:
        client.job(job["id"])
    assert (caught.value.code, caught.value.status) == ("job_unknown", 404)


def test_a_log_comes_whole(client, backend, tmp_path) -> None:
    job = submit(client, tmp_path)
    assert client.log(job["id"]) == ""
    told = "attempt 1 begins\n" + "größer als ein Stück\n" * 10
    backend.logs[job["id"]] = told.encode()
    assert client.log(job["id"]) == told


def test_content_is_sent_once(client, backend, tmp_path) -> None:
    submit(client, tmp_path)
    submit(client, tmp_path, key="key-2")
    assert sum(method == "PUT" for method, _ in backend.calls) == 1


def test_the_same_key_is_the_same_job(client, tmp_path) -> None:
    assert submit(client, tmp_path)["id"] == submit(client, tmp_path)["id"]


def test_the_token_is_not_told_to_strangers(client, backend) -> None:
    backend.problems["GET", "/health"] = (200, {"product": "something else"})
    seen = []
    original = client._session.send
    client._session.send = lambda request, **options: seen.append(dict(request.headers)) or original(request, **options)
    with pytest.raises(BackendError) as caught:
        client.health()
    assert caught.value.code == "not_kinesplat"
    assert "Authorization" not in seen[0]


def test_a_proxy_in_the_environment_is_passed_by(backend, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert BackendClient(backend.url, TOKEN).health().version


@pytest.mark.parametrize("job_id", ["../../../escaped", "C:evil", "", None, "0" * 15])
def test_ids_that_could_lead_out_of_our_folder_are_refused(client, backend, tmp_path, job_id) -> None:
    job = backend.jobs[submit(client, tmp_path)["id"]]
    job["id"] = job_id
    for call in (lambda: client.jobs("me"), lambda: client.job(next(iter(backend.jobs)))):
        with pytest.raises(BackendError) as caught:
            call()
        assert caught.value.code == "bad_answer"


def test_nobody_answers(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(BackendError) as caught:
            BackendClient(f"127.0.0.1:{taken.getsockname()[1]}", "").health()
    assert caught.value.code == "not_running"
    assert caught.value.is_temporary


def test_a_server_that_never_answers_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(client_module, "READ_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        client = BackendClient(f"127.0.0.1:{silent.getsockname()[1]}", "")
        with pytest.raises(BackendError) as caught:
            client._call("GET", "/health", read_seconds=0.2)
    assert caught.value.code == "not_running"
    assert time.monotonic() - start < 3


def test_wrong_token(backend) -> None:
    with pytest.raises(BackendError) as caught:
        BackendClient(backend.url, "wrong").capabilities()
    assert caught.value.code == "wrong_token"
    assert "token" in str(caught.value)


def test_wrong_version(client, backend) -> None:
    backend.health["api_version"] += 1
    with pytest.raises(BackendError) as caught:
        client.health()
    assert caught.value.code == "wrong_version"
    assert "Update" in caught.value.hint


@pytest.mark.parametrize("answer", [(404, {}), (200, []), (200, {"status": "ok"}), (500, {"code": "x"})])
def test_another_program_on_the_port(client, backend, answer) -> None:
    backend.problems["GET", "/health"] = answer
    with pytest.raises(BackendError) as caught:
        client.health()
    assert caught.value.code == "not_kinesplat"


def test_the_backends_own_words_reach_the_user(client, backend, tmp_path) -> None:
    words = {"code": "disk_full", "detail": "There is too little free space.", "hint": "Free some."}
    backend.problems["POST", "/jobs"] = (507, words)
    with pytest.raises(BackendError) as caught:
        submit(client, tmp_path)
    assert (str(caught.value), caught.value.hint, caught.value.code) == (words["detail"], words["hint"], "disk_full")
    assert not caught.value.is_temporary


def test_an_interrupted_download_goes_on_where_it_stopped(client, backend, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(client_module, "CHUNK_BYTES", 50)
    job_id, path = finished_job(client, tmp_path), tmp_path / "clip.npz"
    backend.break_result_after = 100
    with pytest.raises(BackendError) as caught:
        client.download_result(job_id, path)
    assert caught.value.code == "not_running"
    assert not path.exists()
    assert (tmp_path / "clip.npz.part").stat().st_size == 100
    fractions = []
    client.download_result(job_id, path, fractions.append)
    assert path.read_bytes() == backend.result
    assert fractions[0] > 100 / len(backend.result)


def test_a_part_of_another_result_is_thrown_away(client, backend, tmp_path) -> None:
    job_id, path = finished_job(client, tmp_path), tmp_path / "clip.npz"
    (tmp_path / "clip.npz.part").write_bytes(b"something old")
    (tmp_path / "clip.npz.etag").write_text('"old"')
    client.download_result(job_id, path)
    assert path.read_bytes() == backend.result


def test_a_damaged_download_is_not_kept(client, backend, tmp_path) -> None:
    job_id, path = finished_job(client, tmp_path), tmp_path / "clip.npz"
    backend.corrupt_result = True
    with pytest.raises(BackendError) as caught:
        client.download_result(job_id, path)
    assert caught.value.code == "damaged_result"
    assert not list(tmp_path.glob("clip*"))
    backend.corrupt_result = False
    client.download_result(job_id, path)
    assert path.read_bytes() == backend.result


def test_a_full_disk_here_keeps_what_came(client, tmp_path, monkeypatch) -> None:
    job_id = finished_job(client, tmp_path)

    def full(_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(client_module.os, "fsync", full)
    with pytest.raises(BackendError) as caught:
        client.download_result(job_id, tmp_path / "clip.npz")
    assert caught.value.code == "disk_full_here"
    assert "nothing is lost" in caught.value.hint
    assert (tmp_path / "clip.npz.part").exists()


def test_a_download_can_be_stopped(client, tmp_path) -> None:
    job_id = finished_job(client, tmp_path)
    with pytest.raises(BackendError) as caught:
        client.download_result(job_id, tmp_path / "clip.npz", is_stopped=lambda: True)
    assert caught.value.code == "stopped"
