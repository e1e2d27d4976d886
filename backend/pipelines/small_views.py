# SPDX-License-Identifier: GPL-3.0-or-later
"""The small 4DM as `fourdiffusion` uses it: videos of four views, and what score distillation asks.

The network sees 64 pixels; the input's own view stays the input itself, as sharp as it comes. Where the prompt names
what is seen, and the shape of a known subject fits, that tells the other sides instead: a network of this size knows
where a body may be, and not that a dog has four legs.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.guidance.classifier_free import guide_plain
from backend.guidance.sampling import Branches, begin, sample
from backend.guidance.schedules import TRAIN_STEPS
from backend.models import kinesplat_small
from backend.models.diffusion import scheduler, share
from backend.models.inflation import inflated_views
from backend.models.kinesplat_small_4dm import FOLDER, KinesplatSmall4DM, load
from backend.models.precision import matrix_precision
from backend.models.small_fourdm import CHANNELS, SmallConditions, completed, decided, to_latents, to_pictures
from backend.pictures import over_white, straight, tiled
from backend.pipelines.far_side import far_side
from backend.pipelines.known_shapes import alike
from backend.pipelines.multi_view_video import DISTANCE, FOV, VIEWS, MultiViewVideo, runs_of, view_poses
from backend.pipelines.shaped_video import ShapedVideo, shaped_video
from backend.pipelines.videomv_orbit import kept_state, on_step
from backend.progress import Run
from backend.video.framing import FOURDIFFUSION

SIDE = 128  # pixels of the views that come out; three of the four are enlarged
# Of the noise that sampling begins with. At 1 the network, unsure of sides that nobody has shown, invents rags.
TEMPERATURE = 0.45
GUIDANCE = 1.0  # scale of classifier-free guidance: none, which takes half the time
RESCALE = 0.2


class SmallVideoModel:
    """A `video_model.VideoModel`: kinesplat-small-4dm as shipped or from the folder `weights`, or `model` instead."""

    # Seen from the front, most subjects are longer than they are wide: from the side they would not fit otherwise.
    framing = replace(FOURDIFFUSION, size=SIDE, largest=0.65)

    def __init__(
        self, model: KinesplatSmall4DM | None = None, device: str | None = None, weights: Path | None = None
    ) -> None:
        self._model = model or load(weights or FOLDER, device)
        self.name = self._model.name
        self._found: tuple[Tensor, str, ShapedVideo | None] | None = None  # video, prompt, and what is behind it

    def models(self) -> list[dict]:
        """For provenance: the network, and whose subjects were looked at for one that fits."""
        return [{"name": model.name, "licence": model.licence} for model in (self._model, self._subjects())]

    def warnings(self, prompt: str) -> list[str]:
        """What the user should know about the prompt."""
        unknown = self._model.vocabulary.unknown(prompt)
        return [f"The model does not know: {', '.join(unknown)}. It went by what it saw."] if unknown else []

    @torch.no_grad()
    def views(self, video: Tensor, prompt: str, *, seed: int, steps: int, elevation: float, run: Run) -> MultiViewVideo:
        """See `VideoModel`; `video` [F, 4, SIDE, SIDE]."""
        poses = torch.from_numpy(view_poses(elevation)).float()
        windows, made = runs_of(len(video)), []
        parts = 1 + len(windows)  # of the stage: a shape is sought, and each window is sampled
        shaped = self._shaped(video, prompt, lambda share: run.report(round(100 * share), 100 * parts))
        if shaped is not None:
            run.note(f"Its shape is that of a known subject, {shaped.subject}, bent to the outlines in the video.")
            return self._together(video, _looked_at(shaped, poses[1:], len(video), run, 1 / parts), elevation)
        if alike(self._subjects(), prompt):
            run.note(
                "No shape that the model knows by that name comes near the outlines in the video: a network guesses."
            )
        for sentence in self.warnings(prompt):
            run.note(sentence)
        guide, device = SmallGuidance(self._model, video, prompt, run), self._model.device
        schedule = guide.schedule
        schedule.set_timesteps(steps)
        timesteps = schedule.timesteps.tolist()
        for index, window in enumerate(windows):
            frames = np.arange(len(video))[window]
            side, name = self._model.resolution, f"views_{index}.npz"
            shape = (len(frames) * VIEWS, CHANNELS, side, side)
            latents = sample(
                kept_state(run.folder / name, device) or begin(shape, seed, device, TEMPERATURE),
                timesteps,
                schedule,
                guide.branches(poses, frames),
                partial(guide_plain, scale=guide.scale),
                on_step=on_step(run, name, steps, _preview, before=(index + 1) * steps, runs=parts),
            )
            new = slice(sum(map(len, made)) - window.start, None)  # a window may overlap the one before
            made.append(to_pictures(latents).unflatten(0, (len(frames), VIEWS))[new].cpu())
        views = functional.interpolate(torch.cat(made).flatten(0, 1), (SIDE, SIDE), mode="bicubic").clamp(0, 1)
        views = views.unflatten(0, (len(video), VIEWS)).movedim(1, 0)  # [V, F, 4, H, W]
        return self._together(video, torch.minimum(views, views[:, :, 3:])[1:], elevation)

    @contextlib.contextmanager
    def guidance(self, video: Tensor, prompt: str, run: Run) -> Iterator["SmallGuidance"]:
        """See `VideoModel`."""
        shaped = self._shaped(video, prompt, lambda share: run.check())
        yield SmallGuidance(self._model, video, prompt, run, shaped, decides=True)

    def _shaped(self, video: Tensor, prompt: str, report: Callable[[float], None]) -> ShapedVideo | None:
        """The video with the shape of what its prompt names, where that is known."""
        if self._found is None or self._found[0] is not video or self._found[1] != prompt:
            self._found = video, prompt, shaped_video(video, prompt, self._subjects(), report)
        return self._found[2]

    def _subjects(self) -> kinesplat_small.KinesplatSmall:
        return kinesplat_small.load(device=self._model.device.type)

    @staticmethod
    def _together(video: Tensor, others: Tensor, elevation: float) -> MultiViewVideo:
        """The input's view, and the others [VIEWS - 1, F, 4, SIDE, SIDE]."""
        pictures = straight(torch.cat([video[None], others]).movedim(2, -1).numpy())
        return MultiViewVideo.standing(pictures, np.linspace(0, 1, len(video)), elevation)


