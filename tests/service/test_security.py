# SPDX-License-Identifier: GPL-3.0-or-later
"""Who gets past the guard."""

import os
import stat
import sys
from pathlib import PureWindowsPath
from types import SimpleNamespace

import pytest

from backend.progress import UserError
from backend.service import paths
from tests.service.conftest import PORT, assert_problem

PATHS = [
    ("GET", "/v1/health"), ("GET", "/v1/capabilities"), ("GET", "/v1/jobs"), ("POST", "/v1/jobs"),
    ("GET", "/v1/openapi.json"), ("PUT", "/v1/blobs/" + "a" * 64), ("HEAD", "/v1/blobs/" + "a" * 64),
    ("POST", "/v1/jobs/0123456789abcdef/cancel"), ("DELETE", "/v1/jobs/0123456789abcdef"), ("POST", "/v1/shutdown"),
    ("GET", "/"), ("GET", "/docs"), ("OPTIONS", "/v1/jobs"),
]  # fmt: skip


def test_without_the_token_nothing_but_health_is_said(api):
    del api.http.headers["Authorization"]
    for method, path in PATHS:
        answer = api.http.request(method, path)
        if path == "/v1/health":
            assert answer.status_code == 200
            assert api.token not in answer.text
        elif method == "HEAD":
            assert answer.status_code == 401
        else:
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer {token[0]}",
        "Bearer \xff",
    ],
)
def test_wrong_tokens(api, value):
    api.http.headers["Authorization"] = ""
    header = value.format(token=api.token).encode("latin-1")
    assert_problem(api.http.get("/v1/jobs", headers={b"Authorization": header}), 401, "unauthorized")


def test_the_token_counts_neither_as_query_nor_as_cookie(api):
    del api.http.headers["Authorization"]
    answer = api.http.get(
        f"/v1/jobs?token={api.token}&access_token={api.token}", headers={"Cookie": f"token={api.token}"}
    )
    assert_problem(answer, 401, "unauthorized")


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", f"127.0.0.1:{PORT + 1}", f"127.0.0.1.evil.example:{PORT}",
     f"0.0.0.0:{PORT}", f"[::]:{PORT}", ""],
)  # fmt: skip
def test_other_hosts_are_refused(api, host):
    for method, path in PATHS:
        answer = api.http.request(method, path, headers={"Host": host})
        assert answer.status_code == 421, (method, path)
        if method != "HEAD":
            assert_problem(answer, 421, "wrong_host")


@pytest.mark.parametrize("host", [f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"])
def test_our_own_names(api, host):
    assert api.http.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "header",
    [("Origin", "https://evil.example"), ("Origin", "null"), ("Origin", f"http://127.0.0.1:{PORT}"),
     ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "none")],
)  # fmt: skip
def test_web_pages_are_refused_even_with_the_token(api, header):
    for method, path in PATHS:
        answer = api.http.request(method, path, headers=dict([header]))
        assert answer.status_code == 403, (method, path)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        if method != "HEAD":
            assert_problem(answer, 403, "browser_refused")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/0123456789abcdef/cancel", "/v1/shutdown"])
def test_post_takes_json_alone(api, path, content_type):
    answer = api.http.post(path, content=b'{"request": {}}', headers={"Content-Type": content_type})
    assert_problem(answer, 415, "json_required")


@pytest.mark.parametrize("length", [b"-1", b"12abc", b"99999999999999999999"])
def test_lengths_that_are_none(api, length):
    answer = api.http.post(
        "/v1/jobs", content=b"{}", headers={b"Content-Length": length, b"Content-Type": b"application/json"}
    )
    assert answer.status_code in (413, 422)


def test_bodies_have_limits_whatever_their_header_says(make_api):
    api = make_api(max_json=1000, max_blob=2000)
    headers = {"Content-Type": "application/json", "Idempotency-Key": "key"}
    big = b'{"client": "' + b"a" * 1000 + b'"}'
    assert_problem(api.http.post("/v1/jobs", content=big, headers=headers), 413, "too_large")
    assert_problem(api.http.post("/v1/jobs", content=iter([big]), headers=headers), 413, "too_large")  # no length
    address = "/v1/blobs/" + "a" * 64
    assert_problem(api.http.put(address, content=b"b" * 2001), 413, "too_large")
    assert_problem(api.http.put(address, content=iter([b"b" * 1000] * 3)), 413, "too_large")
    assert not list(api.home.blobs.rglob("*")), "something of a refused upload remained"


@pytest.mark.parametrize(
    "name", ["../../token", "%2e%2e%2ftoken", "..", "a" * 63, "A" * 64, "a" * 65, "a" * 63 + "%00", "a" * 63 + "\u0661"]
)
def test_names_of_blobs_never_reach_the_file_system(api, name):
    answer = api.http.put(f"/v1/blobs/{name}", content=b"x")
    assert answer.status_code in (404, 405, 422)
    assert api.home.token.read_text().strip() == api.token
    assert not list(api.home.blobs.rglob("*"))


@pytest.mark.parametrize("job_id", ["../../token", "..%2f..%2ftoken", "0123456789abcdeg", "x"])
def test_ids_of_jobs_never_reach_the_file_system(api, job_id):
    for method, part in (("GET", ""), ("GET", "/preview"), ("GET", "/log"), ("DELETE", "")):
        answer = api.http.request(method, f"/v1/jobs/{job_id}{part}")
        assert answer.status_code in (404, 405, 422)
        assert api.token not in answer.text


def test_token_file(tmp_path):
    home = paths.Home(tmp_path / "home")
    paths.prepare(home)
    token = paths.ensure_token(home)
    assert len(bytes.fromhex(token)) == 32
    assert paths.ensure_token(home) == token
    if os.name == "posix":
        assert stat.S_IMODE(home.token.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
        paths.write_server(home, {"port": 1})
        assert stat.S_IMODE(home.server.stat().st_mode) == 0o600
    for damaged in (b"", bytes(65), b"\xa5\xff" * 32, b"letter"):  # a power cut in the wrong moment
        home.token.write_bytes(damaged)
        assert len(bytes.fromhex(paths.ensure_token(home))) == 32


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mounts")
def test_network_drives_are_refused(tmp_path, monkeypatch):
    import psutil

    part = psutil.disk_partitions(all=True)[0]._replace(mountpoint=str(tmp_path), fstype="nfs4")
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [part._replace(mountpoint="/", fstype="ext4"), part])
    with pytest.raises(UserError, match="network drive") as caught:
        paths.prepare(paths.Home(tmp_path / "home"))
    assert caught.value.code == "home_on_network"


def test_a_share_is_a_network_drive_on_windows_too():
    mapped = SimpleNamespace(resolve=lambda: PureWindowsPath(r"\\server\homes\ada\kinesplat"))  # of Z:\kinesplat
    assert paths.file_system(mapped) in paths.NETWORK_FILE_SYSTEMS


def test_a_folder_that_windows_hides_from_blender_is_refused(tmp_path, monkeypatch):
    """The Python of its store writes into a place of its own, and Blender would wait for the backend in vain."""
    redirected = (
        r"C:\Users\ada\AppData\Local\Packages\PythonSoftwareFoundation.Python.3.11_x\LocalCache\Local\kinesplat"
    )
    monkeypatch.setattr(os.path, "realpath", lambda path: redirected)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="Microsoft Store") as caught:
        paths.prepare(paths.Home(tmp_path))
    assert "python.org" in caught.value.hint
