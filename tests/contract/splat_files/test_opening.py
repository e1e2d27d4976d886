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


def test_what_is_none_of_them_is_refused(tmp_path) -> None:
    (tmp_path / "a.ksplat").write_bytes(bytes(64))
    with pytest.raises(BadFileError, match=r"a\.ksplat is no splat file, or damaged: \.ply, \.spz, .* can be read"):
        opened(tmp_path / "a.ksplat")
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none.spz")
