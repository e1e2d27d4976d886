# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import numpy as np
import pytest

from backend.data.shards import RenderedSample, read_dataset, read_shard, write_shard
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.requests import file_sha256


def sample(key: str, seed: int) -> RenderedSample:
    rng = np.random.default_rng(seed)
    videos = rng.integers(0, 256, (3, 5, 16, 16, 4)).astype(np.uint8)
    videos[:, :, :4, :, 3] = 0  # colors under alpha 0 are kept as well
    return RenderedSample(key, {"frames": 5, "caption": "box swing"}, *videos)


def test_a_shard_comes_back_to_the_bit(tmp_path: Path) -> None:
    written = [sample("a", 1), sample("b", 2)]
    digest = write_shard(tmp_path / "s.tar", written)
    assert file_sha256(tmp_path / "s.tar") == digest
    read = list(read_shard(tmp_path / "s.tar"))
    for before, after in zip(written, read, strict=True):
        assert (before.key, before.info) == (after.key, after.info)
        for name in ("moving", "static", "front"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_equal_samples_make_equal_files(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "1.tar", [sample("a", 1)]) == write_shard(tmp_path / "2.tar", [sample("a", 1)])


def test_a_damaged_shard_says_so(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [sample("a", 1)])
    data = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(data[:3000])
    with pytest.raises(BadFileError, match=r"s\.tar"):
        list(read_shard(tmp_path / "s.tar"))


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="manifest"):
        list(read_dataset(tmp_path))
