# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary glTF: the JSON and the accessors as KHR_gaussian_splatting wants them, and the picture that they make."""

import numpy as np
import pytest
import torch

from backend.exchange import moments
from backend.exchange.gltf import EXTENSION, write_glb
from backend.exchange.moments import Shot
from backend.splatting.render import render_clip
from blender_addon.contract import rotations
from blender_addon.contract.clip import Clip, FrameMotion
from blender_addon.contract.color import srgb_to_linear
from blender_addon.contract.orbit import Cameras, intrinsics, orbit_camera
from blender_addon.contract.spherical_harmonics import C0
from tests.contract.clips import random_clip
from tests.exchange.readers import read_glb

PLACE = np.eye(4)
PLACE[:3, :3] = 1.5 * rotations.to_matrix(rotations.normalize(np.array([0.9, 0.1, -0.3, 0.3])))
PLACE[:3, 3] = [0.4, -2, 1]
Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("color_space", ["srgb", "linear"])
@pytest.mark.parametrize("degree", [0, 1, 2, 4])
def test_what_lies_in_the_file(tmp_path, degree, color_space) -> None:
    clip = random_clip(n=21, sh_degree=degree, bases=None, varying=True, color_space=color_space)
    write_glb(tmp_path / "a fox.glb", Shot(clip, [2.5], np.eye(4), color_space))
    document, attributes = read_glb(tmp_path / "a fox.glb")
    (primitive,) = document["meshes"][0]["primitives"]
    assert document["extensionsUsed"] == [EXTENSION]
    assert primitive["mode"] == 0
    assert primitive["extensions"][EXTENSION] == {
        "kernel": "ellipse",
        "colorSpace": {"srgb": "srgb_rec709_display", "linear": "lin_rec709_display"}[color_space],
    }
    moment = clip.frame(2.5)
    x, y, z = moment.means.T
    np.testing.assert_allclose(attributes["POSITION"], np.stack([x, z, -y], axis=-1), atol=1e-6)
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal(np.float32([position["min"], position["max"]]),
                                  [attributes["POSITION"].min(axis=0), attributes["POSITION"].max(axis=0)])  # fmt: skip
    np.testing.assert_allclose(attributes[f"{EXTENSION}:SCALE"], moment.scales, rtol=1e-6)  # linear
    np.testing.assert_array_equal(attributes[f"{EXTENSION}:OPACITY"][:, 0], moment.opacities)
    quats = np.roll(attributes[f"{EXTENSION}:ROTATION"], 1, axis=-1)  # xyzw
    expected = Y_UP[:3, :3] @ rotations.to_matrix(moment.quats)
    np.testing.assert_allclose(rotations.to_matrix(quats), expected, atol=1e-5)
    harmonics = {name.removeprefix(f"{EXTENSION}:") for name in attributes if "SH_DEGREE" in name}
    assert harmonics == {f"SH_DEGREE_{d}_COEF_{n}" for d in range(min(degree, 3) + 1) for n in range(2 * d + 1)}
    np.testing.assert_array_equal(attributes[f"{EXTENSION}:SH_DEGREE_0_COEF_0"], clip.sh[:, 0])
    base = np.clip(0.5 + C0 * clip.sh[:, 0], 0, 1)
    light = srgb_to_linear(base) if color_space == "srgb" else base
    np.testing.assert_allclose(attributes["COLOR_0"], np.c_[light, moment.opacities], atol=1e-5)


def test_it_says_what_it_was_made_of(tmp_path) -> None:
    known = {
        "pipeline": "diffusion4d",
        "settings": {"prompt": "a fox runs", "seed": 0, "fps": 24.0},
        "models": [{"name": "kinesplat-small 0.6", "licence": "CC0-1.0"}],
        "versions": {"kinesplat": "0.1.0", "torch": "2"},
        "moves_as": "",
    }
    clip = random_clip(name="Fox", provenance=known)
    write_glb(tmp_path / "fox.glb", Shot(still(clip.frame(1), clip.sh), [0.0], np.eye(4), "srgb"))
    document, _ = read_glb(tmp_path / "fox.glb")
    assert document["asset"]["extras"]["kinesplat"] == {"clip": "Clip"}, "nothing else is known of it"
    write_glb(tmp_path / "fox.glb", Shot(moments.still(clip, 1.5), [0.0], np.eye(4), "srgb"))
    document, _ = read_glb(tmp_path / "fox.glb")
    assert document["asset"]["extras"]["kinesplat"] == {
        "clip": "Fox", "pipeline": "diffusion4d", "prompt": "a fox runs", "seed": 0, "models": known["models"],
        "kinesplat": "0.1.0",
    }  # fmt: skip


@pytest.mark.slow
def test_it_looks_like_the_clip(tmp_path) -> None:
    clip = random_clip(n=60, sh_degree=2, seed=4)
    sh = np.concatenate([clip.sh[:, :1], 0.4 * clip.sh[:, 1:]], axis=1)
    clip = still(clip.frame(3), sh)
    write_glb(tmp_path / "a.glb", Shot(clip, [0], PLACE, "srgb"))
    _, attributes = read_glb(tmp_path / "a.glb")
    colors = np.stack([values for name, values in attributes.items() if "SH_DEGREE" in name], axis=1)
    again = still_arrays(
        attributes["POSITION"],
        np.roll(attributes[f"{EXTENSION}:ROTATION"], 1, axis=-1),
        attributes[f"{EXTENSION}:SCALE"],
        attributes[f"{EXTENSION}:OPACITY"][:, 0],
        colors,
    )
    expected = render_clip(clip, cameras(np.eye(4)))
    assert expected[..., 3].mean() > 0.05
    torch.testing.assert_close(render_clip(again, cameras(Y_UP @ PLACE)), expected, atol=2e-3, rtol=0)


def still(moment, sh: np.ndarray) -> Clip:
    middle = moment.means.mean(axis=0)
    return still_arrays(0.2 * (moment.means - middle), moment.quats, moment.scales, moment.opacities, sh)


def still_arrays(*arrays: np.ndarray) -> Clip:
    means, quats, scales, opacities, sh = (np.ascontiguousarray(array, np.float32) for array in arrays)
    return Clip(means, quats, scales, opacities, sh, FrameMotion(means[None], quats[None]))


def cameras(matrix: np.ndarray) -> Cameras:
    """Three about the origin, taken along by a matrix."""
    scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
    places = np.stack([matrix @ orbit_camera(azimuth, 20.0, 2.0) for azimuth in (0, 100, 230)])
    places[:, :3, :3] /= scale
    return Cameras(places, np.repeat(intrinsics(39.6, 48, 48)[None], 3, axis=0), np.zeros(3), 48, 48)
