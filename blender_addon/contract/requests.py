# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests: what the add-on asks of the backend. Plain JSON plus blobs named by their sha256.

The bounds below are the only place where limits stand: the panel's properties and the server's schema both use them.

    {"kind": "orbit", "name": "Fox", "pipeline": "orbit",                  # the motion exists: it is constructed
     "settings": {"seed": 0, "preset": "preview", "gaussians": 5000, "fps": 24.0,
                  "sh_degree": 0,                                           # of colors that depend on the view
                  "color_space": "srgb" | "linear",                        # in which Gaussians are fitted and blended
                  "motion_model": "bases" | "hexplane"},                   # what their motion is made of
     "inputs": {"moving":  {"frames": [sha256, ...], "cameras": {...}},   # cameras: orbit.Cameras.to_json()
                "static":  {"frames": [sha256, ...], "cameras": {...}},   # or null
                "surface": sha256,                                         # surface samples (.npz), or null
                "travel": [[x, y, z], ...],                                # see orbit_request; or null
                "to_object": [[...] * 4]}}                                 # clip space -> object space

    {"kind": "object" | "text" | "image", "name": "Fox", "pipeline": "diffusion4d",   # the motion is generated first
     "settings": {"seed", "preset", "gaussians", "fps", "sh_degree", "color_space", "motion_model",   # as above
                  "prompt": "a fox runs", "motion": 3.0,                   # motion magnitude, Diffusion4D Eq. 1
                  "guidance_motion": 1.0, "guidance_static": 0.25,         # w1 and w2 of Diffusion4D Eq. 3
                  "loop": "auto" | "yes" | "no",                           # it ends as it began; auto: by the prompt
                  "known_motions": true,                                   # may take the place of invented ones
                  "steps": 12, "frames": 24,
                  "model": "kinesplat-small" | "published",                # the latter needs weights and a GPU
                  "result": "clip" | "frames"},                           # the job ends with: clip.py, frames.py
     "inputs": {"static":    {"frames": [...], "cameras": {...}},          # kind object; else null
                "image":     sha256,                                       # PNG or JPEG, kind image; else null
                "surface":   sha256,                                       # or null
                "generated": sha256,           # frames of an earlier job: they are constructed, none generated; or null
                "to_object": [[...] * 4]}}

    {"kind": "video", "name": "Fox", "pipeline": "4diffusion",           # a view from the front is all that there is
     "settings": {"seed", "preset", "gaussians", "sh_degree", "color_space", "motion_model",   # as above
                  "fps": 24.0,                                            # or null: as fast as the video plays
                  "prompt": "a fox runs",
                  "model": "kinesplat-small" | "published",               # the latter needs weights and a GPU
                  "representation": "gaussians" | "nerf",                 # that is fitted; the paper's is "nerf"
                  "frames": 8,                                            # taken evenly from the range
                  "cutout": "auto" | "alpha" | "model" | "background"},   # how the subject is told from its background
     "inputs": {"video":    sha256,                                       # MP4, MOV, WebM, MKV or GIF; or null
                "pictures": [sha256, ...],                                # instead: an image sequence; else null
                "pictures_fps": 24.0,                                     # of `pictures`; else null
                "start": 0.0, "end": 2.5,                                 # seconds from the first frame on; end or null
                "to_object": [[...] * 4]}}
