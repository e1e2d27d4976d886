# SPDX-License-Identifier: GPL-3.0-or-later
"""A model file as a generation takes it: seen from all around, with samples of its surface, by the add-on's own code.

Blender runs without a window in a process of its own (`still_model`).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from backend.data.blender_wheel import demand_blender
from backend.data.children import Child, ChildDied
from backend.progress import Run, UserError
from backend.versions import program_key
from blender_addon.contract.arrays import atomic_file
from blender_addon.contract.orbit import FURTHER
from blender_addon.contract.requests import GENERATED_FRAMES

STAGES = {"measure": "Opening the model", "static": "Rendering all sides", "surface": "Sampling the surface"}
SHARES = {"measure": 0.15, "static": 0.8, "surface": 0.05}
SAMPLES = 16  # per pixel
DONE = "capture.json"


@dataclass(frozen=True)
class CapturedObject:
    """What `capture_object` leaves in a folder."""

    static: Path  # orbit folder
    surface: Path  # surface samples
    to_object: list[list[float]]  # 4x4, clip space -> object space


def capture_object(file: Path, folder: Path, run: Run, *, resolution: int) -> CapturedObject:
    """Render the static orbit of a .glb or .gltf file, as the file describes it at rest, into `folder`.

    A folder in which the same file was captured already is taken as it is. Object space is Blender's after import.

    Raises:
        UserError: there is no such file, Blender cannot use it, or there is no Blender.
        JobCancelled: by `run`.
    """
    run.plan({STAGES[stage]: share for stage, share in SHARES.items()})
    run.begin(STAGES["measure"])
    try:
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            "no_model", f"{file} cannot be read: {error.strerror}.", "Give a .glb or .gltf file."
        ) from error
    key = {"file": digest, "frames": GENERATED_FRAMES, "resolution": resolution, "samples": SAMPLES}
    key["program"] = program_key()
    key["further"] = [list(views) for views in FURTHER]  # as JSON gives them back
    found = _captured(folder)
    if found is None or found["key"] != key:
        (folder / DONE).unlink(missing_ok=True)
        job = {**key, "file": str(file.resolve()), "folder": str(folder.resolve())}
        found = {"key": key, "to_object": _capture(job, folder, run)}
        with atomic_file(folder / DONE) as out:
            out.write(json.dumps(found).encode())
    run.finish()
    return CapturedObject(folder / "static", folder / "surface.npz", found["to_object"])


def _captured(folder: Path) -> dict | None:
    try:
        return json.loads((folder / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _capture(job: dict, folder: Path, run: Run) -> list[list[float]]:  # 4x4
    demand_blender("Rendering a model", "give an image or a text instead")
    log = folder / "blender.log"
    child = Child("backend.data.still_model", log)
    stage = "measure"
    try:
        while "to_object" not in (answer := child.ask(job)):
            if "error" in answer:
                child.end()
                log.unlink(missing_ok=True)  # the sentence says it all, and nothing is to be left beside the result
                raise UserError(
                    "bad_model", answer["error"], "Open the file in Blender, correct it there and export it as .glb."
                )
            if answer["stage"] in STAGES and answer["stage"] != stage:
                stage = answer["stage"]
                run.begin(STAGES[stage])
            run.report(answer["done"], answer["total"])
        return answer["to_object"]
    except ChildDied as error:
        raise UserError("blender_failed", f"Blender stopped: {error}.", f"Its messages are in {log}.") from error
    finally:
        child.end()
