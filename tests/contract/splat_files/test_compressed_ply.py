# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressed PLY as gsplat and SuperSplat's converter write it, without bounds of colors, and damaged."""

import numpy as np
import pytest

from blender_addon.contract.arrays import BadFileError
from tests.contract.splat_files.files import DATA, assert_alike, opened, random_splats, source

BOUNDS = [f"{end}_{name}" for end in ("min", "max") for name in ("x", "y", "z", "scale_x", "scale_y", "scale_z")]
COLOR_BOUNDS = [f"{end}_{name}" for end in ("min", "max") for name in "rgb"]


def write(path, chunks: dict, vertices: dict, harmonics=None, cut=None) -> None:
    """A file of columns; `harmonics` [N, values] uint8."""
    tables = [("chunk", "float", chunks), ("vertex", "uint", vertices)]
    if harmonics is not None:
        tables.append(("sh", "uchar", {f"f_rest_{index}": column for index, column in enumerate(harmonics.T)}))
    header, body = "ply\nformat binary_little_endian 1.0\n", b""
    for name, kind, columns in tables:
        header += f"element {name} {len(next(iter(columns.values())))}\n"
        header += "".join(f"property {kind} {column}\n" for column in columns)
        dtype = {"float": "<f4", "uint": "<u4", "uchar": "u1"}[kind]
        body += np.stack(list(columns.values()), axis=-1).astype(dtype).tobytes()
    path.write_bytes(header.encode() + b"end_header\n" + body[:cut])


def columns(n: int = 300) -> tuple[dict, dict]:
    random = np.random.default_rng(1)
    chunks = {name: np.full(-(-n // 256), -1.0 if name.startswith("min") else 2.0) for name in BOUNDS}
    packed = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
    return chunks, {name: random.integers(0, 2**32, n, np.uint32) for name in packed}


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_files_of_gsplat(tmp_path, degree) -> None:
    exporter = pytest.importorskip("gsplat.exporter")
    from torch import as_tensor

    moment, sh = random_splats(degree=degree)
    further = sh[:, 1:].transpose(0, 2, 1).reshape(len(sh), -1).copy()
    logits = np.log(moment.opacities / (1 - moment.opacities))
    values = (moment.means, np.log(moment.scales), moment.quats, logits, sh[:, 0].copy(), further)
    (tmp_path / "a.ply").write_bytes(exporter.splat2ply_bytes_compressed(*map(as_tensor, values)))
    splats = opened(tmp_path / "a.ply")
    assert_alike(splats, moment, sh, means=3e-3, shape=0.01, opacities=0.003, colors=0.008, further=0.02)
    assert (splats.up_axis, splats.color_space) == ("Y_DOWN", "srgb")


def test_a_file_of_supersplats_converter() -> None:
    expected = source()
    splats = opened(DATA / "st.compressed.ply")
    assert_alike(
        splats, expected.moment, expected.sh, means=2e-3, shape=0.003, opacities=0.003, colors=0.004, further=0.02
    )


def test_colors_without_bounds_go_from_0_to_1(tmp_path) -> None:
    chunks, vertices = columns()
    write(tmp_path / "old.ply", chunks, vertices)
    whole = {name: np.full(2, float(name.startswith("max"))) for name in COLOR_BOUNDS}
    write(tmp_path / "new.ply", chunks | whole, vertices)
    old, new = opened(tmp_path / "old.ply"), opened(tmp_path / "new.ply")
    np.testing.assert_array_equal(old.sh, new.sh)
    reds = vertices["packed_color"] >> 24
    np.testing.assert_allclose(0.5 + 0.28209479 * old.sh[:, 0, 0], reds / 255, atol=1e-6)
    assert old.moment.means.min() >= -1
    assert old.moment.means.max() <= 2


def test_harmonics_that_are_0_are_left_out(tmp_path) -> None:
    chunks, vertices = columns()
    codes = np.full((300, 9), 128, np.uint8)
    write(tmp_path / "a.ply", chunks, vertices, codes)
    assert opened(tmp_path / "a.ply").sh.shape == (300, 1, 3)
    codes[7] = 0, 1, 127, 129, 254, 255, 128, 64, 192
    write(tmp_path / "a.ply", chunks, vertices, codes)
    coded = opened(tmp_path / "a.ply").sh[7, 1:].T.ravel()  # all of red, then green, then blue
    expected = [-4, *((np.array([1, 127, 129, 254]) + 0.5) / 32 - 4), 4, *((np.array([128, 64, 192]) + 0.5) / 32 - 4)]
    np.testing.assert_allclose(coded, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda chunks, vertices: chunks.pop("max_x"), "is no compressed PLY file of 3D"),
        (lambda chunks, vertices: vertices.pop("packed_scale"), "is no compressed PLY file of 3D"),
        (lambda chunks, vertices: chunks.update({name: values[:1] for name, values in chunks.items()}), "do not fit"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, said) -> None:
    chunks, vertices = columns()
    change(chunks, vertices)
    write(tmp_path / "a.ply", chunks, vertices)
    with pytest.raises(BadFileError, match=said):
        opened(tmp_path / "a.ply")


def test_other_damage_is_refused(tmp_path) -> None:
    chunks, vertices = columns()
    for harmonics, cut, said in (
        (None, -1, "it ends before its 300 Gaussians do"),
        (np.zeros((299, 9)), None, "its tables do not fit each other"),
        (np.zeros((300, 10)), None, "has 10 values f_rest_"),
    ):
        write(tmp_path / "a.ply", chunks, vertices, harmonics, cut)
        with pytest.raises(BadFileError, match=said):
            opened(tmp_path / "a.ply")
