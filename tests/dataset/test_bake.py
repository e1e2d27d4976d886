# SPDX-License-Identifier: GPL-3.0-or-later
"""Baking and rendering of a model through Blender, on a file written here to the byte."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("bpy")
pytestmark = [pytest.mark.blender, pytest.mark.slow]

from backend.data.bake import bake  # noqa: E402
from backend.data.baked import BakedAsset, read_baked  # noqa: E402
from backend.data.blender_renderer import BlenderRenderer  # noqa: E402
from backend.data.fast_renderer import FastRenderer  # noqa: E402
from backend.data.views import DatasetView  # noqa: E402
from backend.evaluation.metrics import alpha_iou, foreground_psnr  # noqa: E402

BOX = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], np.float32)
QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
TRIANGLES = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))], np.uint16)
QUARTER = [0, 0, np.sin(np.pi / 8), np.cos(np.pi / 8)]  # 45 degrees about glTF's z, which is Blender's -y
ACTIONS = ("Wave", "Slide", "Bend")


def write_model(path: Path) -> dict:
    """A body with an arm (objects) and a skinned tail; three actions. Every material is transparent, as from FBX.

    Wave turns the arm, Slide moves the body and leaves the arm where the file has it, Bend turns the tail's second
    bone. One of the tail's vertices has NaN as weight. Returns its manifest entry.
    """
    binary, views, accessors = b"", [], []

    def add(array: np.ndarray, kind: str, **more) -> int:
        nonlocal binary
        component = {"f": 5126, "H": 5123, "B": 5121}[array.dtype.char]
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes})
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": component, "count": len(array), "type": kind, **more}
        )
        binary += array.tobytes() + b"\0" * (-array.nbytes % 4)
        return len(accessors) - 1

    bounds = {"min": BOX.min(0).tolist(), "max": BOX.max(0).tolist()}
    geometry = {"attributes": {"POSITION": add(BOX, "VEC3", **bounds)}, "material": 0}
    geometry["indices"] = add(TRIANGLES.ravel(), "SCALAR")
    weights = np.zeros((8, 4), np.float32)
    weights[:, 0], weights[:, 1] = BOX[:, 0] < 0, BOX[:, 0] > 0  # the half away from the body, and the other
    weights[0, 2] = np.nan
    behind = BOX * 0.8 - np.array([1.2, 0, 0], np.float32)
    tail = add(behind, "VEC3", min=behind.min(0).tolist(), max=behind.max(0).tolist())
    skin = {
        "POSITION": tail,
        "JOINTS_0": add(np.tile(np.array([0, 1, 1, 0], np.uint8), (8, 1)), "VEC4"),
        "WEIGHTS_0": add(weights, "VEC4"),
    }
    inverse = np.stack([np.eye(4), np.eye(4)]).astype(np.float32)
    times = add(np.array([0, 1], np.float32), "SCALAR", min=[0], max=[1])
    turn = add(np.array([[0, 0, 0, 1], QUARTER], np.float32), "VEC4")
    slide = add(np.array([[0, 0, 0], [0, 2, 0]], np.float32), "VEC3")

    def action(name: str, node: int, way: str, values: int) -> dict:
        channel = {"sampler": 0, "target": {"node": node, "path": way}}
        sampler = {"input": times, "output": values, "interpolation": "LINEAR"}
        return {"name": name, "channels": [channel], "samplers": [sampler]}

    description = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0, 2, 3]}],
        "nodes": [
            {"name": "Body", "mesh": 0, "children": [1]},
            {"name": "Arm", "mesh": 0, "translation": [1.5, 0, 0], "scale": [1, 0.2, 0.2]},
            {"name": "Tail", "mesh": 1, "skin": 0},
            {"name": "Root", "children": [4], "translation": [0, 0, 0]},
            {"name": "Tip"},
        ],
        "meshes": [
            {"primitives": [geometry]},
            {"primitives": [{**geometry, "attributes": {**geometry["attributes"], **skin}}]},
        ],
        "skins": [{"joints": [3, 4], "inverseBindMatrices": add(inverse.reshape(2, 16), "MAT4")}],
        "materials": [
            {
                "name": "Red",
                "alphaMode": "MASK",
                "pbrMetallicRoughness": {"baseColorFactor": [0.6, 0.1, 0.1, 0], "metallicFactor": 0},
            }
        ],
        "animations": [
            action("Wave", 1, "rotation", turn),
            action("Slide", 0, "translation", slide),
            action("Bend", 4, "rotation", turn),
        ],
        "bufferViews": views,
        "accessors": accessors,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    clips = [
        {"action": name, "time_range": [0, 1], "loop": False, "recentre": False, "motion": 0.1} for name in ACTIONS
    ]
    return {"id": "m/model", "file": path.name, "family": "m", "licence": "CC0-1.0", "clips": clips}


@pytest.fixture
def entry(tmp_path: Path) -> dict:
    entry = write_model(tmp_path / "model.glb")
    bake(tmp_path / "model.glb", entry["clips"], tmp_path / "baked24" / "m__model.npz")
    return entry


def poses(asset: BakedAsset, action: str) -> np.ndarray:  # [2, V, 3]: first and last, in the model's units
    positions, _ = asset.poses(ACTIONS.index(action), np.array([0.0, 23.0]))
    return positions * 3.6  # the longest side at first: from -1.6 of the tail to 2.0 of the arm


def test_bake_agrees_with_blender(entry: dict, tmp_path: Path) -> None:
    with np.load(tmp_path / "baked24" / "m__model.npz") as arrays:
        assert arrays["error"].shape == (3,)
        assert arrays["error"].max() < 0.002


def test_objects_and_bones_move_as_the_file_says(entry: dict, tmp_path: Path) -> None:
    asset = read_baked(tmp_path, entry)
    assert np.isfinite(asset.weights).all()
    assert len(asset.faces) == 36
    np.testing.assert_allclose(asset.colors[0] * 255, [203, 89, 89], atol=1)  # 0.6, 0.1, 0.1 in sRGB

    first, last = poses(asset, "Slide")
    tail = (last == first).all(axis=1)  # the skinned part stays
    assert 24 <= tail.sum() < len(first)
    np.testing.assert_allclose((last - first)[~tail], np.tile([0, 0, 2], ((~tail).sum(), 1)), atol=0.01)

    first, last = poses(asset, "Wave")
    arm = np.abs(last - first).max(axis=1) > 1e-3
    assert arm.sum() == 24
    assert last[arm, 2].max() - last[arm, 2].min() == pytest.approx((1 + 0.2) * np.sqrt(0.5), abs=0.01)

    first, last = poses(asset, "Bend")
    moved = np.linalg.norm(last - first, axis=1) > 1e-3
    assert moved.sum() == 12  # the half of the tail that its second bone carries


def test_both_renderers_show_the_same(entry: dict, tmp_path: Path) -> None:
    """Slide and Wave from a random view, light turned; alpha repaired; recentred travel."""

    from backend.pictures import premultiplied

    entry["clips"][1]["recentre"] = True
    fast = FastRenderer(tmp_path, entry, 48)
    cycles = BlenderRenderer(tmp_path, entry, 48, 8)
    view = DatasetView(azimuth=40, elevation=15, light_turn=120)
    for clip in (0, 1):
        videos = [premultiplied(renderer.video(clip, view, "moving")) for renderer in (fast, cycles)]
        assert alpha_iou(*(video[..., 3] for video in videos)).min() > 0.85
        assert foreground_psnr(*videos).mean() > 15
