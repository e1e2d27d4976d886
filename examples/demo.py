# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on real input, as a user does it: install the extension, open a model, Generate, Import, retime, render.

    python run.py demo [--out DIR] [--model dog|cat] [--prompt TEXT] [--motion M] [--seed N] [--preset NAME]
    python run.py demo --animated [...]     # a fox that walks already: its own motion is captured

A still model gets a motion that the diffusion model invents; an animated one keeps its own. Blender runs headless in
this process, the backend in one of its own that the add-on starts. The exit code is 0 only if every step happened.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import av
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from backend import __version__
from backend.commands.orbit_folders import write_generated
from backend.console import time_text
from backend.evaluation.sheets import SheetRow, sheet
from blender_addon.contract.clip import Clip, read_clip
from blender_addon.contract.frames import GeneratedFrames, read_frames
from blender_addon.contract.orbit import Cameras, frame_name, read_orbit_json
from blender_addon.contract.requests import BOUNDS

ROOT = Path(__file__).resolve().parent.parent
BACKGROUND = 0.93  # grey behind the pictures
MARGIN = 0.06  # of the subject's size, left free around it in the pictures
SHEET_WIDTH = 160  # pixels of one picture on the contact sheet
SHEET_COLUMNS = 8
UNSEEN_TURN = 90.0  # degrees about the vertical, from a frame's own camera to one that nobody has seen it by
PREVIEW_FPS = 24
PREVIEW_STEPS = 2  # pictures per stored frame: the loop is played at half speed
PREVIEW_ROUNDS = 2


@dataclass(frozen=True)
class Model:
    """A bundled model: an animated one with the action to play, or a still one with what it is to do."""

    file: str
    action: str = ""
    fps: int = 24  # an action ends on a whole frame of these, so that it loops exactly
    prompt: str = ""
    motion: float = 0.0  # motion magnitude


MODELS = {
    "dog": Model("dog.glb", prompt="a dog walks", motion=3.0),
    "cat": Model("cat.glb", prompt="it walks", motion=3.0),
    "fox": Model("fox.glb", action="Walk", fps=30),
    "shark": Model("shark.glb", action="Swim_Horizontal", fps=30),
}


RESULTS = ("preview.mp4", "contact_sheet.png", "demo.blend", "clip.npz", "report.json")
FOLDERS = ("orbit", "render", "blender", "backend")
LOG = "blender.log"  # of whatever Blender says; each folder with results of ours has one
cancelled = threading.Event()  # by the user: while Blender renders, it swallows the exception


class DemoFailed(Exception):  # noqa: N818 - it is what the user reads
    """A step did not happen; the message says which and why."""


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python run.py demo", description="Blender geometry to moving Gaussians")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo", help="where results go (default: out/demo)")
    parser.add_argument("--model", choices=MODELS, default="dog")
    parser.add_argument("--animated", action="store_const", dest="model", const="fox", help="the same as --model fox")
    parser.add_argument("--prompt", help="what a still model is to do")
    parser.add_argument("--motion", type=float, help=f"how much it moves, up to {BOUNDS['motion'].maximum:g}")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another motion")
    parser.add_argument("--preset", choices=("draft", "preview", "final"), default="preview")
    parser.add_argument(
        "--width", type=int, default=384, help="of the preview in pixels; the height follows the subject"
    )
    options = parser.parse_args()
    model = MODELS[options.model]
    if model.action and not (options.prompt is options.motion is None):
        parser.error("an animated model keeps its own motion: --prompt and --motion are for still ones")
    changes = {name: value for name in ("prompt", "motion") if (value := getattr(options, name)) is not None}
    for number in (signal.SIGINT, signal.SIGTERM):  # which ends like Ctrl-C: the backend must not stay behind
        signal.signal(number, cancel)
    console = Console()
    try:
        out = options.out.resolve()
        report = demo(out, replace(model, **changes), options.preset, options.seed, options.width, console)
    except (DemoFailed, OSError, KeyboardInterrupt) as error:
        if cancelled.is_set():
            console.print("\nCancelled.")
            return 130
        console.print(f"\n[bold]The demo stopped:[/bold] {error}", highlight=False)
        if (options.out / LOG).exists():
            console.print(f"Blender's own messages are in {options.out / LOG}.", highlight=False)
        return 1
    if generated := report.get("generated"):
        for warning in generated["warnings"]:
            console.print(warning, highlight=False)
        console.print(
            f'\n"{generated["prompt"]}": motion {generated["motion_asked"]:g} asked,'
            f" {generated['motion_measured']:.2f} measured.",
            highlight=False,
        )
    console.print(
        f"{report['gaussians']} Gaussians, {report['frames']} frames, PSNR {report['psnr_mean']:.1f} dB on the views"
        f" that they were made from, {report['seconds_total']:.0f} s in all. Look at",
        highlight=False,
    )
    for name in RESULTS:
        console.print(f"  {options.out / name}", highlight=False)
    return 0


