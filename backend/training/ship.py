# SPDX-License-Identifier: GPL-3.0-or-later
"""From training runs to the weights that are shipped: the averaged networks, in float16, with their card."""

import json
import re
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import Module

from backend.data.captions import action, caption, subject
from backend.data.samples import View, pose_clip
from backend.data.stills import StillStream
from backend.data.surface_points import sample_triangles
from backend.models import fourdm_weights, kinesplat_small, kinesplat_small_4dm, scene_flow
from backend.models.checkpoints import SINGLE
from backend.models.known_motions import HARMONICS, KnownMotions
from backend.models.known_subjects import KnownSubjects, Mesh, remember
from backend.models.text import Vocabulary, words
from backend.models.weights_convert import write_card
from backend.models.weights_registry import find
from backend.progress import UserError
from backend.splatting.control_points import farthest_points
from backend.splatting.motion import TimeBasis
from backend.training import motion_task, scene_flow_task, small_fourdm_task, static_task
from backend.training.checkpoint import found_checkpoint, read_about, read_average, read_state
from backend.training.config import TrainConfig
from blender_addon.contract.arrays import atomic_file

CANDIDATE_POINTS, POINTS = 2_000, 128  # on the surface of a known motion's subject; those that are kept
LICENCE = "CC0-1.0"  # of weights that are trained on CC0 models alone
KEYS = {known.name for known in fields(TrainConfig)}  # runs of other versions may have had others
TASKS = {
    "motion": motion_task,
    "static": static_task,
    "scene_flow": scene_flow_task,
    "small_fourdm": small_fourdm_task,
}


def ship(runs: dict[str, Path], assets: Path, out: Path, *, name: str) -> None:
    """Write the model of the runs (motion and, if there is one, static) to the folder `out`.

    `assets`: the animated assets whose training split becomes the memory of known subjects and motions, and tells which
    words stand for motions that end elsewhere than they began.

    Raises:
        UserError: a run has no checkpoint, or the runs do not fit together.
    """
    parts, trained, configs, vocabularies = {}, {}, {}, set()
    for task, run in runs.items():
        parts[task], configs[task], vocabulary, trained[task] = finished(task, run)
        vocabularies.add(vocabulary)
    if len(vocabularies) > 1 or len({config.resolution for config in configs.values()}) > 1:
        raise UserError("runs_differ", "The runs have different words or resolutions.", "Train them on the same data.")
    about = {
        "name": name,
        "licence": LICENCE,
        "resolution": configs["motion"].resolution,
        "frames": 24,
        "one_way": one_way_words(assets),
        "trained": trained,
    }
    kinesplat_small.save(out, parts, vocabulary, known_subjects(assets), known_motions(assets), about)


def ship_scene_flow(run: Path, out: Path, *, name: str) -> None:
    """Write the scene-flow network of a run to the folder `out`.

    Raises:
        UserError: the run has no checkpoint.
    """
    network, _, _, trained = finished("scene_flow", run)
    scene_flow.save(out, network, {"name": name, "licence": LICENCE, "trained": trained})


def ship_small_fourdm(run: Path, out: Path, *, name: str, base: Path | None = None) -> None:
    """Write the small 4DM of a run, its motion modules on their base, to the folder `out`.

    base: where the run of the base is now, if not where it was.

    Raises:
        UserError: the run has no checkpoint, or is that of a base alone.
    """
    if not told_of("small_fourdm", run)["base_run"]:
        raise UserError("runs_differ", f"{run} has no motion modules.", "Train them: docs/training.md.")
    network, config, vocabulary, trained = finished("small_fourdm", run, base=base)
    about = {"name": name, "licence": LICENCE, "resolution": config.resolution, "trained": trained}
    kinesplat_small_4dm.save(out, network, vocabulary, about)


def ship_published(run: Path, out: Path) -> None:
    """Write the averaged network of a run of published size to the folder `out`, in bf16.

    Raises:
        UserError: the run has no checkpoint, or is of another task.
    """
    _ship_half(run, out, "published")


def ship_fourdm(run: Path, out: Path) -> None:
    """Write the averaged motion modules of a run of 4DM to the folder `out`, in bf16, in place of the released ones.

    Raises:
        UserError: the run has no checkpoint, or is of another task.
    """
    steps = _ship_half(run, out, "fourdm", base=fourdm_weights.BASE)
    write_card(
        out, find(fourdm_weights.MOTION), {"source": f"trained here, {steps} steps", "base": fourdm_weights.BASE}
    )


def _ship_half(run: Path, out: Path, task: str, **told: str) -> int:
    """Write the averaged network of the newest checkpoint in bf16. Returns its steps."""
    about = told_of(task, run)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in read_average(run).items()}
    steps = read_state(found_checkpoint(run))["step"]
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / SINGLE) as file:
        file.write(save(tensors, {"steps": str(steps), "network": json.dumps(about["network"]), **told}))
    return steps


