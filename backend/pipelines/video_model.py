# SPDX-License-Identifier: GPL-3.0-or-later
"""Multi-view video models (4DM) as `fourdiffusion` uses them, and the published one; the small one: `small_views`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from backend.pictures import on_white
from backend.pipelines import videomv_orbit
from backend.pipelines.fourdiffusion_guidance import FourDMGuidance, Guidance, conditions_of
from backend.pipelines.memory_plan import MemoryPlan, Networks, chosen_device, computing_type, with_ladder
from backend.pipelines.multi_view_video import SOURCES, MultiViewVideo, generate_views, weight_loaders
from backend.pipelines.published_needs import demand_weights, licences, plans
from backend.progress import Run
from backend.video.framing import FOURDIFFUSION, Framing
from blender_addon.contract.requests import PUBLISHED

Result = TypeVar("Result")
Loaders = Mapping[str, Callable[[], nn.Module]]


class VideoModel(Protocol):
    """A multi-view video model. Videos are [F, 4, side, side] 0..1, premultiplied RGBA, F >= 8 at even times."""

    name: str  # for the provenance, and for what is kept between attempts
    framing: Framing  # of the video that it takes; `side` is its size

    def models(self) -> list[dict]:
        """Name and licence of all that has a part in it, for the provenance."""

    def views(self, video: Tensor, prompt: str, *, seed: int, steps: int, elevation: float, run: Run) -> MultiViewVideo:
        """Four views of what a video shows, the first from the video's own side.

        steps: of denoising; elevation: of the cameras, degrees; run: told after each step of the current stage, its
        folder keeps what a next attempt goes on from.

        Raises:
            JobCancelled: by `run`.
        """

    def guidance(self, video: Tensor, prompt: str, run: Run) -> AbstractContextManager[Guidance]:
        """What score distillation asks; within the context the networks stay on their device."""


class PublishedVideoModel:
    """4DM at its published size: ImageDream and 4Diffusion's motion modules."""

    name = "4dm"
    framing = replace(FOURDIFFUSION, size=videomv_orbit.PIXELS)

    def __init__(
        self, networks: Networks, dtype: torch.dtype = torch.float32, ladder: Sequence[MemoryPlan] = ()
    ) -> None:
        """networks: text_encoder, image_encoder (ImageDream's), vae, fourdm; dtype: that 4DM computes in.

        ladder: memory plans for `within_memory`; without them `networks` follow the plan that they have.
        """
        self._networks, self._dtype, self._ladder = networks, dtype, tuple(ladder)

    @classmethod
    def load(
        cls, run: Run, *, weights: Path | None = None, loaders: Callable[[torch.dtype], Loaders] | None = None
    ) -> "PublishedVideoModel":
        """On the device of `run`; each network is read when it is first used.

        weights: folder of all published weights, by default the usual one; loaders: of networks, in the place of those
        from `weights`.

        Raises:
            UserError: weights are missing, or the GPU is too small.
        """
        device = chosen_device(run)
        dtype = computing_type(device)
        if loaders is None:
            demand_weights(SOURCES.values(), weights)
        networks = Networks(loaders(dtype) if loaders else weight_loaders(weights, dtype), device, run.check)
        return cls(networks, dtype, plans(device, tuple(SOURCES), dtype, run))

    @property
    def plan(self) -> str:
        """The memory plan that is followed, in words."""
        return self._networks.plan.name

    def models(self) -> list[dict]:
        """See `VideoModel`."""
        return licences(SOURCES.values())

    def views(self, video: Tensor, prompt: str, *, seed: int, steps: int, elevation: float, run: Run) -> MultiViewVideo:
        """See `VideoModel`."""
        settings = {"elevation": elevation, "seed": seed, "steps": steps, "dtype": self._dtype, "run": run}
        times = np.linspace(0, 1, len(video))
        found = generate_views(on_white(video, 1), times, prompt, self._networks, **settings)
        self._networks.rest()  # what follows may be construction, which wants the GPU to itself
        return found

    @contextmanager
    def guidance(self, video: Tensor, prompt: str, run: Run) -> Iterator[Guidance]:
        """See `VideoModel`."""
        networks = self._networks
        conditions = conditions_of(on_white(video, 1), prompt, networks)
        networks.forget("text_encoder", "image_encoder")
        with networks.using("vae", "fourdm") as [vae, network]:
            yield FourDMGuidance(vae, network, conditions, networks.plan, networks.device, self._dtype, run.check)
        networks.rest()

    def within_memory(self, work: Callable[[], Result], run: Run) -> Result:
        """What `work` returns, by the first memory plan that suffices; see `memory_plan.with_ladder`."""

        def by_plan(plan: MemoryPlan) -> Result:
            self._networks.follow(plan)
            return work()

        return with_ladder(self._ladder, by_plan, run) if self._ladder else work()


def load_video_model(
    name: str, run: Run, *, weights: Path | None = None, loaders: Callable[[torch.dtype], Loaders] | None = None
) -> VideoModel:
    """The model that a request names, one of MODELS; the others: of the published one, see its `load`.

    Raises:
        UserError: weights are missing or damaged, or the GPU is too small.
    """
    if name == PUBLISHED:
        return PublishedVideoModel.load(run, weights=weights, loaders=loaders)
    from backend.pipelines.small_views import SmallVideoModel

    return SmallVideoModel(device=chosen_device(run).type)


def within_memory(model: VideoModel, work: Callable[[], Result], run: Run) -> Result:
    """What `work` returns; where the GPU's memory does not suffice for a model with memory plans, by the next one.

    `work` is called again then, and has to go on from what it kept.

    Raises:
        UserError: the memory did not suffice for any plan.
    """
    return model.within_memory(work, run) if isinstance(model, PublishedVideoModel) else work()


def told_of(model: VideoModel) -> dict:
    """What the provenance says of it."""
    plan = {"memory_plan": model.plan} if isinstance(model, PublishedVideoModel) else {}
    return {"models": model.models(), **plan}