def cancel(number: int, frame: FrameType | None) -> None:
    """Answers Ctrl-C; while Cycles renders, only the next step does: it would print the exception, and break."""
    cancelled.set()
    if frame is None or not frame.f_globals["__name__"].startswith("cycles"):
        raise KeyboardInterrupt


def demo(out: Path, model: Model, preset: str, seed: int, width: int, console: Console) -> dict:
    """All steps in order; returns the report, which is written as well."""
    started = time.monotonic()
    clear(out)
    os.environ["BLENDER_USER_RESOURCES"] = str(out / "blender")  # the user's own Blender settings stay untouched
    os.environ["KINESPLAT_HOME"] = str(out / "backend")
    seconds: dict[str, float] = {}

    with quiet(console, out / LOG), steps(console, seconds) as step:
        with step("Starting Blender"):
            import bpy

            install_extension(bpy, out)
        with step("Opening the model"):
            subject = open_model(bpy, model)
        with step("Starting the backend"):
            call(bpy.ops.kinesplat.start_backend)
        try:
            with step("Rendering all sides"):
                uid = capture(bpy, subject, model, preset, seed)
            frames = None
            if model.prompt:
                with step("Inventing the motion") as show:
                    frames = read_frames(wait_for_result(bpy, uid, show))
                    write_generated(frames, out / "orbit")  # where the sources of animated models lie as well
                    uid = build(bpy, uid)
            with step("Constructing Gaussians") as show:
                shutil.copyfile(wait_for_result(bpy, uid, show), out / "clip.npz")
            if frames is None:
                with step("Rendering the source again"):
                    render_source(bpy, subject, out / "orbit" / "moving")
            with step("Importing"):
                splats = import_result(bpy, uid, loops=frames is None or frames.provenance["loop"])
        finally:
            with contextlib.suppress(DemoFailed):
                call(bpy.ops.kinesplat.stop_backend)
        clip = read_clip(out / "clip.npz")
        cameras = read_orbit_json(out / "orbit" / "moving")
        with step("Rendering the point cloud") as show:
            source = read_pictures(out / "orbit" / "moving", clip.frame_count)
            part = framing(source)
            moments = np.linspace(0, clip.frame_count - 1, (clip.frame_count - 1) * PREVIEW_STEPS + 1)
            views = [(moment, camera_between(cameras, moment)) for moment in moments]
            chosen = np.linspace(0, clip.frame_count - 1, SHEET_COLUMNS).round().astype(int)
            views += [(frame, about_z(UNSEEN_TURN) @ cameras.camera_to_world[frame]) for frame in chosen]
            pictures = render_point_cloud(bpy, splats, cameras, views, part, width, out / "render", show)
            pictures, unseen = pictures[: len(moments)], pictures[len(moments) :]
        with step("Writing the results"):
            call(bpy.ops.wm.save_as_mainfile, filepath=str(out / "demo.blend"), compress=True)
            write_video(out / "preview.mp4", pictures)
            rows = {"Gaussians": [pictures[frame * PREVIEW_STEPS] for frame in chosen], "from the side": unseen}
            if frames is None:
                rows = {"input": shown(source, chosen, part), **rows}
            else:
                still = read_pictures(out / "orbit" / "static", clip.frame_count)
                rows = {"input": shown(still, chosen, part), "generated": shown(source, chosen, part), **rows}
            heads = [f"frame {frame}" for frame in chosen]
            rows = [SheetRow(label, row) for label, row in rows.items()]
            sheet(clip.name, rows, heads, SHEET_WIDTH).save(out / "contact_sheet.png")
            psnr = psnr_per_frame(clip, out / "orbit" / "moving")
            report = {
                "seconds_total": round(time.monotonic() - started, 1),
                "seconds": {name: round(value, 1) for name, value in seconds.items()},
                "construction_seconds": clip.provenance["stage_seconds"],
                "gaussians": clip.count,
                "frames": clip.frame_count,
                "resolution": cameras.width,
                "psnr_mean": float(np.mean(psnr)),
                "psnr_per_frame": [round(value, 2) for value in psnr],
                "preset": preset,
                "model": model.file,
                "versions": {
                    **clip.provenance["versions"],
                    "kinesplat": __version__,
                    "blender": bpy.app.version_string,
                    "system": platform.platform(),
                },
            }
            if frames is not None:
                report["generated"] = generation_report(frames)
            (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    shutil.rmtree(out / "render", ignore_errors=True)
    return report


def clear(out: Path) -> None:
    """Make the folder, without what a former demo has left in it.

    Raises:
        DemoFailed: what lies there is not a demo's.
    """
    there = [name for name in (*RESULTS, *FOLDERS) if (out / name).exists()]
    if there and not (out / LOG).exists():
        raise DemoFailed(f"{out / there[0]} is not of a demo, and would be replaced. Choose another folder.")
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


def generation_report(frames: GeneratedFrames) -> dict:
    """What was asked of the diffusion model, and what came."""
    return {
        "prompt": frames.prompt,
        "seed": frames.seed,
        "motion_asked": frames.motion,
        "motion_measured": round(frames.motion_measured, 3),
        "models": frames.provenance["models"],
        "warnings": frames.provenance["warnings"],
    }


# --- in Blender ------------------------------------------------------------------------------------------------------


def install_extension(bpy, out: Path) -> None:
    """Build the archive and install it as a user would, then tell it where the backend is."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    with open(out / LOG, "ab") as log:
        build = [sys.executable, str(ROOT / "run.py"), "build", "--out", str(out / "blender")]
        if subprocess.call(build, stdout=log, stderr=log):
            raise DemoFailed("the extension archive could not be built.")
    archive = next((out / "blender").glob("kinesplat-*.zip"))
    call(bpy.ops.extensions.package_install_files, filepath=str(archive), repo="user_default", enable_on_install=True)
    for module, addon in bpy.context.preferences.addons.items():
        if module.endswith(".kinesplat"):
            addon.preferences.folder = str(ROOT)
            addon.preferences.python = sys.executable
            return
    raise DemoFailed("Blender did not enable the extension.")


def open_model(bpy, model: Model):
    """Import the model; where it is animated, choose its action and fit the scene's frame range. Returns its root."""
    scene = bpy.context.scene
    scene.render.fps = model.fps
    call(bpy.ops.import_scene.gltf, filepath=str(ROOT / "examples" / model.file))
    subject = next(obj for obj in scene.objects if obj.parent is None and obj.type in ("ARMATURE", "MESH"))
    subject.name = Path(model.file).stem.title()
    if model.action:
        action = next(action for action in bpy.data.actions if action.name.startswith(model.action))
        animation = subject.animation_data
        for track in animation.nla_tracks:
            track.mute = True
        animation.action = action
        if getattr(action, "slots", None):
            animation.action_slot = action.slots[0]
        scene.frame_start, scene.frame_end = (round(frame) for frame in action.frame_range)
    scene.frame_set(scene.frame_start)
    bpy.context.view_layer.objects.active = subject
    subject.select_set(True)
    return subject


def capture(bpy, subject, model: Model, preset: str, seed: int) -> str:
    """Press Generate, for frames to look at first where the motion is to be invented; returns the new job's uid."""
    settings = bpy.context.scene.kinesplat
    settings.source, settings.preset, settings.seed = subject, preset, seed
    if model.prompt:
        settings.prompt, settings.motion = model.prompt, model.motion
        settings.preview_frames, settings.candidates = True, 1
    call(bpy.ops.kinesplat.generate)
    return active_uid(bpy)


def build(bpy, uid: str) -> str:
    """Press Build This One; returns the new job's uid."""
    call(bpy.ops.kinesplat.build_job, uid=uid)
    return active_uid(bpy)


def active_uid(bpy) -> str:
    """The job that is selected in the panel."""
    status = bpy.context.window_manager.kinesplat
    return status.jobs[status.active_job].uid


def wait_for_result(bpy, uid: str, show: Callable[[float, str], None]) -> Path:
    """Follow the job until its result is here; returns the file."""
    tracker = extension_module("blender_addon.job_tracker")

    def on_change() -> None:
        job = next(job for job in bpy.context.window_manager.kinesplat.jobs if job.uid == uid)
        left = f", {time_text(job.seconds_left)} left" if job.seconds_left >= 0 else ""
        show(job.fraction, f"{job.stage}{left}")

    row = tracker.wait_for_job(uid, on_change=on_change)
    if row.state != "succeeded":
        raise DemoFailed(f"{row.message} {row.hint}".strip())
    return row.result


def import_result(bpy, uid: str, *, loops: bool):
    """Press Import, then Speed, then Loop or, where the end is not the beginning, Ping-Pong. Returns the new object."""
    before = set(bpy.data.objects)
    call(bpy.ops.kinesplat.import_result, uid=uid)
    splats = next(obj for obj in bpy.data.objects if obj not in before)
    bpy.context.view_layer.objects.active = splats
    call(bpy.ops.kinesplat.retime_speed, factor=0.5)
    call(bpy.ops.kinesplat.retime_repeat, repeat="LOOP" if loops else "PING_PONG")
    return splats


def render_source(bpy, subject, folder: Path) -> None:
    """The moving orbit once more, into an orbit folder of our own: what the result is compared with."""
    in_one_go = extension_module("blender_addon.capture_progress").in_one_go
    measure_steps = extension_module("blender_addon.clip_space").measure_steps
    render_orbit_steps = extension_module("blender_addon.orbit_render").render_orbit_steps
    contract = extension_module("blender_addon.contract.orbit")
    tracker = extension_module("blender_addon.job_tracker").tracker()
    settings, scene = bpy.context.scene.kinesplat, bpy.context.scene
    with tracker.http.held(2.0):  # see there: Blender's renders and other threads do not go together
        try:
            frame_range = scene.frame_start, scene.frame_end
            space = in_one_go(measure_steps(bpy.context, subject, frame_range, frames=settings.frames))
            orbit = contract.Orbit(frames=settings.frames, elevation=settings.elevation)
            how = {"resolution": settings.resolution, "samples": settings.samples}
            in_one_go(render_orbit_steps(space, orbit, folder, moving=True, **how))
        except extension_module("blender_addon.subject").CaptureError as error:
            raise DemoFailed(str(error)) from error


def render_point_cloud(
    bpy,
    splats,
    cameras: Cameras,
    views: list[tuple[float, np.ndarray]],
    part: tuple[float, float],
    width: int,
    folder: Path,
    show: Callable[[float, str], None],
) -> list[np.ndarray]:
    """The imported object at moments (in stored frames) through cameras of clip space [4, 4], by Cycles.

    The lens is that of the orbit's `cameras`. Of each picture only the middle `part` (of the width, of the height) is
    rendered, `width` pixels wide.
    """
    from mathutils import Matrix  # comes with bpy

    folder.mkdir(parents=True)
    scene = bpy.context.scene
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    focal = cameras.Ks[0, 0, 0] / cameras.width
    camera.data.sensor_fit, camera.data.angle = "HORIZONTAL", 2 * np.arctan(0.5 * part[0] / focal)
    scene.render.engine = "CYCLES"
    scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", 1, False
    scene.cycles.use_adaptive_sampling = False
    scene.render.resolution_x = 2 * (width // 2)  # even, as H.264 wants it
    scene.render.resolution_y = 2 * round(width * part[1] / part[0] / 2)
    scene.render.film_transparent = True
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGBA"
    scene.render.use_persistent_data = True
    scene.view_settings.view_transform = "Standard"

    retime = extension_module("blender_addon.retime")
    timing = retime.timing(splats)
    from_clip_space = np.array(splats.matrix_world)
    scale = np.linalg.norm(from_clip_space[:3, 0])
    last = len(cameras.times) - 1
    pictures = []
    for index, (moment, view) in enumerate(views):
        frame = timing.first + (timing.last - timing.first) * moment / last
        scene.frame_set(int(frame), subframe=frame - int(frame))
        matrix = from_clip_space @ view
        matrix[:3, :3] /= scale
        camera.matrix_world = Matrix(matrix.tolist())
        scene.render.filepath = str(folder / frame_name(index))
        call(bpy.ops.render.render, write_still=True)
        pictures.append(over_background(read_rgba(folder / frame_name(index))))
        show((index + 1) / len(views), f"{index + 1} of {len(views)}")
    return pictures


def camera_between(cameras: Cameras, moment: float) -> np.ndarray:  # [4, 4]
    """The camera of a stored frame, or halfway round between two: their rotation about the vertical axis."""
    before = min(int(moment), len(cameras.times) - 2)
    a, b = cameras.camera_to_world[before], cameras.camera_to_world[before + 1]
    turn = b[:3, :3] @ a[:3, :3].T
    return about_z(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])) * (moment - before)) @ a


