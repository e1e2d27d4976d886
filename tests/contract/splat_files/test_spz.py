# SPDX-License-Identifier: GPL-3.0-or-later
"""SPZ of all versions: two by another program, two coded here as Niantic describes them; and damaged."""

import gzip
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from blender_addon.contract.arrays import BadFileError
from tests.contract.splat_files.files import DATA, assert_alike, opened, random_splats, source


def header(version=2, count=300, degree=0, bits=12, flags=0, streams=0) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, bits, flags, streams)


def coded(moment, sh, version: int, flags: int = 0) -> bytes:
    """The contents of a file of version 1 or 2, before they are packed."""
    quats = moment.quats * np.where(moment.quats[:, :1] < 0, -1, 1)  # the real part is left out, and above 0
    fixed = np.round(moment.means * 4096).astype("<i4")[..., None].view(np.uint8)[..., :3]
    parts = [
        moment.means.astype("<f2") if version == 1 else fixed,
        np.round(moment.opacities * 255).astype(np.uint8),
        np.clip(np.round((sh[:, 0] * 0.15 + 0.5) * 255), 0, 255).astype(np.uint8),
        np.round((np.log(moment.scales) + 10) * 16).astype(np.uint8),
        np.round(quats[:, 1:] * 127.5 + 127.5).astype(np.uint8),
        np.clip(np.round(sh[:, 1:] * 128 + 128), 0, 255).astype(np.uint8),
    ]
    degree = round(sh.shape[1] ** 0.5) - 1
    body = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    return header(version, len(sh), degree, flags=flags) + body


@pytest.mark.parametrize("name", ["st_3.spz", "st_4.spz"])
def test_files_of_another_program(name) -> None:
    if name == "st_4.spz" and sys.version_info < (3, 14):
        pytest.importorskip("zstandard")
    expected = source()
    splats = opened(DATA / name)
    np.testing.assert_allclose(splats.moment.means, expected.moment.means, atol=2e-4)  # in the same order
    assert_alike(
        splats, expected.moment, expected.sh, means=2e-4, shape=0.06, opacities=0.003, colors=0.014, further=0.09
    )
    assert (splats.up_axis, splats.color_space, splats.notes) == ("Y", "srgb", ())


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("version", [1, 2])
def test_older_versions(tmp_path, version, degree) -> None:
    moment, sh = random_splats(degree=degree)
    (tmp_path / "a.spz").write_bytes(gzip.compress(coded(moment, sh, version)))
    means = 2e-3 if version == 1 else 2e-4
    assert_alike(
        opened(tmp_path / "a.spz"), moment, sh, means=means, shape=0.08, opacities=0.003, colors=0.014, further=0.004
    )
    (tmp_path / "bare.spz").write_bytes(coded(moment, sh, version))  # as some tools leave them
    np.testing.assert_array_equal(opened(tmp_path / "bare.spz").sh, opened(tmp_path / "a.spz").sh)


def test_flags_and_what_follows_the_gaussians(tmp_path) -> None:
    moment, sh = random_splats(degree=1)
    sh[:, 1:] = 0
    (tmp_path / "a.spz").write_bytes(gzip.compress(coded(moment, sh, 2, flags=3) + b"an extension"))
    splats = opened(tmp_path / "a.spz")
    assert splats.sh.shape == (300, 1, 3)
    (note,) = splats.notes
    assert note.startswith("a.spz is made for antialiased drawing")


def damaged_v4(change) -> bytes:
    data = bytearray((DATA / "st_4.spz").read_bytes())
    change(data)
    return bytes(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def packed(content: bytes) -> bytes:
    """As gzip packs it, without the time: it would be in the name of a test, which all processes must find alike."""
    return gzip.compress(content, mtime=0)


WHOLE = packed(coded(*random_splats(degree=1), 2))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (WHOLE[:-2000], "is damaged: it ends too early"),
        (WHOLE[:8], "is damaged: it ends too early"),
        (WHOLE[:-8] + bytes(8), "is damaged: it cannot be unpacked"),  # the checksum
        (flipped(WHOLE, 3000), "is damaged: it cannot be unpacked"),
        (packed(coded(*random_splats(), 2)[:-1]), "ends before its 300 Gaussians do"),
        (packed(b"something else that is long enough"), "is no SPZ file, or damaged"),
        (packed(b"NGSP"), "is no SPZ file, or damaged"),
        (packed(header(version=5)), "is an SPZ file of version 5, and 1 to 4 can be read"),
        (packed(header(version=0)), "of version 0"),
        (packed(header(count=0)), "holds 0 Gaussians"),
        (packed(header(count=2**32 - 1)), "holds 4,294,967,295 Gaussians, and 1 to 5,000,000 can"),
        (packed(header(degree=9)), "its header cannot be right"),
        (packed(header(bits=77)), "its header cannot be right"),
        (damaged_v4(lambda data: data.__setitem__(15, 5)), "its parts do not fit its 40 Gaussians"),
        (damaged_v4(lambda data: data.__setitem__(16, 200)), "its parts do not fit its 40 Gaussians"),
        (damaged_v4(lambda data: data.__delitem__(slice(-50, None))), "it ends before its 40 Gaussians do"),
        (damaged_v4(lambda data: data.__setitem__(-20, data[-20] ^ 255)), "is damaged"),
        (b"NGSP", "is no SPZ file, or damaged"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_a_sentence(tmp_path, content, said) -> None:
    (tmp_path / "a.spz").write_bytes(content)
    with pytest.raises(BadFileError) as caught:
        opened(tmp_path / "a.spz")
    assert str(caught.value).startswith("a.spz ")
    assert said in str(caught.value)


def test_what_unpacks_to_more_than_it_says_takes_no_memory(tmp_path) -> None:
    bomb = gzip.compress(coded(*random_splats(), 2) + bytes(40 << 20), 1)
    (tmp_path / "a.spz").write_bytes(bomb)
    tracemalloc.start()
    opened(tmp_path / "a.spz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_version_4_says_what_it_needs(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(BadFileError, match="needs the Python package zstandard"):
        opened(DATA / "st_4.spz")
