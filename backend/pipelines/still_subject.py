# SPDX-License-Identifier: GPL-3.0-or-later
"""The still subject of a text or an image, for which nobody has rendered an orbit: a volume, seen from all sides."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.guidance.classifier_free import guide
from backend.models.diffusion import denoise
from backend.models.first_guess import inflate
from backend.models.kinesplat_small import KinesplatSmall, load
from backend.models.precision import matrix_precision
from backend.models.volume import VOXELS, render_volume
from backend.pipelines.orbit_pictures import as_pictures, as_tensor, preview_of
from backend.pipelines.subject_image import framed
from backend.progress import Run, UserError
from blender_addon.contract.orbit import Cameras
from blender_addon.contract.requests import BOUNDS

PREVIEW_PIXELS = 48
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
    """The static orbit of a text, of an image of the first view, or of both: a volume, seen from all sides.

    The volume is denoised by the model's static network. Where the weights have none it is a first guess: the image
    inflated, or the known subject that the text names.

    image: [H, W, 4] uint8, straight alpha or on a plain background: the subject as the first camera sees it.
    `guidance` is the w1 of Eq. 3. Returns [T, H, W, 4] uint8, straight alpha, H and W as `cameras` say.

    Raises:
        UserError: the image cannot be used, the text names nothing that is known, or nothing visible came out.
    """
    model = model or load()
    first = None
    if image is not None:
        cut = as_tensor(framed(image)[None], model.device)[0]
        first = functional.interpolate(cut, (model.resolution,) * 2, mode="area")
    poses = torch.from_numpy(cameras.camera_to_world)
    focal = torch.from_numpy(2 * cameras.Ks[:, 0, 0] / cameras.width)

    def look(volume: Tensor, size: int, views: slice = slice(None)) -> Tensor:
        return render_volume(volume, poses[views], focal[views], size)[None]

    def preview(volume: Tensor) -> np.ndarray:
        return preview_of(look(volume, PREVIEW_PIXELS, slice(None, None, max(len(poses) // 8, 1))))

    if model.static is None:
        volume = first_guess(model, prompt, first, seed)
        if run is not None:
            run.report(1, 1, preview=lambda: preview(volume))
    else:
        volume = denoised_volume(model, prompt, first, seed, steps, guidance, sampler, run, preview)
    frames = look(volume, cameras.width)
    if float(frames[:, :, 3].mean()) < LEAST_COVERAGE:
        hint = (
            "Try another seed, or words for the things it knows: animals, people, fish."
            if image is None
            else "Choose an image of a subject that is not as thin as a line."
        )
        raise UserError("nothing_made", "The model made nothing that could be seen of this.", hint)
    return as_pictures(frames)


def first_guess(model: KinesplatSmall, prompt: str, first: Tensor | None, seed: int) -> Tensor:  # [N, N, N, 4]
    """A still subject without a network: the first view [1, 4, H, W] inflated, or the known subject of the text."""
    if first is not None:
        return inflate(first[0].cpu()).to(model.device)
    subject = model.memory.nearest(prompt, seed)
    if subject is None:
        known = ", ".join(sorted(set(model.memory.subjects))[::8])
        hint = f"It knows, for example: {known}. Or start from an image or an object."
        raise UserError("unknown_subject", "The prompt names no subject that the model knows.", hint)
    return model.memory.volume(subject).to(model.device)


def denoised_volume(
    model: KinesplatSmall,
    prompt: str,
    first: Tensor | None,
    seed: int,
    steps: int,
    guidance: float,
    sampler: str,
    run: Run | None,
    preview: Callable[[Tensor], np.ndarray],
) -> Tensor:  # [N, N, N, 4]
    """A still subject by the static network, of a text, of the first view [1, 4, H, W], or of both."""
    shown = float(first is not None)
    blank = torch.zeros(1, 4, model.resolution, model.resolution, device=model.device)
    given = ((blank if first is None else first).expand(2, -1, -1, -1), torch.tensor([shown, 0.0], device=model.device))
    tokens = model.vocabulary.batch([prompt, ""]).to(model.device)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with matrix_precision(model.device):
            out = model.static(latents.expand(2, -1, -1, -1, -1), *given, timestep.expand(2), tokens).float()
        return guide(out[:1], out[1:], out[:1], guidance, 0.0)

    def colored(latents: Tensor) -> Tensor:
        return (latents[0] / 2 + 0.5).clamp(0, 1)

    shape = (1, VOXELS, VOXELS, VOXELS, 4)
    show = lambda clean: preview(colored(clean))  # noqa: E731
    return colored(denoise(shape, predict, sampler, steps, seed, run, show, model.device))
