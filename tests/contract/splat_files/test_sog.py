# SPDX-License-Identifier: GPL-3.0-or-later
"""SOG as SuperSplat's converter writes it, and damaged."""

import json
import zipfile

import pytest

from blender_addon.contract.arrays import BadFileError
from tests.contract.splat_files.files import DATA, assert_alike, opened, source


@pytest.fixture
def entries() -> dict[str, bytes]:
    with zipfile.ZipFile(DATA / "st.sog") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, entries: dict[str, bytes], **meta) -> None:
    changed = entries | {"meta.json": json.dumps(json.loads(entries["meta.json"]) | meta).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in changed.items():
            archive.writestr(name, data)


def test_a_file_of_supersplats_converter() -> None:
    """Its harmonics are eight sets, which is few enough for all of them to be kept."""
    expected = source()
    splats = opened(DATA / "st.sog")
    assert_alike(
        splats, expected.moment, expected.sh, means=1e-4, shape=0.02, opacities=0.004, colors=0.003, further=1e-6
    )
    assert (splats.up_axis, splats.color_space, splats.notes) == ("Y_DOWN", "srgb", ())


def test_without_harmonics_and_antialiased(tmp_path, entries) -> None:
    meta = json.loads(entries["meta.json"])
    del meta["shN"]
    write(tmp_path / "a.sog", entries | {"meta.json": json.dumps(meta).encode()}, antialias=True)
    splats = opened(tmp_path / "a.sog")
    assert splats.sh.shape == (40, 1, 3)
    assert "antialiased" in splats.notes[0]


WRONG = "what it says about its Gaussians cannot be right"


@pytest.mark.parametrize(
    ("changed", "meta", "said"),
    [
        ({}, {"version": 3}, "is a SOG file of another version than 2"),
        ({}, {"count": 6_000_000}, "holds 6,000,000 Gaussians"),
        ({}, {"count": 4_000_000}, WRONG),  # more than the pictures have
        ({}, {"count": "many"}, WRONG),
        ({}, {"shN": {"bands": 1e308, "count": 1, "codebook": [], "files": []}}, WRONG),
        ({}, {"means": {"mins": [0, 0, 0], "maxs": [1, 1, 1], "files": ["none.webp", "means_u.webp"]}}, WRONG),
        ({}, {"scales": {"codebook": [1, 2, 3], "files": ["scales.webp"]}}, WRONG),
        ({"meta.json": b"{}"}, {}, "of another version"),
        ({"quats.webp": b"RIFF"}, {}, WRONG),
        ({"quats.webp": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f\xff\xff\xff\x0f"}, {}, WRONG),  # 16384 by 16384 pixels
        ({"quats.webp": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f\x07\xc0\x01\x00"}, {}, WRONG),  # 8 by 8, and no more
        ({"quats.webp": b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\0\0\0\0\0"}, {}, WRONG),
        ({"quats.webp": bytes(1 << 20)}, {}, WRONG),
        ({"meta.json": b'{"version": 2, "x": "%s"}' % bytes(1 << 20).replace(b"\0", b" ")}, {},
         "description is too long"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_a_sentence(tmp_path, entries, changed, meta, said) -> None:
    write(tmp_path / "a.sog", entries | changed, **meta)
    with pytest.raises(BadFileError) as caught:
        opened(tmp_path / "a.sog")
    assert str(caught.value).startswith("a.sog ")
    assert said in str(caught.value)


def test_other_archives_are_refused(tmp_path) -> None:
    whole = (DATA / "st.sog").read_bytes()
    for content, said in (
        (whole[:5000], "is damaged: it cannot be unpacked"),
        (whole[:300] + bytes(300) + whole[600:], "is damaged: it cannot be unpacked"),
    ):
        (tmp_path / "a.sog").write_bytes(content)
        with pytest.raises(BadFileError, match=said):
            opened(tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog", "w") as archive:
        archive.writestr("means.npy", b"")
    with pytest.raises(BadFileError, match=r"a\.sog is no SOG file\. Kinesplat's own clips"):
        opened(tmp_path / "a.sog")
