# SPDX-License-Identifier: GPL-3.0-or-later
"""Subjects whose surface does not stay the same: what grows, comes, goes, or gets other faces all the time.

    python -m benchmarks.changing [--subjects pops_up vine ...] [--preset preview] [--out FILE.json]

They are made and rendered in headless Blender (Cycles, 128 pixels), constructed, and compared from sides that nobody
showed. With `--out` there is a sheet of each beside the report: truth above, result below, from one such side.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from backend.evaluation.construction import evaluate_construction
from backend.pictures import over_white, tiled
from backend.progress import Run
from backend.splatting.config import ConstructConfig
from backend.splatting.construct import STAGE_SHARES, construct
from backend.splatting.observations import Observations, read_orbit_folder
from backend.splatting.rasterize import warm_up
from backend.splatting.render import render_clip
from benchmarks.report import write_report
from blender_addon.contract.clip import Clip
from blender_addon.contract.requests import PRESETS
from blender_addon.contract.surface import read_surface_samples

FRAMES = 24
RED, GREEN, BLUE, GOLD, BROWN = (0.8, 0.1, 0.1), (0.1, 0.5, 0.15), (0.15, 0.25, 0.8), (0.7, 0.6, 0.2), (0.6, 0.35, 0.2)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.changing", description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--preset", choices=PRESETS, default="preview")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--render", nargs=2, metavar=("SUBJECT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.render:
        render(options.render[0], Path(options.render[1]))
        return 0
    warm_up()
    rows = []
    for subject in options.subjects:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.changing", "--render", subject, folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # Blender has one file open at a time
            rows.append({"subject": subject, **measure(Path(folder), subject, options)})
    write_report(f"Subjects whose surface changes, {options.preset}", rows, [], options.out)
    return 0


def measure(folder: Path, subject: str, options: argparse.Namespace) -> dict:
    """Construct from what was captured, and compare."""
    moving, static, truth = (read_orbit_folder(folder / name) for name in ("moving", "static", "truth"))
    surface = read_surface_samples(folder / "surface.npz")
    with tempfile.TemporaryDirectory() as work:
        run = Run(Path(work))
        run.plan(STAGE_SHARES)
        began = time.process_time()
        clip = construct(moving, static, surface, ConstructConfig.for_preset(options.preset), run)
        seconds = time.process_time() - began
    if options.out:
        sheet(clip, truth).save(options.out.with_name(f"{options.out.stem}_{subject}.png"))
    found = evaluate_construction(clip, moving, truth, None)
    shown = {name: round(found[name], 2) for name in ("psnr_unseen", "psnr_unseen_frozen", "psnr_shown")}
    return {**shown, "iou_unseen": round(found["iou_unseen"], 3), "gaussians": clip.count, "cpu_s": round(seconds, 1)}


def sheet(clip: Clip, truth: Observations) -> Image.Image:
    """Truth above, result below: at each of its times the view that comes first."""
    _, views = np.unique(truth.cameras.times, return_index=True)
    drawn = render_clip(clip, truth.cameras.picked(views))
    return Image.fromarray(tiled(torch.stack([over_white(truth.images[views]), over_white(drawn)])))


def render(subject: str, folder: Path) -> None:
    """Make a subject in an empty file, capture it as the add-on does, and render what is compared with."""
    import bpy

    from benchmarks.example_views import render_subject

    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = 1, FRAMES
    bpy.context.preferences.edit.keyframe_new_interpolation_type = "LINEAR"
    made = SUBJECTS[subject](bpy)
    bpy.context.view_layer.update()
    render_subject(bpy, made, folder)


# Subjects


def pops_up(bpy):
    """On a plate three things grow from nothing, one after the other."""
    things = [_made(bpy, "cylinder", GOLD, radius=1.6, depth=0.15)]
    for index, (kind, color) in enumerate([("monkey", RED), ("uv_sphere", GREEN), ("cube", BLUE)]):
        angle = index * math.tau / 3
        thing = _made(bpy, kind, color, location=(0.9 * math.cos(angle), 0.9 * math.sin(angle), 0.55))
        _keyed(thing, "scale", {1 + 6 * index: (0, 0, 0), 8 + 6 * index: (0.5, 0.5, 0.5)})
        things.append(thing)
    return _together(bpy, things)


def appears(bpy):
    """A turning tower to which a block is added now and then."""
    blocks = []
    for index, color in enumerate([RED, GREEN, BLUE, GOLD]):
        blocks.append(_made(bpy, "cube", color, size=1, location=(0, 0, 1.02 * index)))
        _keyed(blocks[-1], "hide_render", {1: index > 0, 1 + 6 * index: False})
    tower = _together(bpy, blocks)
    _keyed(tower, "rotation_euler", {1: (0, 0, 0), FRAMES: (0, 0, 1)})
    return tower


def vine(bpy):
    """A curve that grows along a spiral."""
    curve = bpy.data.curves.new("vine", "CURVE")
    curve.dimensions, curve.bevel_depth, curve.use_fill_caps = "3D", 0.16, True
    spline = curve.splines.new("POLY")
    spline.points.add(59)
    for way, point in zip(np.linspace(0, 1, 60), spline.points, strict=True):
        point.co = math.cos(12 * way) * (1 - 0.6 * way), math.sin(12 * way) * (1 - 0.6 * way), 2.6 * way, 1
        point.radius = 1 - 0.6 * way
    _keyed(curve, "bevel_factor_end", {1: 0.08, FRAMES: 1.0})
    return _linked(bpy, curve, GREEN)


def metaballs(bpy):
    """Four balls that part, circle and melt together."""
    balls = bpy.data.metaballs.new("balls")
    balls.resolution = balls.render_resolution = 0.12
    for index in range(4):
        element = balls.elements.new()
        element.radius = 0.9
        for frame in range(1, FRAMES + 1):
            angle = index * math.pi / 2 + 0.12 * frame
            radius = 1.1 * math.sin(frame / FRAMES * math.pi) + 0.05
            element.co = math.cos(angle) * radius, math.sin(angle) * radius, 0.5 * math.sin(2 * angle)
            element.keyframe_insert("co", frame=frame)
    return _linked(bpy, balls, BROWN)


def remeshed(bpy):
    """A head that bends, its mesh made anew after that."""
    head = _made(bpy, "monkey", BROWN)
    bend = head.modifiers.new("Bend", "SIMPLE_DEFORM")
    bend.deform_method, bend.deform_axis = "BEND", "Z"
    _keyed(bend, "angle", {1: -0.8, FRAMES: 0.9})
    head.modifiers.new("Remesh", "REMESH").voxel_size = 0.06
    return head


def cut(bpy):
    """A cube out of which a ball that passes takes its share."""
    cube, ball = _made(bpy, "cube", BLUE, size=2), _made(bpy, "uv_sphere", RED, radius=0.9)
    ball.hide_render = True
    _keyed(ball, "location", {1: (-2, -2, 2), FRAMES: (1, 1, 0.5)})
    boolean = cube.modifiers.new("Cut", "BOOLEAN")
    boolean.object, boolean.operation, boolean.solver, boolean.material_mode = ball, "DIFFERENCE", "EXACT", "TRANSFER"
    return cube


def built(bpy):
    """A ring whose faces come one after the other."""
    ring = _made(bpy, "torus", GOLD, major_segments=48, minor_segments=16)
    build = ring.modifiers.new("Build", "BUILD")
    build.frame_start, build.frame_duration = -4, 26
    return ring


SUBJECTS = {made.__name__: made for made in (pops_up, appears, vine, metaballs, remeshed, cut, built)}


def _made(bpy, kind: str, color: tuple[float, float, float], **options):
    getattr(bpy.ops.mesh, f"primitive_{kind}_add")(**options)
    bpy.context.object.data.materials.append(_material(bpy, color))
    return bpy.context.object


def _linked(bpy, data, color: tuple[float, float, float]):
    data.materials.append(_material(bpy, color))
    made = bpy.data.objects.new(data.name, data)
    bpy.context.collection.objects.link(made)
    return made


def _material(bpy, color: tuple[float, float, float]):
    material = bpy.data.materials.new("Paint")
    material.use_nodes = True
    material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (*color, 1)
    return material


def _keyed(block, path: str, values: dict) -> None:
    for frame, value in values.items():
        setattr(block, path, value)
        block.keyframe_insert(path, frame=frame)


def _together(bpy, things: list):
    parent = bpy.data.objects.new("Together", None)
    bpy.context.collection.objects.link(parent)
    for thing in things:
        thing.parent = parent
    return parent


if __name__ == "__main__":
    sys.exit(main())
