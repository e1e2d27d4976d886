# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that appear whole or not at all, on Windows too."""

import gc
import io
import os
import sys

import numpy as np
import pytest

from blender_addon.contract import arrays
from blender_addon.contract.arrays import atomic_file, atomic_files, read_arrays, write_arrays


def busy(times: int, winerror: int | None):
    """`os.replace` where another program has the file open, for so many calls."""
    calls, real = [], os.replace

    def replace(source, target) -> None:
        calls.append(source)
        if len(calls) <= times:
            error = PermissionError(13, "Access is denied")
            if winerror:
                error.winerror = winerror
            raise error
        real(source, target)

    replace.calls = calls
    return replace


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(arrays.time, "sleep", lambda seconds: None)


def test_a_scanner_that_has_the_new_file_open_for_a_moment_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", busy(5, winerror=32))
    with atomic_file(tmp_path / "clip.npz") as file:
        file.write(b"whole")
    assert (tmp_path / "clip.npz").read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("times", "winerror", "calls"), [(1000, 5, arrays.REPLACE_TRIES), (1, None, 1)])
def test_a_file_that_may_not_be_replaced_stays_as_it_was(tmp_path, monkeypatch, times, winerror, calls):
    (tmp_path / "clip.npz").write_bytes(b"former")
    monkeypatch.setattr(os, "replace", replace := busy(times, winerror))
    with pytest.raises(PermissionError), atomic_file(tmp_path / "clip.npz") as file:
        file.write(b"new")
    assert len(replace.calls) == calls
    assert (tmp_path / "clip.npz").read_bytes() == b"former"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_belong_together_are_open_to_whom_their_folder_is(tmp_path):
    """Windows keeps the rights of the folder in which a file was made, so that one must not be ours alone."""
    plain = tmp_path / "plain"
    plain.mkdir()
    with atomic_files(tmp_path / "frames") as folder:
        assert folder.stat().st_mode == plain.stat().st_mode
        (folder / "a.ply").write_bytes(b"a")
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["a.ply"]


def test_folders_that_were_made_in_vain_go_again(tmp_path):
    (tmp_path / "kept").mkdir()
    for place in (tmp_path / "kept" / "new" / "clip.npz", tmp_path / "new" / "clip.npz"):
        for begun in (atomic_file(place), atomic_files(place.parent)):
            begun.__enter__()
            assert place.parent.is_dir()
            assert not begun.__exit__(ValueError, ValueError("stop"), None)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    begun = atomic_files(tmp_path / "new")
    begun.__enter__()
    (tmp_path / "new" / "other.txt").touch()  # somebody else's, meanwhile
    begun.__exit__(ValueError, ValueError("stop"), None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other.txt"]


class FullDisk(io.BytesIO):
    """Takes so many bytes and no more."""

    room = 1000

    def write(self, data) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_full_disk_is_told_once():
    """An archive that is left open tries again to be written when it is collected, and prints what goes wrong."""
    told = []
    before, sys.unraisablehook = sys.unraisablehook, told.append
    try:
        with FullDisk() as file, pytest.raises(OSError, match="No space"):
            arrays.write_npz(file, {"noise": np.random.default_rng(0).bytes(4000)})
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert not told


def test_what_is_written_is_read_again(tmp_path):
    written = {"floats": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 4)), "text": np.array("a")}
    write_arrays(tmp_path / "a.npz", written)
    for read in (read_arrays(tmp_path / "a.npz"), np.load(tmp_path / "a.npz")):
        for name, array in written.items():
            np.testing.assert_array_equal(read[name], array, strict=True)