def about_z(degrees: float) -> np.ndarray:  # [4, 4]
    """A turn about the vertical axis."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.eye(4)
    rotation[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return rotation


def extension_module(name: str):
    """A module of the installed extension."""
    package = next(module for module in sys.modules if module.startswith("bl_ext.") and module.endswith(".kinesplat"))
    return sys.modules[f"{package}.{name}"]


def call(operator: Callable, **arguments) -> None:
    """Call an operator; DemoFailed with Blender's own words where it does not finish."""
    try:
        result = operator(**arguments)
    except RuntimeError as error:
        said = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Location:")]
        raise DemoFailed(said[-1].removeprefix("Error: ")) from error
    if "FINISHED" not in result:
        raise DemoFailed(f"{operator.idname_py()} did not finish.")


# --- pictures --------------------------------------------------------------------------------------------------------


def read_pictures(folder: Path, count: int) -> list[np.ndarray]:
    """The pictures of an orbit folder."""
    return [read_rgba(folder / frame_name(index)) for index in range(count)]


def read_rgba(path: Path) -> np.ndarray:  # [H, W, 4] float32, straight alpha
    """A picture that was just rendered."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"), np.float32) / 255


def over_background(rgba: np.ndarray) -> np.ndarray:  # [H, W, 3] uint8
    """A picture over plain grey."""
    rgb = rgba[..., :3] * rgba[..., 3:] + BACKGROUND * (1 - rgba[..., 3:])
    return (rgb * 255 + 0.5).astype(np.uint8)


def framing(source: list[np.ndarray]) -> tuple[float, float]:
    """How much of the width and of the height, about the middle, the subject needs over all pictures."""
    seen = np.max([picture[..., 3] for picture in source], axis=0) > 0.02
    parts = []
    for axis in (0, 1):
        size = seen.shape[1 - axis]
        reach = np.abs(np.flatnonzero(seen.any(axis=axis)) + 0.5 - size / 2).max() + 0.5
        parts.append(min(2 * reach * (1 + MARGIN) / size, 1.0))
    return parts[0], parts[1]


def cut_out(picture: np.ndarray, part: tuple[float, float]) -> np.ndarray:
    """The middle part of a picture."""
    height, width = picture.shape[:2]
    x, y = (round(size * (1 - share) / 2) for size, share in ((width, part[0]), (height, part[1])))
    return picture[y : height - y, x : width - x]


def shown(pictures: list[np.ndarray], chosen: np.ndarray, part: tuple[float, float]) -> list[np.ndarray]:
    """The chosen ones as they are laid beside the point cloud's."""
    return [over_background(cut_out(pictures[index], part)) for index in chosen]


