# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests: what the add-on asks of the backend. Plain JSON plus blobs named by their sha256.

The bounds below are the only place where limits stand: the panel's properties and the server's schema both use them.

    {"kind": "orbit", "name": "Fox", "pipeline": "orbit",
     "settings": {"seed": 0, "preset": "preview", "gaussians": 5000, "fps": 24.0},
     "inputs": {"moving":  {"frames": [sha256, ...], "cameras": {...}},   # cameras: orbit.Cameras.to_json()
                "static":  {"frames": [sha256, ...], "cameras": {...}},   # or null
                "surface": sha256,                                         # surface samples (.npz), or null
                "to_object": [[...] * 4]}}                                 # clip space -> object space
"""

import hashlib
import os
from dataclasses import dataclass

API_VERSION = 1
KINDS = ("orbit",)  # what this version can do; object, text, image and video come with their pipelines
PIPELINES = {"orbit": "orbit"}  # kind -> its pipeline
PRESETS = ("draft", "preview", "final")
JOB_STATES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
TERMINAL_STATES = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Bound:
    """Default and inclusive limits of one number."""

    default: float
    minimum: float
    maximum: float


BOUNDS = {
    "seed": Bound(0, 0, 2**31 - 1),
    "frames": Bound(24, 8, 96),
    "resolution": Bound(128, 64, 512),  # pixels, square
    "gaussians": Bound(5_000, 500, 200_000),
    "fps": Bound(24.0, 1.0, 240.0),
}
GAUSSIANS_BY_PRESET = {"draft": 2_000, "preview": 5_000, "final": 20_000}
MAX_NAME_LENGTH = 200


def orbit_request(
    name: str,
    moving: dict,
    static: dict | None,
    surface: str | None,
    to_object: list[list[float]],
    *,
    preset: str = "preview",
    gaussians: int | None = None,
    seed: int = 0,
    fps: float = 24.0,
) -> dict:
    """A request of kind `orbit`: the moving orbit exists already, so diffusion is skipped.

    `moving` and `static` are {"frames": [sha256, ...], "cameras": Cameras.to_json()}; `gaussians` follows the preset
    where it is None.
    """
    return {
        "kind": "orbit",
        "name": name[:MAX_NAME_LENGTH],
        "pipeline": PIPELINES["orbit"],
        "settings": {
            "seed": seed,
            "preset": preset,
            "gaussians": GAUSSIANS_BY_PRESET[preset] if gaussians is None else gaussians,
            "fps": fps,
        },
        "inputs": {"moving": moving, "static": static, "surface": surface, "to_object": to_object},
    }


def request_blobs(request: dict) -> list[str]:
    """The sha256 of every blob that a request names, each once, in order."""
    inputs = request["inputs"]
    orbits = [inputs["moving"], inputs["static"]]
    names = [sha256 for orbit in orbits if orbit for sha256 in orbit["frames"]]
    if inputs["surface"]:
        names.append(inputs["surface"])
    return list(dict.fromkeys(names))


def file_sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file's content, as 64 lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
