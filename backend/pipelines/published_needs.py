# SPDX-License-Identifier: GPL-3.0-or-later
"""What a generation of published size needs: weights, and, by shapes and before anything is loaded, a GPU's memory."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from backend.models import fourdm, videomv
from backend.models.checkpoints import locate
from backend.models.dry_run import Cost, dry_run
from backend.models.encoders import empty_encoders
from backend.models.lgm import LGM
from backend.models.videomv import IMAGE, TEXT
from backend.models.weights_registry import find
from backend.pipelines.memory_plan import ON_CPU, PLANS, MemoryPlan, Need, StageNeed, choose, free_bytes
from backend.pipelines.videomv_orbit import LATENT_PIXEL, PIXELS
from backend.progress import Run, UserError
from blender_addon.contract.requests import GENERATED_FRAMES

STAGES = {  # name of a network -> the stage in which it works
    "text_encoder": "text encoder",
    "image_encoder": "image encoder",
    "vae": "pictures from latents",
    "text": "static orbit from a text",
    "image": "static orbit from an image, and guidance by it",
    "moving": "moving orbit",
    "fourdm": "multi-view video",
    "refiner": "refinement through Gaussians",
}


def plans(device: torch.device, names: tuple[str, ...], dtype: torch.dtype, run: Run) -> Sequence[MemoryPlan]:
    """The fastest plan by which the networks called `names` fit, and those after it.

    Raises:
        UserError: none fits.
    """
    if device.type == "cpu":
        run.note("The published size ran on the CPU, where it takes hours.")
        return (ON_CPU,)
    free = free_bytes(device)
    first, found = choose(PLANS, lambda plan: need(plan, names, dtype), free)
    run.say(found.sentence(free))
    return PLANS[first:]


def demand_weights(sources: Iterable[str], folder: Path | None) -> None:
    """All weights, before anything begins. `sources`: their names; `folder`: of all weights.

    Raises:
        UserError: some are not here; says how to get all of them.
    """
    missing = []
    for source in dict.fromkeys(sources):
        try:
            locate(source, folder)
        except UserError:
            missing.append(source)
    if missing:
        by_hand = [name for name in missing if not find(name).sources]
        hint = f"Get them: python -m backend weights fetch {' '.join(missing)} (docs/published_size.md)."
        raise UserError(
            "weights_missing",
            f"The published size needs weights that are not on this computer: {', '.join(missing)}.",
            hint if not by_hand else f"{hint} By hand (docs/weights.md): {', '.join(by_hand)}.",
        )


def licences(sources: Iterable[str]) -> list[dict]:
    """Weights and their licences, for the provenance of what they make."""
    return [{"name": source, "licence": find(source).licence} for source in dict.fromkeys(sources)]


def need(plan: MemoryPlan, names: tuple[str, ...], dtype: torch.dtype) -> Need:
    """What the networks called `names` need by a plan. `dtype`: that the large ones compute in."""
    stages = {name: stage_need(name, plan, dtype) for name in names}
    if not plan.resident and "refiner" in stages:  # works within steps of the static orbit, and so does the VAE
        together = [stages["text" if "text" in stages else "image"], stages["vae"], stages["refiner"]]
        stages["refiner"] = replace(
            stages["refiner"],
            weights=sum(stage.weights for stage in together),
            activations=max(stage.activations for stage in together),
        )
    if not plan.resident and {"moving", "image"} <= stages.keys():  # both work in each step of the moving orbit
        moving, static = stages["moving"], stages.pop("image")
        stages["moving"] = replace(
            moving, parameters=moving.parameters + static.parameters, weights=moving.weights + static.weights
        )
    return Need(plan, tuple(stages.values()))


@cache
def video_cost(name: str, plan: MemoryPlan, dtype: torch.dtype) -> Cost:
    """Of one pass of a video network by a plan; `moving` is as large as `image`."""
    side = PIXELS // LATENT_PIXEL
    given = {"batch": 2 if plan.together else 1, "height": side, "width": side, "dtype": dtype}
    if name == "fourdm":
        return fourdm.describe(**given, motion_rows=plan.slice_tokens)
    config = TEXT if name == "text" else IMAGE
    return videomv.describe(config, frames=GENERATED_FRAMES, slice_tokens=plan.slice_tokens, **given)


@cache
def stage_need(name: str, plan: MemoryPlan, dtype: torch.dtype) -> StageNeed:
    """What one network needs by a plan."""
    if name in ("text", "image", "moving", "fourdm"):
        cost = video_cost("image" if name == "moving" else name, plan, dtype)
        weights = cost.weights
        if plan.streamed:
            blocks = [stage.weights for stage in cost.stages if "block" in stage.name]
            weights += max(blocks) - sum(blocks)
        return StageNeed(STAGES[name], cost.parameters, weights, cost.peak)
    cost = _small_cost(name, plan.vae_chunk if name == "vae" else 1, dtype)
    return StageNeed(STAGES[name], cost.parameters, cost.weights, cost.peak)


@cache
def _small_cost(name: str, chunk: int, dtype: torch.dtype) -> Cost:
    """Of one pass of one of the other networks; `chunk`: pictures that the VAE takes at once."""
    with torch.device("meta"):
        if name == "refiner":
            return dry_run(LGM().to(dtype), {"views": torch.empty(1, 4, 9, PIXELS, PIXELS, dtype=dtype)}, [])
        encoders = _encoders(dtype)
        if name == "vae":
            side = PIXELS // LATENT_PIXEL
            return dry_run(_Decoder(encoders.vae), {"latents": torch.empty(chunk, 4, side, side)}, [])
        if name == "text_encoder":
            return dry_run(encoders.text.model, {"input_ids": torch.empty(2, 77, dtype=torch.int64)}, [])
        return dry_run(encoders.image.model, {"pixel_values": torch.empty(1, 3, 224, 224, dtype=dtype)}, [])


_encoders = cache(empty_encoders)


class _Decoder(nn.Module):
    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents).sample
