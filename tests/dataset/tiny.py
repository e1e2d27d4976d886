# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder of baked assets small enough for tests: boxes that swing, stand still, leave or have no licence."""

import json
from pathlib import Path

import numpy as np

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float) * [0.5, 0.1, 0.2]
QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
CLIPS = {"Swing": 15.0, "Idle": 0.0, "Travel": 0.0}


def write_assets(folder: Path, licences: dict[str, str | None]) -> None:
    """A manifest with one box for each name in `licences`, and its bake."""
    entries = []
    for name, licence in licences.items():
        write_box(folder / "baked24" / f"boxes__{name}.npz")
        clips = [
            {"action": action, "loop": False, "recentre": False, "motion": 0.1, "time_range": [0.0, 1.0]}
            for action in CLIPS
        ]
        entry = {"id": f"boxes/{name}", "file": f"{name}.glb", "family": "boxes", "split": "train", "clips": clips}
        entries.append({**entry, "author": "nobody", **({"licence": licence} if licence else {})})
    (folder / "manifest.json").write_text(json.dumps({"assets": entries}))


def write_box(path: Path) -> None:
    """The bake of a box with the three clips."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vertices = CORNERS[np.array(QUADS).ravel()]
    edges = vertices.reshape(-1, 4, 3)
    normals = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    first = 4 * np.arange(6)[:, None]
    faces = np.concatenate([first + np.array(corners) for corners in ((0, 1, 2), (0, 2, 3))])
    swing, idle, travel = (np.tile(np.eye(4)[:3], (24, 1, 1, 1)) for _ in range(3))
    angles = np.radians(CLIPS["Swing"]) * np.sin(np.linspace(0, 2 * np.pi, 24))
    swing[:, 0, 0, 0] = swing[:, 0, 2, 2] = np.cos(angles)
    swing[:, 0, 2, 0], swing[:, 0, 0, 2] = np.sin(angles), -np.sin(angles)
    travel[:, 0, 0, 3] = 2 * np.linspace(0, 1, 24) ** 3
    np.savez(
        path,
        v=vertices.astype(np.float16),
        n=np.round(np.repeat(normals, 4, axis=0) * 127).astype(np.int8),
        i=np.zeros((24, 4), np.uint8),
        w=np.tile(np.array([255, 0, 0, 0], np.uint8), (24, 1)),
        f=faces.astype(np.uint16),
        m=np.zeros(12, np.uint8),
        col=np.array([[200, 60, 40]], np.uint8),
        ti=np.array([-1], np.int16),
        uv=np.zeros((24, 2), np.float16),
        **{f"M{k}": matrices.astype(np.float16) for k, matrices in enumerate((swing, idle, travel))},
    )
