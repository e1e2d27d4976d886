# SPDX-License-Identifier: GPL-3.0-or-later
"""What an imported clip costs in Blender: CPU time of a frame change, of the import, size of the saved file.

    python run.py bench playback [--out FILE.json]

A frame change goes to a moment between two stored frames and evaluates the object; nothing is drawn. The clip moves by
bases, as constructed clips do, has spherical harmonics of degree 1, and 24 frames.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import bpy
import numpy as np

from benchmarks.report import Figure, write_report
from blender_addon import node_groups, point_cloud, versions
from blender_addon.contract import rotations
from blender_addon.contract.clip import BasisMotion, Clip

FRAMES = 24
COUNTS = (5_000, 20_000, 100_000)
NEEDED = 20_000  # the count for which figures are needed
CHANGES = 69  # frame changes measured


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit code says whether the needed figures are met."""
    parser = argparse.ArgumentParser(prog="bench playback", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the figures there")
    out = parser.parse_args(arguments).out

    rows = [measure(count) for count in COUNTS]
    needed = next(row for row in rows if row["Gaussians"] == NEEDED)
    label = f"{NEEDED // 1000}k Gaussians x {FRAMES}"
    figures = [
        Figure(f"Frame change, {label}, points", needed["points, ms"], "CPU ms", at_most=8.0),
        Figure(f"Frame change, {label}, quads", needed["quads, ms"], "CPU ms", at_most=25.0),
        Figure(f"Import, {label}", needed["import, s"], "CPU s", at_most=1.0),
        Figure(f"Compressed .blend, {label}", needed[".blend, MB"], "MB", at_most=20.0),
    ]
    write_report(f"Playback in Blender {bpy.app.version_string}, {FRAMES} frames, CPU", rows, figures, out)
    return 0 if all(figure.met for figure in figures) else 1


def measure(count: int) -> dict:
    """One row: median CPU milliseconds of a frame change, seconds of the import, megabytes of the file."""
    clip = waving_sheet(count)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    camera.location = (0, -2, 0)
    scene.collection.objects.link(camera)
    scene.camera = camera

    start = time.process_time()
    splats = point_cloud.import_clip(clip, scene, start=1)  # the nodes are built as well: the file is new
    imported = time.process_time() - start

    modifier = point_cloud.playback_modifier(splats)
    row = {"Gaussians": count}
    for name, mode, sort in (("points", "POINTS", True), ("quads", "QUADS", True), ("quads unsorted", "QUADS", False)):
        point_cloud.set_draw_mode(splats, viewport=mode)
        versions.set_modifier_input(modifier, node_groups.SORT, sort)
        row[f"{name}, ms"] = frame_change_milliseconds(splats, scene)
    row["import, s"] = imported
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.blend"
        bpy.ops.wm.save_as_mainfile(filepath=str(path), compress=True)
        row[".blend, MB"] = path.stat().st_size / 1e6
    return row


def frame_change_milliseconds(splats: bpy.types.Object, scene: bpy.types.Scene) -> float:
    """Median CPU time, all threads, of going to another moment."""
    spent = []
    for change in range(CHANGES + 3):
        moment = 1 + (0.37 + 0.61 * change) % (FRAMES - 1)
        start = time.process_time()
        scene.frame_set(int(moment), subframe=moment % 1)
        splats.evaluated_get(bpy.context.evaluated_depsgraph_get())
        spent.append(time.process_time() - start)
    return 1000 * statistics.median(spent[3:])


def waving_sheet(count: int, bases: int = 64) -> Clip:
    """A sheet of Gaussians that waves, held by `bases` bases along its length."""
    random = np.random.default_rng(0)
    means = random.uniform(-0.5, 0.5, (count, 3)) * [1, 1, 0.1]
    along = np.linspace(-0.5, 0.5, bases)
    phases = 2 * np.pi * (np.arange(FRAMES)[:, None] / FRAMES + along)  # [T, B]
    angles = 0.4 * np.cos(phases)
    quats = np.stack([np.cos(angles / 2), np.zeros_like(angles), np.sin(angles / 2), np.zeros_like(angles)], axis=-1)
    pivots = np.stack([along, np.zeros(bases), np.zeros(bases)], axis=-1)
    moved = pivots + np.stack([np.zeros_like(phases), np.zeros_like(phases), 0.1 * np.sin(phases)], axis=-1)
    translations = moved - np.einsum("tbij,bj->tbi", rotations.to_matrix(quats), pivots)
    nearest = np.argsort(np.abs(means[:, :1] - along), axis=1)[:, :4]
    weights = np.exp(-(((means[:, :1] - along[nearest]) * bases) ** 2))
    return Clip(
        means=means.astype(np.float32),
        quats=rotations.normalize(random.normal(size=(count, 4))).astype(np.float32),
        scales=random.uniform(0.002, 0.01, (count, 3)).astype(np.float32),
        opacities=random.uniform(0.1, 1.0, count).astype(np.float32),
        sh=random.normal(0, 0.5, (count, 4, 3)).astype(np.float32),
        motion=BasisMotion(
            quats.astype(np.float32),
            translations.astype(np.float32),
            nearest.astype(np.int32),
            (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
