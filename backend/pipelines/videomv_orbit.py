# SPDX-License-Identifier: GPL-3.0-or-later
"""VideoMV: from a text or an image to a static orbit of 24 views (arXiv 2403.12010).

text or image -> tokens and latents -> DDIM with plain guidance against the negative prompt, some steps of which may be
refined through Gaussians (`refine3d`) -> pictures on a plain background -> cut out, as construction wants alpha
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.guidance.classifier_free import guide_plain
from backend.guidance.sampling import Refinement, State, batched, begin, one_by_one, sample
from backend.guidance.schedules import cosine_schedule, linear_schedule, set_timesteps
from backend.models.diffusion4d import videomv_cameras
from backend.models.encoders import Encoders
from backend.models.videomv import LATENT_CHANNELS, NEGATIVE_PROMPT
from backend.pictures import tiled
from backend.pipelines.matte import cut_out
from backend.pipelines.memory_plan import Networks
from backend.pipelines.recorded_steps import recorded
from backend.pipelines.refine3d import BACKGROUND, refiner
from backend.progress import Run, UserError
from blender_addon.contract.arrays import BadFileError, read_arrays, write_arrays
from blender_addon.contract.orbit import Cameras, Orbit, orbit_cameras

PIXELS = 256
LATENT_PIXEL = 8  # pixels to a latent one
STATE_NAME = "static_state.npz"
LEAST_COVERAGE = 0.004  # of the pictures
# From latents to colors, roughly, as Stable Diffusion's VAE has them: previews need no decoder.
COLORS = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))


@dataclass(frozen=True)
class Style:
    """How one of VideoMV's two networks samples: the public code's values."""

    elevation: float  # degrees
    distance: float  # of cameras, where the subject's longest side is 1
    background: float  # grey value 0..1 that it paints
    guidance: float  # scale s of u + s (c - u)
    schedule: Callable
    suffix: str = ""  # of every caption


STYLES = {
    "text": Style(15.0, 2.0, 128 / 255, 9.0, linear_schedule, ", 3d asset"),
    "image": Style(5.0, 1.7, 1.0, 6.0, cosine_schedule),
}


def static_cameras(kind: str, frames: int) -> Cameras:
    """The cameras of the orbit that VideoMV makes of a `text` or an `image`; times are those of a moving one."""
    style = STYLES[kind]
    orbit = Orbit(frames, elevation=style.elevation, distance=style.distance, closed=False)
    return orbit_cameras(orbit, PIXELS, PIXELS, moving=True)


@torch.no_grad()
def generate_static(
    cameras: Cameras,
    prompt: str,
    image: Tensor | None,
    networks: Networks,
    *,
    seed: int = 0,
    steps: int = 50,
    refine: bool = False,
    dtype: torch.dtype = torch.float32,
    run: Run,
) -> np.ndarray:
    """The static orbit of a text, or of an image of its first view.

    Args:
        cameras: from `static_cameras`.
        prompt: of the text network; the image network was trained without captions, and is told none.
        image: [3, PIXELS, PIXELS] 0..1 on white, or None for the text network.
        networks: text_encoder, image_encoder, vae, text or image, refiner.
        seed: of the noise.
        steps: denoising steps.
        refine: refine three steps through Gaussians.
        dtype: that the network computes in.
        run: told after each step; its folder keeps the last one.

    Returns:
        [T, PIXELS, PIXELS, 4] uint8, straight alpha.

    Raises:
        UserError: nothing visible came out, or the number of views cannot be refined.
        JobCancelled: by `run`.
    """
    kind = "text" if image is None else "image"
    style = STYLES[kind]
    plan, device = networks.plan, networks.device

    # 1. Conditions: what is asked for, and the negative prompt; both with cameras.
    tokens = encode_texts([prompt + style.suffix if image is None else "", NEGATIVE_PROMPT], networks)
    poses = torch.from_numpy(cameras.camera_to_world).float().to(device)
    camera_data = videomv_cameras(poses).flatten(1)[None]
    conditions = [{"y": row[None], "camera_data": camera_data} for row in tokens]
    if image is not None:
        embedding, latents = encode_view(image, networks)
        for branch, known in zip(conditions, (1.0, 0.0), strict=True):
            branch |= {"image": known * embedding[:, None], "local_image": latents[:, :, None]}

    # 2. Denoise.
    shape = (1, LATENT_CHANNELS, len(poses), PIXELS // LATENT_PIXEL, PIXELS // LATENT_PIXEL)
    helpers = ("vae", "refiner") if refine else ()
    with networks.using(kind, *helpers) as (network, *others):
        schedule = style.schedule()
        times = set_timesteps(schedule, steps)
        branches = (
            batched(network, conditions)
            if plan.together
            else one_by_one(*(partial(network, **branch) for branch in conditions))
        )
        refinement = None
        if refine:
            refinement = Refinement.as_published(_refine(*others, poses, BACKGROUND[kind], plan.vae_chunk), len(times))
        with recorded(branches, plan, device, run) as branches:
            clean = sample(
                kept_state(run.folder / STATE_NAME, device) or begin(shape, seed, device),
                times,
                schedule,
                branches,
                partial(guide_plain, scale=style.guidance),
                dtype=dtype,
                refinement=refinement,
                on_step=on_step(run, STATE_NAME, len(times), lambda latents: preview(latents[0].movedim(1, 0))),
            )

    # 3. Pictures, cut out.
    pictures, unplain = cut_out(decode(clean.transpose(1, 2)[0], networks))
    if unplain > 0.25:
        run.note("The model painted more than a plain background: parts of it may have become part of the subject.")
    if float(pictures[..., 3].mean()) < 255 * LEAST_COVERAGE:
        raise UserError(
            "nothing_made", "The model made nothing that could be seen.", "Try another seed or other words."
        )
    return pictures


def encode_texts(texts: list[str], networks: Networks) -> Tensor:  # [B, 77, 1024]
    """Tokens of texts, on the device."""
    with networks.using("text_encoder") as [encoder]:
        return encoder(texts).to(networks.device)


def encode_view(image: Tensor, networks: Networks) -> tuple[Tensor, Tensor]:
    """CLIP embedding [1, 1024] and latents [1, 4, h, w] of a picture [3, H, W] 0..1, on the device."""
    with networks.using("image_encoder") as [encoder]:
        embedding = encoder(image[None]).to(networks.device)
    return embedding, encode(image[None], networks)


def encode(pictures: Tensor, networks: Networks) -> Tensor:  # [N, 4, h, w]
    """Latents of pictures [N, 3, H, W] 0..1, on the device: the means of the encoder's distributions."""
    with networks.using("vae") as [vae]:
        return _look_through(vae, networks).latents(pictures, None, networks.plan.vae_chunk).to(networks.device)


