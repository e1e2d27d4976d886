# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies in exported files, read without the code that wrote them."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from blender_addon.contract.clip import Gaussians

has_usd = find_spec("pxr") is not None

READ_USD = """
import sys
import numpy as np
from pxr import Usd, UsdGeom, UsdVol

for path in sys.argv[1:]:
    stage = Usd.Stage.Open(path)
    (prim,) = stage.GetDefaultPrim().GetChildren()
    splats = UsdVol.ParticleField3DGaussianSplat(prim)
    times = splats.GetPositionsAttr().GetTimeSamples()
    halves = [(a + b) / 2 for a, b in zip(times, times[1:])]
    samples = times or [Usd.TimeCode.Default()]

    def read(attribute, times):
        return np.array([np.array(attribute.Get(time), np.float32) for time in times])

    def quats(times):  # w, x, y, z, by the names of the components
        values = [splats.GetOrientationsAttr().Get(time) for time in times]
        return np.array([[[q.real, *q.imaginary] for q in value] for value in values], np.float32)

    np.savez(
        path + ".npz",
        type=str(prim.GetTypeName()), path=str(prim.GetPath()), name=prim.GetParent().GetDisplayName(),
        times=times, sampled=[a.GetName() for a in prim.GetAttributes() if a.GetTimeSamples()],
        means=read(splats.GetPositionsAttr(), samples), means_between=read(splats.GetPositionsAttr(), halves),
        quats=quats(samples), quats_between=quats(halves),
        scales=read(splats.GetScalesAttr(), samples), opacities=read(splats.GetOpacitiesAttr(), samples),
        extent=read(splats.GetExtentAttr(), samples),
        sh=np.array(splats.GetRadianceSphericalHarmonicsCoefficientsAttr().Get(), np.float32),
        degree=splats.GetRadianceSphericalHarmonicsDegreeAttr().Get(),
        matrix=np.array(UsdGeom.XformCache().GetLocalToWorldTransform(prim)).T,
        up=str(UsdGeom.GetStageUpAxis(stage)), meters=UsdGeom.GetStageMetersPerUnit(stage),
        fps=stage.GetTimeCodesPerSecond(), range=[stage.GetStartTimeCode(), stage.GetEndTimeCode()],
        made_of=stage.GetRootLayer().customLayerData["kinesplat"]["madeOf"],
        color_space=str(Usd.ColorSpaceAPI(prim).GetColorSpaceNameAttr().Get()),
    )
"""


def read_ply(path: Path) -> tuple[Gaussians, np.ndarray, list[str]]:
    """The Gaussians of a 3DGS PLY file, their harmonics [N, K, 3] and the comments; by name, in whatever order."""
    header, data = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    names = [line.split()[2] for line in lines if line.startswith("property float")]
    table = np.frombuffer(data, "<f4").reshape(-1, len(names))
    assert f"element vertex {len(table)}" in lines

    def columns(*wanted: str) -> np.ndarray:
        return table[:, [names.index(name) for name in wanted]]

    further = sum(name.startswith("f_rest_") for name in names) // 3
    rest = (
        columns(*(f"f_rest_{index}" for index in range(3 * further))).reshape(len(table), 3, further).transpose(0, 2, 1)
    )
    sh = np.concatenate([columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None], rest], axis=1)
    moment = Gaussians(
        means=columns("x", "y", "z"),
        quats=columns(*(f"rot_{index}" for index in range(4))),
        scales=np.exp(columns(*(f"scale_{index}" for index in range(3)))),
        opacities=1 / (1 + np.exp(-columns("opacity")[:, 0])),
    )
    return moment, sh, [line.removeprefix("comment ") for line in lines if line.startswith("comment")]


def read_glb(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The JSON of a binary glTF file, and the attributes of its only primitive by name."""
    content = path.read_bytes()
    magic, version, length, json_length, json_kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, length, json_kind) == (b"glTF", 2, len(content), b"JSON")
    document = json.loads(content[20 : 20 + json_length])
    body_length, body_kind = struct.unpack_from("<I4s", content, 20 + json_length)
    body = content[28 + json_length :]
    assert (body_length, body_kind) == (len(body), b"BIN\0")
    assert len(body) == document["buffers"][0]["byteLength"]
    (primitive,) = document["meshes"][0]["primitives"]
    attributes = {}
    for name, index in primitive["attributes"].items():
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        dtype = {5126: "<f4", 5123: "<u2"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        values = np.frombuffer(body, dtype, accessor["count"] * width, view["byteOffset"])
        assert values.nbytes == view["byteLength"]
        attributes[name] = values.reshape(-1, width) / (65535 if accessor.get("normalized") else 1)
    return document, attributes
