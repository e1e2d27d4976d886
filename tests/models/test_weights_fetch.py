# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloading from a hub that is a small server on this computer; the real one is never asked."""

import errno
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save

from backend.models import weights_convert, weights_fetch
from backend.models.checkpoints import CARD, locate, read_card, read_tensors
from backend.models.weights_fetch import DOWNLOADS, fetch
from backend.models.weights_registry import File, Source, Weights
from backend.progress import JobCancelled, Run, UserError

TENSORS = {"a.weight": torch.arange(60_000.0), "a.bias": torch.ones(3)}
CONTENT = save(TENSORS)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
CONFIG = b'{"channels": 3}'


class Hub(ThreadingHTTPServer):
    """Files by "repository/path". Each request for bytes is noted; `cut` ends answers early."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.ranges: list[str] = []  # of the requests for bytes
        self.asked: list[str] = []
        self.cut: int | None = None  # bytes after which the connection breaks
        self.ignores_ranges = False
        self.etags: dict[str, str] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def content(self) -> tuple[str, bytes] | None:
        repository, _, path = self.path.lstrip("/").partition("/resolve/")
        name = f"{repository}/{path.partition('/')[2]}"
        self.server.asked.append(name)
        return (name, self.server.files[name]) if name in self.server.files else None

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, send: bool) -> None:
        found = self.content()
        if found is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        name, content = found
        etag = self.server.etags.get(name, hashlib.sha256(content).hexdigest())
        begin = 0
        wanted = self.headers.get("Range", "")
        if send:
            self.server.ranges.append(wanted)
        if wanted and not self.server.ignores_ranges:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if send:
            end = len(content) if self.server.cut is None else begin + self.server.cut
            self.wfile.write(content[begin:end])
            self.wfile.flush()
            if end < len(content):
                self.connection.close()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    server.files = {"us/toy/model.safetensors": CONTENT, "us/toy/part/config.json": CONFIG}
    server.etags["us/toy/part/config.json"] = "5" * 40  # small files have git's digest
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_fetch, "PAUSE", 0.0)
    monkeypatch.setattr(weights_fetch, "CHUNK", 10_000)
    expected = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    monkeypatch.setattr("backend.models.weights_registry.expected_shapes", lambda keys: expected)


def weights(**changes) -> Weights:
    entry = {
        "name": "toy", "title": "Toy", "needed_by": (), "licence": "MIT", "licence_page": "https://example.org/licence",
        "commercial": "yes", "keys": "toy", "sources": (Source("us/toy"),),
        "files": (File("model.safetensors", bytes=len(CONTENT), sha256=DIGEST), File("part/config.json")),
    }  # fmt: skip
    return Weights(**{**entry, **changes})


def get(hub: Hub, folder: Path, wanted: Weights | None = None, **options) -> Path:
    return fetch(wanted or weights(), folder, Run(folder), endpoint=hub.address, **options)


def test_files_arrive_and_need_no_network_afterwards(hub: Hub, tmp_path: Path) -> None:
    seen = []
    made = fetch(weights(), tmp_path, Run(tmp_path, on_progress=seen.append), endpoint=hub.address)
    assert made == tmp_path / "toy" == locate("toy", tmp_path)
    assert torch.equal(read_tensors(made)["a.weight"], TENSORS["a.weight"])
    assert (made / "part" / "config.json").read_bytes() == CONFIG
    card = read_card(made)
    assert card["files"]["model.safetensors"] == {"bytes": len(CONTENT), "sha256": DIGEST}
    assert card["source"] == {"repository": "us/toy", "revision": "main"}
    assert {progress.stage for progress in seen} > {"Downloading model.safetensors", "Checking", "Done"}
    hub.asked.clear()
    assert get(hub, tmp_path) == made
    assert hub.asked == []


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    stop = iter([False] * 5)
    run = Run(tmp_path, is_cancelled=lambda: next(stop, True))
    with pytest.raises(JobCancelled):
        fetch(weights(), tmp_path, run, endpoint=hub.address)
    assert not (tmp_path / "toy").exists()
    [part] = (tmp_path / DOWNLOADS / "toy").glob("model.safetensors.*.part")
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    hub.ranges.clear()
    get(hub, tmp_path)
    assert hub.ranges[0] == f"bytes={kept}-"
    assert torch.equal(read_tensors(tmp_path / "toy")["a.weight"], TENSORS["a.weight"])


def test_a_server_that_cannot_resume_starts_again(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / DOWNLOADS / "toy"
    remote = weights_fetch.look_up(weights().files[0], Source("us/toy"), hub.address)
    part = weights_fetch._part(remote, folder)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    hub.ignores_ranges = True
    get(hub, tmp_path)
    assert read_card(tmp_path / "toy")["files"]["model.safetensors"]["sha256"] == DIGEST


def test_a_broken_connection_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 50_000
    get(hub, tmp_path)
    assert len(hub.ranges) > 4
    assert hub.ranges[1] == "bytes=50000-"
    assert read_card(tmp_path / "toy")["files"]["model.safetensors"]["sha256"] == DIGEST


def test_a_download_that_never_ends_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 0
    with pytest.raises(UserError, match=r"model\.safetensors could not be downloaded") as caught:
        get(hub, tmp_path)
    assert caught.value.code == "download_failed"
    assert "goes on from there" in caught.value.hint
    assert not (tmp_path / "toy").exists()


def test_wrong_bytes_are_removed(hub: Hub, tmp_path: Path) -> None:
    hub.etags["us/toy/model.safetensors"] = DIGEST
    hub.files["us/toy/model.safetensors"] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(UserError, match="has arrived damaged") as caught:
        get(hub, tmp_path)
    assert caught.value.code == "weights_damaged"
    assert not (tmp_path / "toy").exists()
    assert not (tmp_path / DOWNLOADS / "toy" / "model.safetensors").exists()
    hub.files["us/toy/model.safetensors"] = CONTENT
    get(hub, tmp_path)


def test_what_the_hub_says_is_checked_where_we_know_nothing(hub: Hub, tmp_path: Path) -> None:
    unknown = weights(files=(File("model.safetensors"),))
    assert not unknown.verified
    hub.etags["us/toy/model.safetensors"] = "0" * 64
    with pytest.raises(UserError, match="has arrived damaged"):
        get(hub, tmp_path, unknown)


def test_another_file_of_that_name_is_not_even_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.files["us/toy/model.safetensors"] = save({"a": torch.zeros(9)})
    for changed in (weights(), weights(files=(File("model.safetensors", sha256=DIGEST),))):
        with pytest.raises(UserError, match=r"us/toy: model\.safetensors (has|is another)") as caught:
            get(hub, tmp_path, changed)
        assert caught.value.code == "weights_unreachable"
    assert hub.ranges == []


def test_mirrors_are_tried_in_order(hub: Hub, tmp_path: Path) -> None:
    mirrored = weights(sources=(Source("gone/toy"), Source("us/toy"), Source("third/toy")))
    get(hub, tmp_path, mirrored)
    assert read_card(tmp_path / "toy")["source"]["repository"] == "us/toy"
    assert not any(name.startswith("third") for name in hub.asked)


def test_a_chosen_source_is_the_only_one(hub: Hub, tmp_path: Path) -> None:
    mirrored = weights(sources=(Source("gone/toy"), Source("us/toy")))
    with pytest.raises(UserError, match=r"No source of toy can be used\. gone/toy: ") as caught:
        get(hub, tmp_path, mirrored, source="gone/toy")
    assert caught.value.code == "weights_unreachable"
    with pytest.raises(UserError, match="else/toy is not a source") as caught:
        get(hub, tmp_path, mirrored, source="else/toy")
    assert "us/toy" in caught.value.hint


def test_no_connection_is_told_without_a_traceback(hub: Hub, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match="No source of toy can be used") as caught:
        get(hub, tmp_path)
    assert "by hand" in caught.value.hint


def test_licences_that_may_forbid_commercial_use_must_be_accepted(hub: Hub, tmp_path: Path) -> None:
    for commercial, verb in (("no", "forbids"), ("unclear", "may forbid")):
        closed = weights(commercial=commercial, licence="CC-BY-NC-4.0", note="Read it.")
        with pytest.raises(UserError, match=rf"{verb} commercial use: CC-BY-NC-4\.0\. Read it\.") as caught:
            get(hub, tmp_path, closed)
        assert "--accept-licence" in caught.value.hint
        assert "https://example.org/licence" in caught.value.hint
    assert hub.asked == []
    get(hub, tmp_path, closed, accept_licence=True)
    assert read_card(tmp_path / "toy")["commercial_use"] == "unclear"


def test_what_only_a_person_can_fetch_is_explained(hub: Hub, tmp_path: Path) -> None:
    manual = weights(sources=(), page="https://example.org/drive", files=(File("toy.ckpt"),))
    with pytest.raises(UserError, match=r"Download toy\.ckpt from https://example\.org/drive") as caught:
        get(hub, tmp_path, manual)
    assert (caught.value.code, "weights convert FILE" in caught.value.hint) == ("weights_by_hand", True)


def test_a_full_disk_is_told_before_and_during(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(weights_convert.shutil, "disk_usage", lambda path: SimpleNamespace(free=weights_convert.MARGIN))
        with pytest.raises(UserError, match=r"0\.0 GB are needed") as caught:
            get(hub, tmp_path)
        assert caught.value.code == "disk_full"
    assert hub.ranges == []

    append = weights_fetch._append

    def full(remote, part, begin, tell) -> None:
        def after_a_while(done: int) -> None:
            if done > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")

        append(remote, part, begin, after_a_while)

    with monkeypatch.context() as patch:
        patch.setattr(weights_fetch, "_append", full)
        with pytest.raises(UserError, match="is full") as caught:
            get(hub, tmp_path)
    assert "is kept" in caught.value.hint
    hub.ranges.clear()
    get(hub, tmp_path)
    assert int(hub.ranges[0].removeprefix("bytes=").rstrip("-")) >= 100_000


def test_what_lies_in_the_way_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="does not hold the whole"):
        get(hub, tmp_path)
    assert (tmp_path / "toy" / "mine.txt").read_text() == "mine"


def test_two_programs_do_not_fetch_the_same(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / DOWNLOADS).mkdir()
    with FileLock(tmp_path / DOWNLOADS / "toy.lock"), pytest.raises(UserError, match="Another program"):
        get(hub, tmp_path)
    assert hub.asked == []


def test_a_former_versions_beginning_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    stray = tmp_path / DOWNLOADS / "toy" / "model.safetensors.0123456789ab.part"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"old")
    made = get(hub, tmp_path)
    assert not list(made.rglob("*.part"))


def test_tensors_of_another_network_never_become_visible(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.models.weights_registry.expected_shapes", lambda keys: {"b": (1,)})
    with pytest.raises(UserError, match="1 missing: b; 2 extra"):
        get(hub, tmp_path)
    assert not (tmp_path / "toy").exists()


@pytest.mark.slow
def test_pickles_are_converted_and_removed(hub: Hub, tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS}, tmp_path / "x")
    hub.files["us/toy/deep/toy.ckpt"] = (tmp_path / "x").read_bytes()
    pickled = weights(files=(File("deep/toy.ckpt"),))
    made = get(hub, tmp_path, pickled, half=True)
    assert read_tensors(made)["a.weight"].dtype == torch.float16
    assert sorted(path.name for path in made.iterdir()) == [CARD, "model.safetensors"]
    assert not (tmp_path / DOWNLOADS / "toy").exists()
    card = json.loads((made / CARD).read_text())
    assert card["downloaded"] == {"deep/toy.ckpt": hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()}
    assert card["source"]["repository"] == "us/toy"
