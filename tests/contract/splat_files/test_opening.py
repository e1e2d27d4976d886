# SPDX-License-Identifier: GPL-3.0-or-later
"""Formats are told apart by what is in the files, not by their names."""

import numpy as np
import pytest

from blender_addon.contract.arrays import BadFileError
from tests.contract.splat_files.files import DATA, opened


@pytest.mark.parametrize("name", ["source.ply", "st.compressed.ply", "st_3.spz", "st.glb", "st.sog"])
def test_names_do_not_count(tmp_path, name) -> None:
    (tmp_path / "a.splat").write_bytes((DATA / name).read_bytes())
    np.testing.assert_array_equal(opened(tmp_path / "a.splat").moment.means, opened(DATA / name).moment.means)


@pytest.mark.parametrize("start", [b"PK\x21\x3f", b"\x1f\x8b\x21\xbf"])
def test_a_gaussian_may_begin_as_an_archive_does(tmp_path, start) -> None:
    (tmp_path / "a.splat").write_bytes(start + bytes(28))
    np.testing.assert_array_equal(opened(tmp_path / "a.splat").moment.means[0, 0], np.frombuffer(start, "<f4")[0])


@pytest.mark.parametrize("name", ["source.ply", "st.compressed.ply", "st_3.spz", "st_4.spz", "st.glb", "st.sog"])
def test_damaged_files_are_read_or_refused_in_a_sentence(tmp_path, name) -> None:
    """Cut anywhere, and with any bytes changed."""
    random, whole = np.random.default_rng(0), (DATA / name).read_bytes()
    damaged = [whole[:size] for size in [*range(40), *random.integers(0, len(whole), 24)]]
    for place in [*range(40), *random.integers(0, len(whole), 24)]:
        changed = bytearray(whole)
        changed[place : place + 2] = random.bytes(2)
        damaged.append(bytes(changed))
    for content in damaged:
        (tmp_path / name).write_bytes(content)
        try:
            assert len(opened(tmp_path / name).sh)
        except BadFileError as error:
            assert str(error).startswith(f"{name} ")


def test_what_is_none_of_them_is_refused(tmp_path) -> None:
    (tmp_path / "a.ksplat").write_bytes(bytes(64))
    with pytest.raises(BadFileError, match=r"a\.ksplat is no splat file, or damaged: \.ply, \.spz, .* can be read"):
        opened(tmp_path / "a.ksplat")
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none.spz")
