# SPDX-License-Identifier: GPL-3.0-or-later
"""glTF with splats: our own comes back, another program's, scenes that place them, and damaged ones."""

import json
import struct

import numpy as np
import pytest

from backend.exchange.gltf import write_glb
from backend.exchange.moments import Shot
from blender_addon.contract.arrays import BadFileError
from blender_addon.contract.clip import Gaussians
from blender_addon.contract.placement import UP_AXES, placed, placed_sh
from blender_addon.contract.spherical_harmonics import converted
from blender_addon.contract.splat_files.glb import EXTENSION
from tests.contract.clips import random_clip
from tests.contract.splat_files.files import DATA, assert_alike, opened, random_splats, source

TURNED = np.array([[0, -2.0, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])


def taken_apart(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def put_together(path, document, body: bytes) -> None:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(body), len(text), b"JSON")
    path.write_bytes(head + text + struct.pack("<I4s", len(body), b"BIN\0") + body)


@pytest.fixture
def parts(tmp_path) -> tuple[dict, bytes, object]:
    """Document and buffer of our own file of a random clip, and the clip."""
    clip = random_clip(n=30, frames=3, sh_degree=2)
    write_glb(tmp_path / "ours.glb", Shot(clip, [1], TURNED, "srgb"))
    return *taken_apart(tmp_path / "ours.glb"), clip


@pytest.mark.parametrize("color_space", ["srgb", "linear"])
def test_our_own_comes_back(tmp_path, color_space) -> None:
    clip = random_clip(n=30, frames=3, sh_degree=3, color_space=color_space)
    write_glb(tmp_path / "a.glb", Shot(clip, [1], TURNED, color_space))
    splats = opened(tmp_path / "a.glb")
    matrix = UP_AXES["Y"] @ TURNED
    assert_alike(splats, placed(clip.frame(1), matrix), placed_sh(clip.sh, matrix))
    assert (splats.up_axis, splats.color_space) == ("Y", color_space)


def test_a_file_of_supersplats_converter() -> None:
    """It turns what Y down is in the PLY file over, so that Y is up."""
    expected, turn = source(), UP_AXES["Y"] @ UP_AXES["Y_DOWN"].T
    splats = opened(DATA / "st.glb")
    assert_alike(splats, placed(expected.moment, turn), placed_sh(expected.sh, turn), means=1e-5, further=1e-5)


def test_scenes_place_their_splats(tmp_path, parts) -> None:
    """Twice the same ones: under a node that turns and grows, and one that a matrix places; one of lower degree."""
    document, body, _ = parts
    moment, sh = opened(tmp_path / "ours.glb").moment, opened(tmp_path / "ours.glb").sh
    primitive = document["meshes"][0]["primitives"][0]
    flat = {name: index for name, index in primitive["attributes"].items() if "DEGREE_2" not in name}
    linear = {EXTENSION: {"kernel": "ellipse", "colorSpace": "lin_rec709_display"}}
    document["meshes"].append({"primitives": [primitive | {"attributes": flat, "extensions": linear}]})
    matrix = np.diag([1.0, 2, 3, 1])
    matrix[:3, 3] = 10, 0, 0
    document["nodes"] = [
        {"children": [1], "translation": [1, 2, 3], "scale": [2, 2, 2]},
        {"mesh": 0, "rotation": [0.5**0.5, 0, 0, 0.5**0.5]},
        {"mesh": 1, "matrix": matrix.T.ravel().tolist()},
        {"mesh": 0},  # not in the scene
    ]
    document["scenes"], document["scene"] = [{"nodes": [3]}, {"nodes": [0, 2]}], 1
    put_together(tmp_path / "a.glb", document, body)
    splats = opened(tmp_path / "a.glb")
    first = np.array([[2, 0, 0, 1], [0, 0, -2, 2], [0, 2, 0, 3], [0, 0, 0, 1.0]])
    whole = [placed(moment, first), placed(moment, matrix)]
    lower = np.concatenate([sh[:, :4], np.zeros((30, 5, 3), np.float32)], axis=1)
    expected = Gaussians(
        *(np.concatenate(values) for values in zip(*(vars(each).values() for each in whole), strict=True))
    )
    colors = [converted(placed_sh(sh, first), "srgb", "linear"), placed_sh(lower, matrix)]  # as the one found first
    assert splats.color_space == "linear"
    assert_alike(splats, expected, np.concatenate(colors), means=1e-5, shape=1e-5, colors=1e-5, further=1e-5)


def test_small_integers_and_strides(tmp_path) -> None:
    """Rotations and opacities as normalized integers, interleaved; harmonics of degree 0 alone."""
    moment, sh = random_splats(n=20, degree=0)
    rows = np.zeros(20, [("quat", "<i2", 4), ("opacity", "u1"), ("rest", "u1", 3), ("mean", "<f4", 3)])
    rows["quat"] = np.round(np.roll(moment.quats, -1, axis=-1) * 32767)
    rows["opacity"], rows["mean"] = np.round(moment.opacities * 255), moment.means
    body = rows.tobytes() + moment.scales.tobytes() + sh[:, 0].tobytes()
    shared = {"bufferView": 0, "count": 20}
    names = ["POSITION", *(f"{EXTENSION}:{name}" for name in ("ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0"))]
    document = {
        "buffers": [{"byteLength": len(body)}],
        "bufferViews": [
            {"buffer": 0, "byteLength": 480, "byteStride": 24},
            {"buffer": 0, "byteOffset": 480, "byteLength": 480},
        ],
        "accessors": [
            shared | {"byteOffset": 12, "componentType": 5126, "type": "VEC3"},
            shared | {"componentType": 5122, "normalized": True, "type": "VEC4"},
            shared | {"bufferView": 1, "componentType": 5126, "type": "VEC3"},
            shared | {"byteOffset": 8, "componentType": 5121, "normalized": True, "type": "SCALAR"},
            shared | {"bufferView": 1, "byteOffset": 240, "componentType": 5126, "type": "VEC3"},
        ],
        "meshes": [{"primitives": [{
            "attributes": {name: index for index, name in enumerate(names)},
            "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
        }]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }  # fmt: skip
    put_together(tmp_path / "a.glb", document, body)
    assert_alike(opened(tmp_path / "a.glb"), moment, sh, shape=1e-3, opacities=0.003)


def test_sizes_below_0_are_logarithms(tmp_path, parts) -> None:
    document, body, _ = parts
    expected = opened(tmp_path / "ours.glb")
    index = document["meshes"][0]["primitives"][0]["attributes"][f"{EXTENSION}:SCALE"]
    start = document["bufferViews"][index]["byteOffset"]
    logarithms = np.log(expected.moment.scales).astype("<f4").tobytes()
    put_together(tmp_path / "a.glb", document, body[:start] + logarithms + body[start + len(logarithms) :])
    np.testing.assert_allclose(opened(tmp_path / "a.glb").moment.scales, expected.moment.scales, rtol=1e-6)


def primitive_of(document: dict) -> dict:
    return document["meshes"][0]["primitives"][0]


def extension_of(document: dict) -> dict:
    return primitive_of(document)["extensions"][EXTENSION]


WRONG = "what it says about its Gaussians cannot be right"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: primitive_of(document).pop("extensions"), "holds no Gaussians. Where it holds meshes"),
        (lambda document: document["nodes"][0].pop("mesh"), "holds no Gaussians"),
        (lambda document: document["nodes"][0].update(children=[0]), WRONG),  # a circle
        (lambda document: document["nodes"][0].update(children=[0] * 100_000), WRONG),
        (lambda document: document["nodes"][0].update(mesh=7), WRONG),
        (lambda document: document["nodes"][0].update(scale=[1, 0, 1]), WRONG),
        (lambda document: document.pop("scenes"), WRONG),
        (lambda document: document["accessors"][0].update(count=10**12), "holds 1,000,000,000,000 Gaussians"),
        (lambda document: document["accessors"][0].update(count=29), WRONG),
        (lambda document: document["accessors"][1].update(type="SCALAR"), WRONG),
        (lambda document: document["accessors"][1].update(componentType=5), WRONG),
        (lambda document: document["accessors"][1].update(byteOffset=-4), WRONG),
        (lambda document: document["accessors"][1].update(sparse={}), WRONG),
        (lambda document: document["bufferViews"][1].update(byteLength=8), WRONG),
        (lambda document: document["bufferViews"][1].update(byteOffset=10**9), "it ends before its 30 Gaussians do"),
        (lambda document: document["bufferViews"][1].update(byteStride=2), WRONG),
        (lambda document: document["buffers"][0].update(uri="x.bin"), "keeps its Gaussians in another file"),
        (lambda document: primitive_of(document)["attributes"].pop(f"{EXTENSION}:SH_DEGREE_1_COEF_2"), WRONG),
        (lambda document: primitive_of(document)["attributes"].pop(f"{EXTENSION}:SCALE"), WRONG),
        (lambda document: extension_of(document).update(colorSpace="acescg"), "in acescg, which"),
        (lambda document: extension_of(document).update(extensions={f"{EXTENSION}_compression_spz_2": {}}),
         "is compressed with KHR_gaussian_splatting_compression_spz_2, which"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_a_sentence(tmp_path, parts, change, said) -> None:
    document, body, _ = parts
    change(document)
    put_together(tmp_path / "a.glb", document, body)
    if said is None:
        assert len(opened(tmp_path / "a.glb").sh) == 30
        return
    with pytest.raises(BadFileError) as caught:
        opened(tmp_path / "a.glb")
    assert str(caught.value).startswith("a.glb ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"[]", "cannot be right"), (b"{", "cannot be right"), (b"[" * 100_000, "cannot be right"), (b"\xff", "cannot")],
)
def test_documents_that_are_none_are_refused(tmp_path, text, said) -> None:
    put_together(tmp_path / "a.glb", text, b"")
    with pytest.raises(BadFileError, match=said):
        opened(tmp_path / "a.glb")
    (tmp_path / "a.glb").write_bytes(b"glTF\x01")
    with pytest.raises(BadFileError, match="no binary glTF file of version 2, or damaged"):
        opened(tmp_path / "a.glb")
