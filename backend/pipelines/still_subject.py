# SPDX-License-Identifier: GPL-3.0-or-later
"""The still subject of a text or an image, for which nobody has rendered an orbit, seen from all sides."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.guidance.classifier_free import guide
from backend.models.diffusion import denoise
from backend.models.inflation import inflated_views
from backend.models.kinesplat_small import KinesplatSmall, load
from backend.models.precision import matrix_precision
from backend.models.volume import VOXELS, render_volume
from backend.pipelines.far_side import far_side
from backend.pipelines.known_shapes import alike, known_shape
from backend.pipelines.orbit_pictures import as_pictures, as_tensor, preview_of, scaled
from backend.pipelines.solids import RAYS, solid_views
from backend.pipelines.subject_image import framed
from backend.progress import Run, UserError
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.requests import BOUNDS

PREVIEW_PIXELS = 48
FINER = 2  # subpixels to a pixel's side, so that outlines are smooth
STEP = 1.0  # subpixels, of the rays: longer ones step over lines
DISTANCE = 2.0  # of the first camera
LEAST_COVERAGE = 0.004  # of the picture


@torch.no_grad()
def generate_static(
    cameras: Cameras,
    prompt: str,
    image: np.ndarray | None = None,
    *,
    seed: int = 0,
    steps: int = int(BOUNDS["steps"].default),
    guidance: float = 1.0,
    sampler: str = "ddim",
    run: Run | None = None,
    model: KinesplatSmall | None = None,
) -> np.ndarray:
    """The static orbit of a text, of an image of the first view, or of both.

    The model's static network denoises a volume, which is seen from all sides. Where the weights have none, what is
    seen is a first guess: the image inflated, or the known subject that the text names.

    image: [H, W, 4] uint8, straight alpha or on a plain background: the subject as the first camera sees it.
    `guidance` is the w1 of Eq. 3. Returns [T, H, W, 4] uint8, straight alpha, H and W as `cameras` say.

    Raises:
        UserError: the image cannot be used, the text names nothing that is known, or nothing visible came out.
    """
    model = model or load()
    given = None if image is None else as_tensor(framed(image)[None])[0]  # [1, 4, H, W]
    if model.static is not None:
        frames = denoised(model, cameras, prompt, given, seed, steps, guidance, sampler, run)
    else:
        frames = known(model, cameras, prompt, seed) if given is None else shaped(model, given, cameras, prompt, run)
        if run is not None:
            run.report(1, 1, preview=lambda: preview_of(frames))
    if float(frames[:, :, 3].mean()) < LEAST_COVERAGE:
        hint = (
            "Try another seed, or words for the things it knows: animals, people, fish."
            if image is None
            else "Choose an image of a subject that is not as thin as a line."
        )
        raise UserError("nothing_made", "The model made nothing that could be seen of this.", hint)
    return as_pictures(frames)


def known(model: KinesplatSmall, cameras: Cameras, prompt: str, seed: int) -> Tensor:  # [1, T, 4, H, W]
    """The known subject that a text names. Raises UserError where it names none."""
    subject = model.memory.nearest(prompt, seed)
    if subject is None:
        near = sorted({model.memory.subjects[number] for number in alike(model, prompt)})
        if near:
            hint = f"It knows what is built alike: {', '.join(near)}. Or start from an image or an object of it."
        else:
            examples = ", ".join(sorted(set(model.memory.subjects))[::8])
            hint = f"It knows English words, for example: {examples}. Or start from an image or an object."
        raise UserError("unknown_subject", "The prompt names no subject that the model knows.", hint)
    return _averaged(model.memory.mesh(subject).pictures(scaled(cameras, FINER)))


def shaped(model: KinesplatSmall, given: Tensor, cameras: Cameras, prompt: str, run: Run | None) -> Tensor:
    """A picture [1, 4, H, W] with what is behind it, in its own light: the outline that it has, however faint it is.

    What the prompt names gives it its shape, where it is known; else it is inflated. Returns [1, T, 4, H, W].
    """
    finer = scaled(cameras, FINER)
    picture = _scaled_picture(given, finer.width)
    half = finer.width / 2 / finer.Ks[0, 0, 0]
    alpha = _scaled_picture(given, RAYS)[..., 3]
    report = (lambda share: None) if run is None else (lambda share: run.report(round(100 * share), 100))
    shape = known_shape(alpha[None], model, prompt, half, report)
    far = far_side(picture, mirrored=shape is not None and shape.sideways)
    if shape is None:
        fov = 2 * np.degrees(np.arctan(half))
        views = inflated_views(picture[None], finer.camera_to_world, DISTANCE, fov, STEP, far[None])[0]
    else:
        views = solid_views(picture, far, shape.solid(0), finer)
    if run is not None and shape is not None:
        run.note(f"Its shape is that of a known subject, {shape.subject}, bent to the outline of the picture.")
    elif run is not None and alike(model, prompt):
        run.note("No shape that the model knows by that name comes near the outline of the picture: it is inflated.")
    return _averaged(views)


def _scaled_picture(given: Tensor, size: int) -> np.ndarray:  # [1, 4, H, W] -> [size, size, 4]
    picture = functional.interpolate(given, (size, size), mode="bilinear", antialias=True)
    picture = picture / picture[:, 3].max().clamp_min(1e-3)  # a ghost, or a line that fills no whole pixel
    return picture[0].movedim(0, -1).contiguous().numpy()


def _averaged(pictures: np.ndarray) -> Tensor:  # [T, n H, n W, 4] -> [1, T, 4, H, W]
    return functional.avg_pool2d(torch.from_numpy(pictures).movedim(-1, 1), FINER)[None]


def denoised(
    model: KinesplatSmall,
    cameras: Cameras,
    prompt: str,
    given: Tensor | None,
    seed: int,
    steps: int,
    guidance: float,
    sampler: str,
    run: Run | None,
) -> Tensor:  # [1, T, 4, H, W]
    """A volume that the static network denoises, of a text, of a picture [1, 4, H, W] of the first view, or of both."""
    size = (model.resolution, model.resolution)
    blank = torch.zeros(1, 4, *size)
    first = blank if given is None else functional.interpolate(given, size, mode="area")
    shown = torch.tensor([float(given is not None), 0.0], device=model.device)
    condition = (first.to(model.device).expand(2, -1, -1, -1), shown)
    tokens = model.vocabulary.batch([prompt, ""]).to(model.device)
    poses = torch.from_numpy(cameras.camera_to_world)
    focal = torch.from_numpy(2 * cameras.Ks[:, 0, 0] / cameras.width)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with matrix_precision(model.device):
            out = model.static(latents.expand(2, -1, -1, -1, -1), *condition, timestep.expand(2), tokens).float()
        return guide(out[:1], out[1:], out[:1], guidance, 0.0)

    def look(latents: Tensor, size: int, views: slice = slice(None)) -> Tensor:
        volume = (latents[0] / 2 + 0.5).clamp(0, 1)
        return render_volume(volume, poses[views], focal[views], size)[None]

    def preview(latents: Tensor) -> np.ndarray:
        return preview_of(look(latents, PREVIEW_PIXELS, slice(None, None, max(len(poses) // 8, 1))))

    shape = (1, VOXELS, VOXELS, VOXELS, 4)
    clean = denoise(shape, predict, sampler, steps, seed, run, preview, model.device)
    return look(clean, cameras.width)
