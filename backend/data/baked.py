# SPDX-License-Identifier: GPL-3.0-or-later
"""Baked assets: a mesh, its look, and skinning matrices of 24 frames for each of its clips (13 kB a clip).

Poses between stored frames are linear in the matrices, so a clip can be cut, shifted and slowed down freely.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.data.skinning import skin
from backend.models.mesh_raster import stacked
from blender_addon.contract.arrays import BadFileError, read_arrays


@dataclass(frozen=True)
class ClipInfo:
    """One animation of an asset, as its manifest tells it."""

    action: str
    loop: bool
    recentre: bool  # travels by more than 0.3 of its size: its drift is taken out
    motion: float  # mean displacement / diagonal of the bounding box


@dataclass(frozen=True)
class BakedAsset:
    """A mesh and its clips. Z up, Blender's axes."""

    id: str
    family: str
    licence: str
    clips: list[ClipInfo]
    vertices: np.ndarray  # [V, 3] float32
    normals: np.ndarray  # [V, 3] float32
    joints: np.ndarray  # [V, 4] int32
    weights: np.ndarray  # [V, 4] float32, sum 1
    faces: np.ndarray  # [F, 3] int32
    colors: np.ndarray  # [F, 3] float32, sRGB 0..1
    uv: np.ndarray  # [V, 2] float32, v downwards
    texture: np.ndarray  # [F] int32, index into `textures` or -1
    textures: np.ndarray  # [N, h, w, 3] float32
    texture_sizes: np.ndarray  # [N, 2] int32 (h, w)
    matrices: list[np.ndarray]  # per clip [24, B, 3, 4] float32

    def poses(self, clip: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vertices and normals [T, V, 3] float32 at fractional stored frames [T]; loops wrap, others stop."""
        stored = self.matrices[clip]
        last = len(stored) - 1  # a loop's last frame is its first
        frames = np.mod(frames, last) if self.clips[clip].loop else np.clip(frames, 0, last)
        low = np.minimum(frames.astype(int), last - 1)
        share = (frames - low).astype(np.float32)[:, None, None, None]
        matrices = stored[low] * (1 - share) + stored[low + 1] * share
        positions = np.empty((len(frames), len(self.vertices), 3), np.float32)
        directions = np.empty_like(positions)
        skin(self.vertices, self.normals, self.joints, self.weights, matrices, positions, directions)
        return positions, directions


def read_manifest(folder: Path, split: str | None = None) -> list[dict]:
    """The assets that `folder/manifest.json` lists, of one split or of all.

    Raises:
        BadFileError: no manifest, or not of the expected form.
    """
    path = Path(folder) / "manifest.json"
    try:
        assets = json.loads(path.read_text(encoding="utf-8"))["assets"]
        for asset in assets:  # what everybody counts on
            texts = [asset["id"], asset["family"], asset["split"], *(clip["action"] for clip in asset["clips"])]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{asset['id']} has a name that is no text")
        return [asset for asset in assets if split is None or asset["split"] == split]
    except FileNotFoundError as error:
        raise BadFileError(f"{folder} holds no manifest.json: it is no folder of animated assets.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{path} is not a manifest of animated assets: {error}.") from error


def baked_file(folder: Path, entry: dict) -> Path:
    """Where the bake of a manifest entry lies among the assets in `folder`."""
    return Path(folder) / "baked24" / f"{entry['id'].replace('/', '__')}.npz"


def model_file(folder: Path, entry: dict) -> Path:
    """Where the model of a manifest entry lies among the assets in `folder`.

    Raises:
        BadFileError: the manifest does not say; baked assets may be all there are.
    """
    if not isinstance(entry.get("file"), str):
        raise BadFileError(f"The manifest names no file of {entry['id']}: there is its bake alone.")
    return Path(folder) / entry["file"]


def read_baked(folder: Path, entry: dict) -> BakedAsset:
    """The bake of one manifest entry.

    Raises:
        BadFileError: the file is missing or damaged.
    """
    path = baked_file(folder, entry)
    try:
        return _asset(entry, read_arrays(path))
    except (OSError, ValueError, LookupError) as error:
        raise BadFileError(f"{path} is missing, or no bake of the model: {error}.") from error


def _asset(entry: dict, arrays: dict[str, np.ndarray]) -> BakedAsset:
    material = arrays["m"].astype(int)
    colors = arrays["col"][material].astype(np.float32) / 255
    faces = arrays["f"].astype(np.int32)
    if "vc" in arrays:
        colors = colors * arrays["vc"][faces].astype(np.float32).mean(1) / 255
    count = int(arrays["ti"].max()) + 1
    textures, sizes = stacked([arrays[f"tex{k}"].astype(np.float32) / 255 for k in range(count)])
    weights = arrays["w"].astype(np.float32)
    return BakedAsset(
        id=entry["id"],
        family=entry["family"],
        licence=entry["licence"],
        clips=[ClipInfo(c["action"], bool(c["loop"]), bool(c["recentre"]), float(c["motion"])) for c in entry["clips"]],
        vertices=arrays["v"].astype(np.float32),
        normals=arrays["n"].astype(np.float32) / 127,
        joints=arrays["i"].astype(np.int32),
        weights=weights / np.maximum(weights.sum(1, keepdims=True), 1e-6),
        faces=faces,
        colors=np.ascontiguousarray(colors, np.float32),
        uv=arrays["uv"].astype(np.float32) if count else np.zeros((len(weights), 2), np.float32),
        texture=arrays["ti"][material].astype(np.int32),
        textures=textures,
        texture_sizes=sizes,
        matrices=[arrays[f"M{k}"].astype(np.float32) for k in range(len(entry["clips"]))],
    )