def write_video(path: Path, pictures: list[np.ndarray]) -> None:
    """H.264; the last picture, which equals the first, is left out so that the loop closes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=PREVIEW_FPS, options={"crf": "18"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures[:-1] * PREVIEW_ROUNDS:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def psnr_per_frame(clip: Clip, folder: Path) -> list[float]:
    """How well the clip shows its own input views, over white."""
    from backend.evaluation.metrics import psnr
    from backend.pictures import over_white
    from backend.splatting.observations import read_orbit_folder
    from backend.splatting.render import render_clip

    truth = read_orbit_folder(folder)
    return psnr(over_white(render_clip(clip, truth.cameras)), over_white(truth.images)).tolist()


# --- what is shown ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def steps(console: Console, seconds: dict[str, float]) -> Iterator[Callable]:
    """Progress bars, one per step: yields `step(name)`, a context that yields `show(fraction, text)`."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}"),
    )
    # No thread that redraws by itself: while Blender renders, no other Python may run (see `http_thread.held`).
    with Progress(*columns, console=console, transient=not console.is_terminal, auto_refresh=False) as bars:

        @contextlib.contextmanager
        def step(name: str) -> Iterator[Callable[[float, str], None]]:
            task = bars.add_task(name, total=1.0, said="")
            bars.refresh()
            started = time.monotonic()

            def show(fraction: float, said: str) -> None:
                if cancelled.is_set():
                    raise KeyboardInterrupt
                bars.update(task, completed=fraction, said=said, refresh=True)

            yield show
            seconds[name] = time.monotonic() - started
            show(1.0, f"{seconds[name]:.1f} s")
            if not console.is_terminal:  # where bars cannot be drawn, say at least what is done
                console.print(f"{name}: {seconds[name]:.1f} s", highlight=False)

        yield step


@contextlib.contextmanager
def quiet(console: Console, log: Path) -> Iterator[None]:
    """Send what Blender and its add-ons print to a file; what goes to `console` still reaches the user."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(log, "ab") as file, os.fdopen(os.dup(kept), "w", encoding="utf-8") as shown:
        os.dup2(file.fileno(), 1)
        console.file = shown
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
            console.file = sys.stdout


if __name__ == "__main__":
    sys.exit(main())