"""

import hashlib
import os
from dataclasses import dataclass

from .clip import COLOR_SPACES as COLOR_SPACES
from .orbit import FURTHER_VIEWS
from .video import LIMITS as VIDEO_LIMITS

API_VERSION = 1
KINDS = ("orbit", "object", "text", "image", "video")
GENERATION_KINDS = ("object", "text", "image")
PIPELINES = {  # by kind
    "orbit": "orbit",
    "object": "diffusion4d",
    "text": "diffusion4d",
    "image": "diffusion4d",
    "video": "4diffusion",
}
CUTOUTS = ("auto", "alpha", "model", "background")
PRESETS = ("draft", "preview", "final")
RESULTS = ("clip", "frames")
SMALL, PUBLISHED = MODELS = ("kinesplat-small", "published")  # the one that comes along; that of the kind's paper
REPRESENTATIONS = ("gaussians", "nerf")  # what is fitted to a video; Gaussians are faster, and a departure
MOTION_MODELS = ("bases", "hexplane")
LOOPS = ("auto", "yes", "no")
JOB_STATES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
JOB_ID = "[0-9a-f]{16}"  # as a regular expression; files are named after it
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
    "fps": Bound(24.0, 0.01, 240.0),  # 8 frames of a long video play slowly
    "sh_degree": Bound(0, 0, 2),
    "motion": Bound(3.0, 0.0, 15.0),
    "guidance_motion": Bound(1.0, 0.0, 10.0),
    "guidance_static": Bound(0.25, 0.0, 2.0),
    "steps": Bound(12, 4, 100),
    "video_frames": Bound(8, 8, VIDEO_LIMITS.pictures),
    "video_seconds": Bound(0.0, 0.0, VIDEO_LIMITS.seconds),  # where the range of a video begins and ends
}
GAUSSIANS_BY_PRESET = {"draft": 2_000, "preview": 5_000, "final": 20_000}
RESOLUTION_BY_PRESET = {"draft": 128, "preview": 128, "final": 256}  # pixels; a fine result needs what it is fitted to
MAX_NAME_LENGTH = 200
MAX_PROMPT_LENGTH = 500  # letters
GENERATED_FRAMES = 24  # of a generated orbit, and of the static orbit that it starts from
STILL_FRAMES = GENERATED_FRAMES + FURTHER_VIEWS  # of a static orbit with further views


def construction_settings(
    *,
    preset: str = "preview",
    gaussians: int | None = None,
    seed: int = 0,
    fps: float = 24.0,
    sh_degree: int = 0,
    color_space: str = "srgb",
    motion_model: str = "bases",
) -> dict:
    """The settings that every kind of request has.

    Args:
        preset: how much work goes into the construction.
        gaussians: follows the preset where it is None.
        seed: of the noise that everything starts from.
        fps: at which the stored frames play.
        sh_degree: of the spherical harmonics; above 0, colors may depend on the view.
        color_space: "srgb" or "linear", in which the Gaussians are fitted and to be blended.
        motion_model: one of MOTION_MODELS: blended rigid movements, or a deformation field.
    """
    return {
        "seed": seed,
        "preset": preset,
        "gaussians": GAUSSIANS_BY_PRESET[preset] if gaussians is None else gaussians,
        "fps": fps,
        "sh_degree": sh_degree,
        "color_space": color_space,
        "motion_model": motion_model,
    }


def orbit_request(
    name: str,
    moving: dict,
    static: dict | None,
    surface: str | None,
    to_object: list[list[float]],
    travel: list[list[float]] | None = None,
    **construction,
) -> dict:
    """A request of kind `orbit`: the moving orbit exists already, so diffusion is skipped.

    `moving` and `static` are {"frames": [sha256, ...], "cameras": Cameras.to_json()}; `construction` as
    `construction_settings` takes it. `travel`: where pictures and surface go along with a subject that travels, how
    far they have gone at each of the moving orbit's times, from [0, 0, 0] on; clip space. The clip has it added.
    """
    return {
        "kind": "orbit",
        "name": name[:MAX_NAME_LENGTH],
        "pipeline": PIPELINES["orbit"],
        "settings": construction_settings(**construction),
        "inputs": {"moving": moving, "static": static, "surface": surface, "travel": travel, "to_object": to_object},
    }


def generation_request(
    kind: str,
    name: str,
    to_object: list[list[float]],
    *,
    prompt: str = "",
    static: dict | None = None,
    image: str | None = None,
    surface: str | None = None,
    motion: float = BOUNDS["motion"].default,
    guidance_motion: float = BOUNDS["guidance_motion"].default,
    guidance_static: float = BOUNDS["guidance_static"].default,
    loop: str = LOOPS[0],
    known_motions: bool = True,
    steps: int = BOUNDS["steps"].default,
    model: str = SMALL,
    result: str = "clip",
    **construction,
) -> dict:
    """A request of kind `object`, `text` or `image`: the motion is generated, then constructed.

    Args:
        kind: `object` needs `static`, `text` needs `prompt`, `image` needs `image`; a prompt helps all of them.
        name: of the job and of its clip.
        to_object: 4x4, clip space -> object space.
        prompt: what the subject is and does.
        static: {"frames": [sha256, ...], "cameras": Cameras.to_json()}, GENERATED_FRAMES views of one moment,
            or STILL_FRAMES with those of `orbit.further_orbits` after them.
        image: sha256 of a picture of the subject.
        surface: sha256 of surface samples of the object.
        motion: motion magnitude, how much the subject is to move; 0 is not at all.
        guidance_motion: w1, how closely the conditions are followed.
        guidance_static: w2, how closely the static orbit is kept.
        loop: one of LOOPS: whether the motion is to end as it began. The published size knows only "auto", which is no.
        known_motions: those in the small model's memory, and elementary ones, may take the place of what it invents.
        steps: denoising steps.
        model: one of MODELS. The published size was set to steps 50, guidance_motion 7 and guidance_static 0.5.
        result: "frames" ends with the generated frames, to be looked at before `build_request` goes on from them.
        construction: as `construction_settings` takes it.
    """
    return {
        "kind": kind,
        "name": name[:MAX_NAME_LENGTH],
        "pipeline": PIPELINES[kind],
        "settings": {
            **construction_settings(**construction),
            "prompt": prompt,
            "motion": motion,
            "guidance_motion": guidance_motion,
            "guidance_static": guidance_static,
            "loop": loop,
            "known_motions": known_motions,
            "steps": steps,
            "frames": GENERATED_FRAMES,
            "model": model,
            "result": result,
        },
        "inputs": {
            "static": static,
            "image": image,
            "surface": surface,
            "generated": None,
            "to_object": to_object,
        },
    }


def video_request(
    name: str,
    to_object: list[list[float]],
    *,
    video: str | None = None,
    pictures: list[str] | None = None,
    pictures_fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    frames: int = int(BOUNDS["video_frames"].default),
    cutout: str = "auto",
    prompt: str = "",
    model: str = SMALL,
    representation: str = REPRESENTATIONS[0],
    fps: float | None = None,
    **construction,
) -> dict:
    """A request of kind `video`: what a camera has seen from one side becomes a clip that is seen from all.

    Args:
        name: of the job and of its clip.
        to_object: 4x4, clip space -> object space.
        video: sha256 of a video file; or
        pictures: sha256 of the pictures of an image sequence, in order, which follow each other at
        pictures_fps: frames per second.
        start: of the range, in seconds from the first frame on.
        end: of the range; None: the last frame.
        frames: how many are taken, evenly over the range.
        cutout: one of CUTOUTS: how the subject is told from its background.
        prompt: what the subject is and does.
        model: one of MODELS; the published one is 4DM.
        representation: one of REPRESENTATIONS, which the video model's judgement is applied to.
        fps: at which the stored frames play; None: as fast as the video.
        construction: as `construction_settings` takes it.
    """
    return {
        "kind": "video",
        "name": name[:MAX_NAME_LENGTH],
        "pipeline": PIPELINES["video"],
        "settings": {
            **construction_settings(**construction),
            "fps": fps,
            "prompt": prompt,
            "model": model,
            "representation": representation,
            "frames": frames,
            "cutout": cutout,
        },
        "inputs": {
            "video": video,
            "pictures": pictures,
            "pictures_fps": pictures_fps,
            "start": start,
            "end": end,
            "to_object": to_object,
        },
    }


def build_request(request: dict, generated: str) -> dict:
    """The request that constructs the clip from frames which `request`, one for frames, has ended with.

    `generated` is the sha256 of their file.
    """
    return {
        **request,
        "settings": {**request["settings"], "result": "clip"},
        "inputs": {**request["inputs"], "generated": generated},
    }


def request_result(request: dict) -> str:
    """What a job of this request ends with: "clip" (`clip.py`) or "frames" (`frames.py`)."""
    return request["settings"].get("result", "clip")


def request_blobs(request: dict) -> list[str]:
    """The sha256 of every blob that a request names, each once, in order."""
    inputs = request["inputs"]
    orbits = [inputs.get("moving"), inputs.get("static")]
    names = [sha256 for orbit in orbits if orbit for sha256 in orbit["frames"]]
    names += inputs.get("pictures") or []
    names += [inputs[name] for name in ("image", "surface", "generated", "video") if inputs.get(name)]
    return list(dict.fromkeys(names))


def file_sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file's content, as 64 lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
