# SPDX-License-Identifier: GPL-3.0-or-later
"""A generation without the service: the same request that the add-on sends, with files in place of blobs."""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np

from backend.commands.orbit_folders import write_orbit, write_picture
from backend.data.object_capture import CapturedObject
from backend.evaluation.sheets import SheetRow, on_white, sheet
from backend.options import one_line, video_inputs
from backend.pipelines import diffusion4d, fourdiffusion
from backend.pipelines.fourdiffusion import Video
from backend.pipelines.multi_view_video import MultiViewVideo
from backend.progress import Run
from backend.splatting.rasterize import warm_up
from backend.versions import program_key
from blender_addon.contract.clip import Clip, read_clip
from blender_addon.contract.frames import GeneratedFrames, read_frames
from blender_addon.contract.orbit import frame_name, read_orbit_json
from blender_addon.contract.requests import file_sha256, generation_request, video_request


def generate_files(
    folder: Path,
    run: Run,
    *,
    name: str,
    prompt: str,
    image: Path | None = None,
    captured: CapturedObject | None = None,
    published: dict | None = None,
    **settings,
) -> tuple[GeneratedFrames, Clip | None]:
    """Do one generation; `settings` are those of `requests.generation_request`.

    published: options of `diffusion4d_published.generate`;
    image: a picture of the subject; captured: the subject itself; neither: text alone. What was generated stays in
    `folder`, so that the same call goes on from there, also with another preset or after `result="frames"`.

    Raises:
        UserError: the inputs cannot be used, or the model cannot be loaded.
        BadFileError: an orbit cannot be read.
        JobCancelled: by `run`.
    """
    prompt = one_line(prompt)
    kind = "object" if captured else "image" if image else "text"
    files: dict[str, Path] = {}

    blob = partial(_noted, files)
    inputs = {"to_object": np.eye(4).tolist()}
    if captured:
        cameras = read_orbit_json(captured.static)
        frames = [blob(captured.static / frame_name(k)) for k in range(len(cameras.times))]
        inputs = {"to_object": captured.to_object, "static": {"frames": frames, "cameras": cameras.to_json()}}
        if captured.surface:
            inputs["surface"] = blob(captured.surface)
    elif image:
        inputs["image"] = blob(image)
    request = generation_request(kind, name, prompt=prompt, **inputs, **settings)
    published = published or {}
    run.folder = folder / _key(request, published)
    run.folder.mkdir(parents=True, exist_ok=True)
    result = diffusion4d.run_request(request, files.__getitem__, run, **published)
    clip = read_clip(result) if request["settings"]["result"] == "clip" else None
    return read_frames(run.folder / diffusion4d.FRAMES_NAME), clip


def generate_video_files(
    folder: Path,
    run: Run,
    source: Path,
    *,
    name: str,
    prompt: str = "",
    views_alone: bool = False,
    weights: Path | None = None,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    **settings,
) -> tuple[Video, MultiViewVideo] | Clip:
    """The clip of a video file or a folder of pictures, or the four views that it begins with alone.

    weights: folder of all published weights; start, end, fps: see `options.video_inputs`; `settings` are those of
    `requests.video_request`. What was made stays in `folder`, so that the same call goes on from there.

    Raises:
        UserError: the video cannot be used, or weights are missing.
        JobCancelled: by `run`.
    """
    files: dict[str, Path] = {}

    blob = partial(_noted, files)
    inputs = video_inputs(source, start, end, fps, blob)
    request = video_request(name, np.eye(4).tolist(), prompt=one_line(prompt), **inputs, **settings)
    decides = ("seed", "prompt", "frames", "cutout", "model", "representation", "preset")
    run.folder = folder / _digest([request["inputs"], {name: request["settings"][name] for name in decides}])
    run.folder.mkdir(parents=True, exist_ok=True)
    warm_up(run.say)
    if views_alone:
        return fourdiffusion.views_of_request(request, files.__getitem__, run, weights=weights)
    return read_clip(fourdiffusion.run_request(request, files.__getitem__, run, weights=weights))


def _noted(files: dict[str, Path], path: Path) -> str:
    """The sha256 by which a request names a file, noted in `files`."""
    sha256 = file_sha256(path)
    files[sha256] = path
    return sha256


def _key(request: dict, published: dict) -> str:
    """Names all that the frames of a request depend on."""
    decides = (
        "seed",
        "prompt",
        "motion",
        "guidance_motion",
        "guidance_static",
        "loop",
        "known_motions",
        "steps",
        "model",
    )
    parts = [request["kind"], request["inputs"], {name: request["settings"][name] for name in decides}]
    parts += [{name: str(value) for name, value in published.items() if name != "compiled"}]
    return _digest(parts)


def _digest(parts: list) -> str:
    """Of all that decides a result, with the program that makes it: what another has left half done is no use."""
    return hashlib.sha256(json.dumps([program_key(), *parts], sort_keys=True).encode()).hexdigest()[:12]


def write_views(video: Video, views: MultiViewVideo, out: Path, title: str) -> None:
    """Video and views as a contact sheet where `out` is a .png, else as orbit folders `out`/view_0 ... and `out`/views.

    The latter holds all views together, as `construct --orbit` takes them; alpha is the mask.
    """
    if out.suffix.lower() == ".png":
        seen = (video.frames[:, :3] + 1 - video.frames[:, 3:]).clamp(0, 1).movedim(1, -1)
        rows = [SheetRow("video", (seen * 255).round().byte().numpy())]
        rows += [SheetRow(f"view {90 * index}", on_white(one)) for index, one in enumerate(views.pictures)]
        write_picture(sheet(title, rows), out)
        return
    for index, (pictures, cameras) in enumerate(zip(views.pictures, views.cameras, strict=True)):
        write_orbit(out / f"view_{index}", pictures, cameras)
    write_orbit(out / "views", *views.together())
