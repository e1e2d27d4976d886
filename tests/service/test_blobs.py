# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of blobs by itself: what is under a name is what the name says, and rubbish goes."""

import contextlib
import hashlib
import os
import time

import pytest

from backend.service.blobs import BlobStore, DamagedError, StoreFullError, WrongHashError

HOUR = 3600.0


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path, min_free=0, quota=10**9, max_blob=10**6)


def add(store: BlobStore, data: bytes) -> str:
    with store.incoming() as blob:
        blob.write(data)
        blob.keep()
    return hashlib.sha256(data).hexdigest()


def unused(*names: str):
    return lambda sha256: contextlib.nullcontext(sha256 in names)


def age(path, seconds: float) -> None:
    stamp = time.time() - seconds
    os.utime(path, (stamp, stamp))


def test_what_goes_in_comes_out(store, tmp_path):
    file = tmp_path / "clip.npz"
    file.write_bytes(b"clip" * 1000)
    sha256, size = store.add_file(file)
    assert (sha256, size) == (hashlib.sha256(b"clip" * 1000).hexdigest(), 4000)
    assert store.verified(sha256).read_bytes() == b"clip" * 1000
    assert file.exists()


def test_without_keep_nothing_remains(store):
    def fail():
        with store.incoming() as blob:
            blob.write(b"half")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    with store.incoming() as blob:
        blob.write(b"other bytes")
        with pytest.raises(WrongHashError):
            blob.keep("a" * 64)
    assert list(store.folder.rglob("*")) == []


@pytest.mark.parametrize("position", [0, 1, 500, 999])
def test_one_flipped_bit_is_found(store, position):
    data = os.urandom(1000)
    sha256 = add(store, data)
    path = store.path(sha256)
    path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    assert store.missing([sha256]) == [sha256]
    with pytest.raises(DamagedError):
        store.verified(sha256)
    assert add(store, data) == sha256
    assert store.has(sha256)


def test_names_that_are_none(store):
    for name in ("", "..", "../" + "a" * 61, "A" * 64, "a" * 65, "a" * 64 + "\n"):
        with pytest.raises(ValueError, match="not a sha256"):
            store.path(name)


def test_the_janitor_takes_old_blobs_that_no_job_names(store):
    old, used, fresh = add(store, b"old"), add(store, b"used"), add(store, b"fresh")
    age(store.path(old), 2 * HOUR)
    age(store.path(used), 2 * HOUR)
    half, writing = store.folder / ".tmp-half", store.folder / ".tmp-writing"
    half.write_bytes(b"x")
    writing.write_bytes(b"x")
    age(half, 2 * HOUR)
    assert store.clean_up(unused(old, fresh), HOUR) == 1
    assert [store.has(name) for name in (old, used, fresh)] == [False, True, True]
    assert (half.exists(), writing.exists()) == (False, True)


def test_asking_for_a_blob_keeps_it_from_the_janitor(store):
    sha256 = add(store, b"data")
    age(store.path(sha256), 2 * HOUR)
    assert store.missing([sha256]) == []  # what a client asks before it submits
    assert store.clean_up(unused(sha256), HOUR) == 0


def test_sending_again_keeps_a_blob_from_the_janitor(store):
    sha256 = add(store, b"data")
    age(store.path(sha256), 2 * HOUR)
    add(store, b"data")
    assert store.clean_up(unused(sha256), HOUR) == 0


def test_quota_counts_what_is_there(tmp_path):
    BlobStore(tmp_path, min_free=0, quota=10**9, max_blob=10**6)
    add(BlobStore(tmp_path, min_free=0, quota=10**9, max_blob=10**6), b"a" * 6000)
    store = BlobStore(tmp_path, min_free=0, quota=10_000, max_blob=10**6)
    assert store.usage() == 6000
    add(store, b"b" * 3000)
    assert store.usage() == 9000
    with pytest.raises(StoreFullError), store.incoming(2000):
        pass


def test_free_space_is_watched_while_writing(tmp_path, monkeypatch):
    from backend.service import blobs, paths

    monkeypatch.setattr(blobs, "FREE_CHECK_BYTES", 1000)
    store = BlobStore(tmp_path, min_free=100, quota=10**9, max_blob=10**6)
    with store.incoming() as blob:
        blob.write(b"x" * 500)
        monkeypatch.setattr(paths, "free_bytes", lambda folder: 99)
        with pytest.raises(StoreFullError):
            blob.write(b"x" * 5000)
    assert list(tmp_path.rglob("*")) == []
