# SPDX-License-Identifier: GPL-3.0-or-later
"""4DM: from a monocular video to videos of four views, 8 frames at a time (4Diffusion, section 3.2).

frames on white -> image tokens and latents of each
-> DDIM with plain guidance over all times and views of a run together -> pictures on white
-> cut out, with cameras and times

Longer videos are done in runs of 8 frames that begin from the same noise; they drift a little from run to run, as the
paper shows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backend.guidance.classifier_free import guide_plain
from backend.guidance.sampling import Branches, begin, sample
from backend.guidance.schedules import linear_schedule, set_timesteps
from backend.models import fourdm_weights
from backend.models.encoders import load_imagedream_encoders
from backend.models.fourdm import FourDM
from backend.models.fourdm_cameras import from_orbit
from backend.models.fourdm_inputs import ClipConditions, add_pixel_view, drop_pixel_view, join, lay_out, unconditional
from backend.models.videomv import LATENT_CHANNELS
from backend.pipelines import videomv_orbit
from backend.pipelines.matte import cut_out
from backend.pipelines.memory_plan import Networks
from backend.pipelines.recorded_steps import recorded
from backend.pipelines.videomv_orbit import LATENT_PIXEL, decode, encode, encode_texts, kept_state, preview
from backend.progress import Run
from blender_addon.contract.orbit import Cameras, Orbit, intrinsics

Loaders = Mapping[str, Callable[[], nn.Module]]

VIEWS = 4
RUN_FRAMES = 8  # that the network was trained with
STEPS, GUIDANCE = 100, 5.0
DISTANCE, FOV = 1.1, 45.0  # of the cameras with which 4Diffusion looks at what comes out; the network hears directions
NEGATIVE_PROMPT = (  # of ImageDream and all that is built on it
    "uniform low no texture ugly, boring, bad anatomy, blurry, pixelated,  obscure, unnatural colors, poor lighting, "
    "dull, and unclear."
)


@dataclass(frozen=True)
class MultiViewVideo:
    """F times, each seen by VIEWS cameras that stand still, a quarter of a turn apart; the first one in front."""

    pictures: np.ndarray  # [VIEWS, F, H, W, 4] uint8, straight alpha
    cameras: tuple[Cameras, ...]  # of each view: F cameras with their times

    @classmethod
    def standing(cls, pictures: np.ndarray, times: np.ndarray, elevation: float) -> "MultiViewVideo":
        """Of pictures as above, by their times [F] 0..1 and the elevation of the cameras in degrees.

        There may be fewer views: they are the first ones.
        """
        poses, side = view_poses(elevation), pictures.shape[2]
        return cls(pictures, tuple(_still_camera(pose, times, side) for pose in poses[: len(pictures)]))

    def together(self) -> tuple[np.ndarray, Cameras]:
        """All pictures [VIEWS F, H, W, 4] and their cameras, as construction takes them."""
        first = self.cameras[0]
        poses, matrices, times = (
            np.concatenate([getattr(view, name) for view in self.cameras])
            for name in ("camera_to_world", "Ks", "times")
        )
        return self.pictures.reshape(-1, *self.pictures.shape[2:]), Cameras(
            poses, matrices, times, first.width, first.height
        )


@torch.no_grad()
def generate_views(
    video: Tensor,
    times: np.ndarray,
    prompt: str,
    networks: Networks,
    *,
    elevation: float = 0.0,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    compat: bool = False,
    dtype: torch.dtype = torch.float32,
    run: Run,
) -> MultiViewVideo:
    """Four views of what a video shows.

    Args:
        video: [F, 3, PIXELS, PIXELS] 0..1 on white, F at least 2.
        times: [F], 0..1.
        prompt: what is seen.
        networks: text_encoder, image_encoder (ImageDream's), vae, fourdm.
        elevation: of the cameras, degrees.
        seed: of the noise.
        steps: denoising steps of each run.
        guidance: scale of plain guidance.
        compat: pair rows and image tokens as the public demo does, which gives most pictures the tokens of a wrong
            frame; to compare with it.
        dtype: that the network computes in.
        run: told after each step of the current stage; its folder keeps the last step of each run of 8 frames.

    Raises:
        JobCancelled: by `run`.
    """
    poses = torch.from_numpy(view_poses(elevation)).float().to(networks.device)
    texts = encode_texts([prompt, NEGATIVE_PROMPT], networks)
    windows = runs_of(len(video))
    made: list[np.ndarray] = []
    for index, window in enumerate(windows):
        # 1. Conditions.
        frames = video[window]
        with networks.using("image_encoder") as [encoder]:
            tokens = encoder.tokens(frames).to(networks.device)
        given = lay_out(texts[0], from_orbit(poses), tokens, encode(frames, networks), demo_order=compat)
        clips = (given, unconditional(given, texts[1]))

        # 2. Denoise all times and views together.
        schedule = linear_schedule()
        timesteps = set_timesteps(schedule, steps)
        side = videomv_orbit.PIXELS // LATENT_PIXEL
        shape = (len(frames) * VIEWS, LATENT_CHANNELS, side, side)
        name = f"views_{index}.npz"
        plan, device = networks.plan, networks.device
        with (
            networks.using("fourdm") as [network],
            recorded(branches_of(network, clips, together=plan.together), plan, device, run) as branches,
        ):
            latents = sample(
                kept_state(run.folder / name, device) or begin(shape, seed, device),
                timesteps,
                schedule,
                branches,
                partial(guide_plain, scale=guidance),
                dtype=dtype,
                on_step=videomv_orbit.on_step(
                    run, name, len(timesteps), preview, before=index * len(timesteps), runs=len(windows)
                ),
            )

        # 3. Pictures. A window that overlaps the one before gives only what is new.
        new = slice(sum(len(views) for views in made) - window.start, None)
        pictures = decode(latents, networks)  # rows: time, then view
        made.append(pictures.reshape(len(frames), VIEWS, *pictures.shape[1:])[new])
    pictures = np.concatenate(made)
    cut, unplain = cut_out(pictures.reshape(-1, *pictures.shape[2:]))
    if unplain > 0.25:
        run.note("The model painted more than a plain background: parts of it may have become part of the subject.")
    cut = cut.reshape(*pictures.shape[:2], *cut.shape[1:]).swapaxes(0, 1)
    return MultiViewVideo.standing(cut, times, elevation)


def runs_of(frames: int) -> list[slice]:
    """The frames of each run: 8, one run after another; the last reaches back so that it has 8, too."""
    starts = range(0, max(frames, 1), RUN_FRAMES)
    return [slice(max(min(start, frames - RUN_FRAMES), 0), min(start + RUN_FRAMES, frames)) for start in starts]


def branches_of(network: FourDM, clips: Sequence[ClipConditions], *, together: bool) -> Branches:
    """Predictions with and without conditions; latents [(f VIEWS), 4, h, w], without rows for the pixel view."""

    def predict(latents: Tensor, timestep: Tensor, given: ClipConditions) -> Tensor:
        rows = add_pixel_view(latents, VIEWS)
        out = network(
            rows,
            timestep[:1].expand(len(rows)),
            given.text,
            cameras=given.cameras,
            image=given.image,
            pixels=given.pixels,
            frames=given.frames,
            views=given.views,
        )
        return drop_pixel_view(out, given.views)

    if together:
        both = join(*clips)
        return lambda latents, timestep: predict(latents.repeat(len(clips), 1, 1, 1), timestep, both).chunk(len(clips))
    return lambda latents, timestep: [predict(latents, timestep, clip) for clip in clips]


SOURCES = {  # name of a network -> the weights that it comes from, beside the base of `fourdm`
    "text_encoder": fourdm_weights.BASE,
    "image_encoder": fourdm_weights.BASE,
    "vae": fourdm_weights.BASE,
    "fourdm": fourdm_weights.MOTION,
}


def weight_loaders(folder: Path | None, dtype: torch.dtype) -> Loaders:
    """How each network is loaded to main memory: encoders and base out of ImageDream's file, motion out of 4DM's.

    Raises (when one is loaded):
        UserError: weights are missing, damaged or of another network.
    """
    look = cache(lambda: load_imagedream_encoders(folder, "cpu", dtype))

    return {
        "text_encoder": lambda: look().text,
        "image_encoder": lambda: look().image,
        "vae": lambda: look().vae.float(),
        "fourdm": lambda: fourdm_weights.load_fourdm(folder, dtype),
    }


def view_poses(elevation: float) -> np.ndarray:  # [VIEWS, 4, 4]
    """Camera-to-world of the views; the input's side comes first."""
    return Orbit(VIEWS, elevation=elevation, distance=DISTANCE, fov=FOV, closed=False).camera_to_world()


def _still_camera(pose: np.ndarray, times: np.ndarray, pixels: int) -> Cameras:
    count = len(times)
    matrices = np.repeat(intrinsics(FOV, pixels, pixels)[None], count, 0)
    return Cameras(np.repeat(pose[None], count, 0), matrices, np.asarray(times, np.float64), pixels, pixels)
