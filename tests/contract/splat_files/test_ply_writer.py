# SPDX-License-Identifier: GPL-3.0-or-later
"""PLY files of 3DGS: byte for byte what gsplat writes, and sequences that are there as a whole or not at all."""

from dataclasses import replace

import numpy as np
import pytest

from blender_addon.contract.splat_files.ply_writer import existing_sequence, write_ply, write_ply_sequence
from tests.contract.clips import random_clip
from tests.exchange.readers import read_ply


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_bytes_are_those_of_gsplat(tmp_path, degree) -> None:
    torch = pytest.importorskip("torch")
    gsplat = pytest.importorskip("gsplat")
    clip = random_clip(n=50, sh_degree=degree)
    moment = clip.frame(1)
    write_ply(tmp_path / "ours.ply", moment, clip.sh, ["a comment"])
    means, quats, scales, opacities, sh = map(
        torch.from_numpy, (moment.means, moment.quats, moment.scales, moment.opacities, clip.sh)
    )
    theirs = gsplat.export_splats(means, scales.log(), quats, opacities.logit(), sh[:, :1], sh[:, 1:])
    ours = (tmp_path / "ours.ply").read_bytes().replace(b"comment a comment\n", b"")
    split = theirs.index(b"end_header\n") + len(b"end_header\n")
    assert ours[:split] == theirs[:split]
    numbers, expected = (np.frombuffer(data[split:], "<f4") for data in (ours, theirs))
    np.testing.assert_allclose(numbers, expected, rtol=1e-5, atol=1e-6)  # logarithms of two libraries


@pytest.mark.parametrize("degree", [0, 2, 4])
def test_round_trip(tmp_path, degree) -> None:
    clip = random_clip(n=50, sh_degree=degree)
    moment = clip.frame(2.5)
    write_ply(tmp_path / "a.ply", moment, clip.sh, ["what\nit is"])
    read, sh, comments = read_ply(tmp_path / "a.ply")
    for name, array in vars(moment).items():
        np.testing.assert_allclose(getattr(read, name), array, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sh, clip.sh[:, :16])
    assert comments == ["what it is"]


def test_opacities_of_nothing_and_of_all_are_numbers(tmp_path) -> None:
    clip = random_clip(n=3)
    moment = replace(clip.frame(0), opacities=np.float32([0, 0.5, 1]))
    write_ply(tmp_path / "a.ply", moment, clip.sh)
    read, _, _ = read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(read.opacities, [0, 0.5, 1], atol=1e-6)


def frames(count: int, first: int = 1):
    clip = random_clip(n=4, frames=count)
    return ((first + t, clip.frame(t), clip.sh) for t in range(count))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_sequence_replaces_a_longer_one_and_nothing_else(tmp_path) -> None:
    others = ["fox.ply", "fox_a.ply", "foxy_0001.ply", "fox_0001.ply.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    written = write_ply_sequence(tmp_path / "fox.ply", frames(5))
    assert [path.name for path in written] == [f"fox_{number:04}.ply" for number in range(1, 6)]
    assert existing_sequence(tmp_path / "fox.ply") == written
    write_ply_sequence(tmp_path / "fox.ply", frames(2, first=7))
    assert names(tmp_path) == sorted([*others, "fox_0007.ply", "fox_0008.ply"])
    assert all((tmp_path / name).read_text() == "mine" for name in others)


def test_an_interrupted_sequence_leaves_the_former_one(tmp_path) -> None:
    def interrupted():
        yield from frames(2, first=50)
        raise KeyboardInterrupt

    write_ply_sequence(tmp_path / "fox.ply", frames(3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        write_ply_sequence(tmp_path / "fox.ply", interrupted())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
