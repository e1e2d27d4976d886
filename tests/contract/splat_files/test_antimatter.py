# SPDX-License-Identifier: GPL-3.0-or-later
"""`.splat` as gsplat writes it, row by row, and damaged."""

import struct

import numpy as np
import pytest

from blender_addon.contract.arrays import BadFileError
from tests.contract.splat_files.files import assert_alike, opened, random_splats


def test_files_of_gsplat(tmp_path) -> None:
    exporter = pytest.importorskip("gsplat.exporter")
    from torch import as_tensor

    moment, sh = random_splats(degree=0)
    logits = np.log(moment.opacities / (1 - moment.opacities))
    values = (moment.means, np.log(moment.scales), moment.quats, logits, sh[:, 0])
    (tmp_path / "a.splat").write_bytes(exporter.splat2splat_bytes(*map(as_tensor, values)))
    splats = opened(tmp_path / "a.splat")
    assert_alike(splats, moment, sh, means=0, shape=0.02, opacities=0.004, colors=0.014)  # it cuts, and rounds not
    assert (splats.up_axis, splats.color_space) == ("Y_DOWN", "srgb")


def test_a_row(tmp_path) -> None:
    row = struct.pack("<6f8B", 1, 2, -3, 0.5, -0.25, 0.125, 255, 0, 51, 204, 128, 0, 128, 128)
    (tmp_path / "a.splat").write_bytes(row)
    splats = opened(tmp_path / "a.splat")
    np.testing.assert_array_equal(splats.moment.means, [[1, 2, -3]])
    np.testing.assert_array_equal(splats.moment.scales, [[0.5, 0.25, 0.125]])  # of a scale its square alone is drawn
    np.testing.assert_array_equal(splats.moment.quats, [[0, -1, 0, 0]])
    np.testing.assert_allclose(splats.moment.opacities, [0.8])
    np.testing.assert_allclose(0.5 + 0.28209479 * splats.sh[0, 0], [1, 0, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("size", "said"), [(33, "its 33 bytes are no whole Gaussians"), (0, r"a\.splat holds 0 Gaussians")]
)
def test_damaged_files_are_refused(tmp_path, size, said) -> None:
    (tmp_path / "a.splat").write_bytes(bytes(size))
    with pytest.raises(BadFileError, match=said):
        opened(tmp_path / "a.splat")