def decode(latents: Tensor, networks: Networks) -> np.ndarray:  # [N, H, W, 3] float32 0..1
    """Pictures of latents [N, 4, h, w]."""
    with networks.using("vae") as [vae]:
        pictures = _look_through(vae, networks).pictures(latents, networks.plan.vae_chunk)
    return pictures.movedim(1, -1).cpu().numpy()


def _look_through(vae: torch.nn.Module, networks: Networks) -> Encoders:
    (vae.enable_tiling if networks.plan.vae_tiling else vae.disable_tiling)()
    return Encoders(vae, text=None, image=None)


def _refine(vae: torch.nn.Module, model: torch.nn.Module, poses: Tensor, background: float, chunk: int):
    look = Encoders(vae, text=None, image=None)
    return refiner(
        model,
        lambda latents: look.pictures(latents, chunk),
        lambda pictures: look.latents(pictures, None, chunk),
        poses,
        background,
    )


def on_step(
    run: Run, name: str, steps: int, show: Callable[[Tensor], np.ndarray], *, before: int = 0, runs: int = 1
) -> Callable[[State, Tensor], None]:
    """What keeps the state of a sampling in `run.folder`/`name` and reports it.

    before: steps of earlier ones of `runs` samplings of as many steps.
    """

    def keep(state: State, clean: Tensor) -> None:
        write_arrays(run.folder / name, {key: value.numpy() for key, value in state.tensors().items()})
        run.report(before + state.step, runs * steps, preview=lambda: show(clean))

    return keep


def kept_state(path: Path, device: torch.device) -> State | None:
    """What a former attempt kept, if it can be read."""
    try:
        arrays = read_arrays(path)
    except (FileNotFoundError, BadFileError):
        return None
    return State.from_tensors({name: torch.from_numpy(array) for name, array in arrays.items()}, device)


def preview(latents: Tensor) -> np.ndarray:  # [2 h', 4 w', 3] uint8
    """Eight of the latents [T, 4, h, w], in rough colors."""
    chosen = latents[torch.linspace(0, len(latents) - 1, 8).round().long().to(latents.device)].float().cpu()
    colors = torch.einsum("tchw,cd->tdhw", chosen, torch.tensor(COLORS)) / 2 + 0.5
    shown = functional.interpolate(colors.clamp(0, 1), scale_factor=4, mode="bilinear")
    return tiled(shown.movedim(1, -1).unflatten(0, (2, -1)))