class SmallGuidance:
    """A `fourdiffusion_guidance.Guidance`: latents are pictures of the network's resolution."""

    dtype = torch.float32
    scale, rescale = GUIDANCE, RESCALE

    def __init__(
        self,
        model: KinesplatSmall4DM,
        video: Tensor,
        prompt: str,
        run: Run,
        shaped: ShapedVideo | None = None,
        *,
        decides: bool = False,
    ) -> None:
        """video [F, 4, H, W] 0..1, premultiplied; decides: predictions have hard outlines, which renders can reach.

        shaped: the same with what is behind it, which is what is predicted then, whatever the noise.
        """
        self._model, self._check, self._shaped, self._decides = model, run.check, shaped, decides
        self.schedule = scheduler(steps=TRAIN_STEPS)
        self._video = _sized(video, model.resolution)
        self._tokens = model.vocabulary.batch([prompt]).to(model.device)

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 4, H, W] 0..1 premultiplied -> [B, 4, h, w], with a gradient."""
        return to_latents(_sized(pictures, self._model.resolution).to(self._model.device))

    def branches(self, poses: Tensor, frames: np.ndarray) -> Branches:
        """See `Guidance`. The unconditional prediction costs as much as the other; at scale 1 it has no part."""
        if self._shaped is not None:
            return self._told(poses, frames)
        device, count = self._model.device, 1 + (self.scale != 1)
        shown = self._video[torch.from_numpy(frames)]
        pictures = shown.movedim(1, -1).contiguous().numpy()
        far = np.stack([far_side(picture, mirrored=False) for picture in pictures])
        guess = inflated_views(pictures, poses.cpu().numpy(), DISTANCE, FOV, far=far)
        given = SmallConditions(
            to_latents(shown)[None].to(device),
            to_latents(torch.from_numpy(guess).movedim(-1, -3))[None].to(device),
            poses[None].to(device),
            self._tokens,
        )
        parts = [given, given.without()][:count]
        together = SmallConditions(
            *(torch.cat([getattr(part, name) for part in parts]) for name in SmallConditions.__annotations__)
        )

        def predict(latents: Tensor, timestep: Tensor) -> list[Tensor]:
            self._check()
            noisy = latents.unflatten(0, (1, len(frames), len(poses))).expand(count, -1, -1, -1, -1, -1)
            when = share(timestep[:1], TRAIN_STEPS).expand(count)
            with torch.no_grad(), matrix_precision(device):
                clean = self._model.network(noisy, when, together).float()
            clean[0] = completed(clean[0], given.guess[0])
            clean = decided(clean) if self._decides else clean
            return [clean[k % count].flatten(0, 1) for k in range(2)]

        return predict

    def _told(self, poses: Tensor, frames: np.ndarray) -> Branches:
        seen = []
        for frame in frames.tolist():
            self._check()
            seen.append(self._shaped.seen(poses.cpu(), frame, self._model.resolution))
        clean = to_latents(torch.cat(seen)).to(self._model.device)
        return lambda latents, timestep: [clean, clean]


def _looked_at(shaped: ShapedVideo, poses: Tensor, frames: int, run: Run, before: float) -> Tensor:
    """All frames from other sides, [V, F, 4, SIDE, SIDE]. before: share of the stage that is done."""
    views = []
    for frame in range(frames):
        views.append(shaped.seen(poses, frame, SIDE))
        done = before + (1 - before) * (frame + 1) / frames
        run.report(round(100 * done), 100, lambda: tiled(over_white(views[-1].movedim(1, -1)[None])))
    return torch.stack(views, 1)


def _sized(pictures: Tensor, side: int) -> Tensor:
    """Pictures [B, 4, H, W] at the network's resolution, with a gradient."""
    if pictures.shape[-1] == side:
        return pictures
    return functional.interpolate(pictures, (side, side), mode="bilinear", antialias=pictures.shape[-1] > side)


def _preview(latents: Tensor) -> np.ndarray:  # [2 h, 4 w, 3] uint8
    """First and last of the times, from all sides."""
    pictures = to_pictures(latents.cpu()).unflatten(0, (-1, VIEWS))[[0, -1]]
    return tiled(over_white(pictures.movedim(2, -1)))
