# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether weights on this computer are still what they were, and what a network expects."""

from dataclasses import dataclass
from pathlib import Path

from backend.models.checkpoints import CARD, locate, read_card, read_shapes
from backend.models.weights_registry import Weights
from backend.progress import Run, UserError
from blender_addon.contract.requests import file_sha256


@dataclass(frozen=True)
class Verdict:
    """What `verify` has found. Without problems the weights are good; notes say what could not be looked at."""

    weights: Weights
    tensors: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify(weights: Weights, folder: Path, run: Run) -> Verdict:
    """Compare sizes and digests with those noted on arrival and published, and tensors with the network's.

    `folder`: of all weights.

    Raises:
        UserError: the weights are not there, or their card cannot be read.
        JobCancelled: the run was cancelled.
    """
    path = locate(weights.name, folder)
    files = read_card(path)["files"]
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} - {CARD}
    problems = [f"{name} is missing" for name in sorted(files.keys() - present)]
    problems += [f"{name} is not noted on the card" for name in sorted(present - files.keys())]
    published = {file.path: file for file in weights.files if not file.is_pickle}
    for place, name in enumerate(sorted(files.keys() & present)):
        run.report(place, len(files))
        size, digest = (path / name).stat().st_size, file_sha256(path / name)
        if size != files[name].get("bytes"):
            problems.append(f"{name} has {size} bytes instead of {files[name].get('bytes')}")
        elif digest != files[name].get("sha256"):
            problems.append(f"{name} has changed: its sha256 is {digest} instead of {files[name].get('sha256')}")
        elif name in published and published[name].sha256 not in (None, digest):
            problems.append(f"{name} is not the published file: its sha256 is {digest}")

    shapes = {}
    try:
        shapes = read_shapes(path) if weights.keys else {}
        if difference := weights.differences(shapes):
            problems.append(str(difference))
    except UserError as error:
        problems.append(str(error))
    notes = () if weights.keys else ("names and shapes of tensors are not known here: not compared",)
    if not weights.verified:
        notes += ("no digest is published for all files: compared with what arrived only",)
    return Verdict(weights, len(shapes), tuple(problems), notes)
