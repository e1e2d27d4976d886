# SPDX-License-Identifier: GPL-3.0-or-later
"""USD: what its own library reads from the files, sample by sample.

Files are written and read in one other process: in this one other tests may have loaded Blender.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backend.exchange import usd
from backend.progress import UserError
from blender_addon.contract import rotations
from blender_addon.contract.clip import write_clip
from tests.contract.clips import random_clip
from tests.exchange.readers import READ_USD, has_usd

ROOT = Path(__file__).resolve().parents[2]
PLACE = np.array([[0, -2.0, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
KNOWN = {"settings": {"prompt": 'a "füchs"', "seed": 7}}
BASES = random_clip(
    n=30, frames=5, bases=3, sh_degree=2, fps=12.5, to_object=PLACE, color_space="linear", provenance=KNOWN
)
VARYING = random_clip(n=30, frames=4, bases=None, varying=True)

WRITE_USD = """
import os
from pathlib import Path
from backend.exchange import usd
from backend.exchange.moments import Shot
from blender_addon.contract.clip import read_clip

os.chdir({folder!r})
usd.FLUSH_BYTES = 2000  # about every second frame
for name, (clip, frames, matrix, color_space) in {shots}.items():
    usd.write_usd(Path(name), Shot(read_clip(clip), frames, matrix, color_space), lambda done, count: None)
assert not [name for name in os.listdir() if name.startswith(".tmp")]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """What lies in three exported files, by their names."""
    if not has_usd:
        pytest.skip("needs usd-core")
    folder = tmp_path_factory.mktemp("usd")
    write_clip(folder / "bases.npz", BASES)
    write_clip(folder / "varying.npz", VARYING)
    shots = {
        "1 füchse.usdc": ("bases.npz", [0, 1, 2, 3, 4], PLACE.tolist(), "linear"),
        "part.usda": ("varying.npz", [1, 2], np.eye(4).tolist(), "srgb"),
        "one.usd": ("varying.npz", [1.5], np.eye(4).tolist(), "srgb"),
    }
    code = WRITE_USD.format(folder=str(folder), shots=shots) + READ_USD
    subprocess.run([sys.executable, "-c", code, *shots], cwd=ROOT, check=True)
    return {name: dict(np.load(folder / f"{name}.npz")) for name in shots}


def test_samples_are_the_clip(files) -> None:
    clip, read = BASES, files["1 füchse.usdc"]
    assert (read["type"], read["path"]) == ("ParticleField3DGaussianSplat", "/Clip_1_f_chse/Gaussians")
    assert read["name"] == "1 füchse"
    assert (read["up"], read["meters"], read["fps"], read["color_space"]) == ("Z", 1.0, 12.5, "lin_rec709_scene")
    assert list(read["times"]) == [1, 2, 3, 4, 5]
    assert list(read["range"]) == [1, 5]
    assert set(read["sampled"]) == {"positions", "orientations", "extent"}
    np.testing.assert_array_equal(read["matrix"], PLACE)
    assert read["degree"] == 2
    np.testing.assert_array_equal(read["sh"].reshape(30, 9, 3), clip.sh)
    for t in range(5):
        moment = clip.frame(t)
        np.testing.assert_array_equal(read["means"][t], moment.means)
        np.testing.assert_array_equal(rotations.same_side(read["quats"][t], moment.quats), moment.quats)
        np.testing.assert_array_equal(read["scales"][t], moment.scales)
        np.testing.assert_array_equal(read["opacities"][t], moment.opacities)
        low, high = read["extent"][t]
        reach = 3 * moment.scales.max(axis=-1, keepdims=True)
        assert (low <= moment.means - 0.99 * reach).all()
        assert (high >= moment.means + 0.99 * reach).all()
        assert (low > moment.means.min(axis=0) - 0.4).all()


def test_it_says_what_it_was_made_of(files) -> None:
    assert json.loads(str(files["1 füchse.usdc"]["made_of"])) == {"clip": BASES.name, "prompt": 'a "füchs"', "seed": 7}


def test_between_samples_it_moves_as_the_clip_does(files) -> None:
    read = files["1 füchse.usdc"]
    # Between the samples USD interpolates as the clip does: linearly, and along the shorter arc.
    assert (np.sum(read["quats"][1:] * read["quats"][:-1], axis=-1) >= 0).all()
    for t in range(4):
        between = BASES.frame(t + 0.5)
        np.testing.assert_allclose(read["means_between"][t], between.means, atol=1e-5)
        quats = rotations.same_side(read["quats_between"][t], between.quats)
        np.testing.assert_allclose(quats, between.quats, atol=1e-4)


def test_what_changes_is_sampled(files) -> None:
    read = files["part.usda"]
    assert set(read["sampled"]) == {"positions", "orientations", "extent", "scales", "opacities"}
    assert list(read["times"]) == [2, 3]
    np.testing.assert_allclose(read["scales"], VARYING.motion.frame_scales[1:3], rtol=1e-6)
    np.testing.assert_allclose(read["opacities"], VARYING.motion.frame_opacities[1:3], rtol=1e-6)


def test_one_moment_has_no_time(files) -> None:
    read = files["one.usd"]
    assert list(read["sampled"]) == []
    np.testing.assert_array_equal(read["means"][0], VARYING.frame(1.5).means)
    np.testing.assert_array_equal(read["scales"][0], VARYING.frame(1.5).scales)


def test_never_beside_blender(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bpy", sys)
    with pytest.raises(UserError, match="runs Blender"):
        usd.require_usd()


def test_without_usd_core_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "bpy", raising=False)
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(UserError, match="usd-core") as caught:
        usd.require_usd()
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "expected"), [("a fox", "a_fox"), ("füchse", "f_chse"), ("3", "Clip_3"), ("", "Clip_")]
)
def test_names_of_prims(name, expected) -> None:
    assert usd.identifier(name) == expected