def finished(task: str, run: Path, *, base: Path | None = None) -> tuple[Module, TrainConfig, Vocabulary, dict]:
    """The averaged network of a run, checkpoint or packed run, its settings, words, and how long it was trained.

    base: where the run of a frozen base is, if not where the configuration says.

    Raises:
        UserError: there is no checkpoint, or it is of another task.
    """
    about = told_of(task, run)
    vocabulary = Vocabulary(about.pop("vocabulary"))
    config = TrainConfig(**{key: value for key, value in about.items() if key in KEYS})
    if base is not None:
        config = replace(config, base_run=str(base))
    small_fourdm_task.check_base(config, about)
    network = TASKS[task].build(config, vocabulary)
    frozen = network.state_dict()  # comes from where the base came from; all of it is replaced where there is none
    network.load_state_dict({**frozen, **read_average(run)})
    steps = read_state(found_checkpoint(run))["step"]
    return network, config, vocabulary, {"steps": steps, "batch": config.batch}


def told_of(task: str, run: Path) -> dict:
    """`read_about`, which has to name the task.

    Raises:
        UserError: there is no checkpoint, or it is of another task.
    """
    about = read_about(run)
    if about["task"] != task:
        raise UserError("runs_differ", f"{run} trained the task {about['task']}, not {task}.")
    return about


def one_way_words(assets: Path) -> list[str]:
    """Words in plain form of whose clips in the training split, two or more, most end elsewhere than they began."""
    stream = StillStream(assets, "train")
    looping = defaultdict(list)
    for identity, asset in stream.assets.items():
        for clip in asset.clips:
            for word in set(words(caption(stream.entries[identity], clip.action))):
                looping[word].append(clip.loop)
    return sorted(word for word, loops in looping.items() if 2 * sum(loops) < len(loops) > 1)


def known_subjects(assets: Path) -> KnownSubjects:
    """The subjects of the training split, each as it stands at the start of its calmest clip."""
    stream = StillStream(assets, "train")
    names, meshes = [], []
    for identity, asset in stream.assets.items():
        calm = [clip for clip, info in enumerate(asset.clips) if re.search("idle|stand|walk|swim", info.action.lower())]
        clip = min(calm or range(len(asset.clips)), key=lambda clip: asset.clips[clip].motion)
        positions, normals = pose_clip(asset, clip, View(span=0.0), frames=1)
        normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
        look = (asset.uv, asset.faces, asset.colors, asset.texture, asset.textures, asset.texture_sizes)
        names.append(subject(stream.entries[identity]))
        meshes.append(Mesh(positions[0], normals[0], *look))
    return remember(names, meshes)


def known_motions(assets: Path) -> KnownMotions:
    """The clips of the training split as movements of points, each from its own beginning."""
    stream = StillStream(assets, "train")
    subjects, actions, loops, points, series = [], [], [], [], []
    for identity, asset in stream.assets.items():
        entry, kept = stream.entries[identity], None
        for number, clip in enumerate(asset.clips):
            corners = pose_clip(asset, number, View())[0][:, asset.faces]  # [T, F, 3, 3]
            if kept is None:  # the same points in all clips
                chosen, weights = sample_triangles(corners[0], CANDIDATE_POINTS, seed=0)
                sampled = np.einsum("mc,mcd->md", weights, corners[0, chosen])
                far = farthest_points(sampled.astype(np.float32), POINTS)
                kept = chosen[far], weights[far]
            positions = np.einsum("mc,tmcd->tmd", kept[1], corners[:, kept[0]])
            subjects.append(subject(entry))
            actions.append(action(clip.action, entry))
            loops.append(clip.loop)
            points.append(positions[0])
            series.append(_series(positions - positions[0], loop=clip.loop))
    half = lambda arrays: torch.from_numpy(np.stack(arrays)).half()  # noqa: E731
    return KnownMotions(tuple(subjects), tuple(actions), torch.tensor(loops), half(points), half(series))


def _series(shifts: np.ndarray, *, loop: bool) -> np.ndarray:  # [T, P, 3] -> [J, P, 3]
    """Shifts along the functions of time that come nearest to them; the drift, which loops do not have, comes first."""
    functions = TimeBasis(loop, HARMONICS)(torch.linspace(0, 1, len(shifts))).T.numpy()
    found = np.linalg.lstsq(functions, shifts.reshape(len(shifts), -1), rcond=None)[0].reshape(-1, *shifts.shape[1:])
    return np.concatenate([np.zeros_like(found[:1]), found]) if loop else found
