# SPDX-License-Identifier: GPL-3.0-or-later
"""Child process of `truth`: renders clips of one GLB file in Blender's Python module, as the add-on would.

Reads a job from standard input: {"file", "clips": [{"action", "time_range", "folder", "fingerprint"}]}. Each clip's
folder gets `moving` and `static` (orbit folders) and, last, `truth.json`.
"""

import json
import struct
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import bpy

from backend.evaluation.truth import FRAMES, RESOLUTION, SAMPLES, write_truth_json
from blender_addon import orbit_render
from blender_addon.contract.orbit import Orbit
from blender_addon.subject import CaptureError

FPS = 24


def main() -> None:
    """Do the job on standard input."""
    job = json.load(sys.stdin)
    for clip in job["clips"]:
        folder = Path(clip["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        problem = ""
        try:
            render(Path(job["file"]), clip["action"], clip["time_range"], folder)
        except (CaptureError, ValueError, RuntimeError) as error:  # RuntimeError: what Blender's importer reports
            problem = str(error).strip()
        write_truth_json(folder, clip["fingerprint"], problem)


def render(file: Path, action: str, time_range: list[float], folder: Path) -> None:
    """Moving and static orbit of one animation of a GLB file, in the clip space of its first moment."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.fps, scene.render.fps_base = FPS, 1.0
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "clip.glb"
        path.write_bytes(with_one_animation(file.read_bytes(), action))
        bpy.ops.import_scene.gltf(filepath=str(path), disable_bone_shape=True)
    subject = bpy.data.objects.new("Subject", None)  # a file may hold several roots
    scene.collection.objects.link(subject)
    for obj in scene.objects:
        if obj.parent is None and obj is not subject:
            obj.parent = subject
    start, end = (FPS * seconds for seconds in time_range)
    at_start = orbit_render.measure(bpy.context, subject, (start, start))
    space = replace(at_start, frame_range=(start, end))
    for moving, name in ((True, "moving"), (False, "static")):
        steps = orbit_render.render_orbit_steps(
            space, Orbit(FRAMES), folder / name, resolution=RESOLUTION, moving=moving, samples=SAMPLES, engine="CYCLES"
        )
        for _ in steps:
            pass


def with_one_animation(glb: bytes, name: str) -> bytes:
    """A GLB file without its other animations, so that bones which this one leaves alone keep the file's pose.

    Raises:
        ValueError: it is no GLB file, or has no such animation.
    """
    magic, version, _ = struct.unpack_from("<4sII", glb)
    if magic != b"glTF" or version != 2:
        raise ValueError("The file is not a GLB file of version 2.")
    length, kind = struct.unpack_from("<I4s", glb, 12)
    if kind != b"JSON":
        raise ValueError("The GLB file does not begin with its description.")
    description = json.loads(glb[20 : 20 + length])
    chosen = [animation for animation in description.get("animations", ()) if animation.get("name") == name]
    if not chosen:
        raise ValueError(f"The file has no animation named {name}.")
    description["animations"] = chosen[:1]
    text = json.dumps(description, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    rest = glb[20 + length :]
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest


if __name__ == "__main__":
    main()
