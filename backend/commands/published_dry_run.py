# SPDX-License-Identifier: GPL-3.0-or-later
"""`generate --dry-run` and `train --dry-run`: full width, shapes alone. Checks that everything fits, tells memory."""

import argparse

import torch
from rich.console import Console
from rich.table import Table

from backend.data.view_samples import TIMES, VIEWS
from backend.models import fourdm
from backend.models.diffusion4d import Diffusion4DNet
from backend.models.dry_run import Cost, dry_run
from backend.models.videomv import LATENT_CHANNELS
from backend.options import motion_options
from backend.pipelines.diffusion4d_published import needed
from backend.pipelines.memory_plan import GIB, PLANS, free_bytes
from backend.pipelines.multi_view_video import SOURCES
from backend.pipelines.published_needs import need
from backend.pipelines.videomv_orbit import LATENT_PIXEL
from backend.progress import UserError
from backend.training import fourdm_task, published_task
from backend.training.config import TrainConfig
from blender_addon.contract.requests import GENERATED_FRAMES


def print_generation(options: argparse.Namespace) -> int:
    """What a generation would need on the GPU, by each memory plan."""
    if options.video:
        names = tuple(SOURCES)
    else:
        said = motion_options(options)
        amount, guidance_static = said["motion"], said["guidance_static"]
        names = needed(not options.object, bool(options.image), amount, guidance_static, options.refine)
    needs = [need(plan, names, torch.bfloat16) for plan in PLANS]
    for found in needs:
        table = Table("stage", "million parameters", "weights, GiB", "activations, GiB", title=found.plan.name)
        for stage in found.stages:
            figures = (stage.parameters / 1e6, stage.weights / GIB, stage.activations / GIB)
            table.add_row(stage.name, f"{figures[0]:.0f}", *(f"{figure:.2f}" for figure in figures[1:]))
        Console().print(table)
        print(f"At the peak, with what CUDA itself takes: {found.device_bytes / GIB:.1f} GiB\n")
    if torch.cuda.is_available():
        free = free_bytes(torch.device("cuda"))
        fits = [found.plan.name for found in needs if found.device_bytes <= free]
        print(f"The GPU has {free / GIB:.1f} GiB free: {fits[0] if fits else 'no plan fits'}.")
    return 0


def print_training(config: TrainConfig) -> int:
    """What a training step of published size would need on each GPU.

    Raises:
        UserError: the configuration is of another size.
    """
    if config.task not in COSTS:
        raise UserError(
            "bad_config",
            "Only the published sizes have a dry run.",
            "--config diffusion4d_published or fourdm_published",
        )
    cost, frozen = COSTS[config.task](config)
    table = Table("block", "million parameters", "weights, GiB", "peak, GiB", title="Training, forward pass in bf16")
    for stage in cost.stages:
        row = (stage.parameters / 1e6, stage.weights / GIB, stage.peak / GIB)
        table.add_row(stage.name, *(f"{figure:.2f}" for figure in row))
    Console().print(table)
    found = parts(cost, frozen)
    for name, size in found.items():
        print(f"{name:<52}{size / GIB:8.1f} GiB")
    print(f"{'on each GPU, without the encoders (4 GiB)':<52}{sum(found.values()) / GIB:8.1f} GiB")
    return 0


def diffusion4d_cost(config: TrainConfig) -> tuple[Cost, int]:
    """Of forward and backward pass, in bf16, by shapes; and how many parameters are frozen."""
    sizes, dtype, side = published_task.sized(config), torch.bfloat16, config.resolution // LATENT_PIXEL
    batch, frames = config.batch, GENERATED_FRAMES
    with torch.device("meta"):
        network = Diffusion4DNet(sizes, checkpoint_activations=config.checkpoint_activations).to(dtype).train()
        latents = torch.empty(batch, frames, LATENT_CHANNELS, side, side, dtype=dtype)
        given = {
            "latents": latents,
            "timestep": torch.empty(batch, dtype=torch.int64),
            "camera_to_world": torch.empty(batch, frames, 4, 4),
            "text": torch.empty(batch, 77, sizes.context_width, dtype=dtype),
            "magnitude": torch.empty(batch),
            "magnitude_known": torch.empty(batch, dtype=torch.bool),
            "static_latents": torch.empty_like(latents),
            "static_known": torch.empty(batch, dtype=torch.bool),
            "image": torch.empty(batch, sizes.context_width, dtype=dtype),
            "image_latents": torch.empty(batch, LATENT_CHANNELS, side, side, dtype=dtype),
        }
    base = network.base
    stages = [f"base.input_blocks.{index}" for index in range(1, len(base.input_blocks))]
    stages += ["base.middle_block", *(f"base.output_blocks.{index}" for index in range(len(base.output_blocks)))]
    return dry_run(network, given, stages, training=True), 0


def fourdm_cost(config: TrainConfig) -> tuple[Cost, int]:
    """The same of 4DM."""
    sizes, side = fourdm_task.sized(config), config.resolution // LATENT_PIXEL
    cost = fourdm.describe(
        sizes,
        batch=config.batch,
        frames=TIMES,
        views=VIEWS + 1,
        height=side,
        width=side,
        training=True,
        checkpoint_activations=config.checkpoint_activations,
    )
    with torch.device("meta"):
        base = fourdm.FourDM(sizes.base)
    return cost, sum(parameter.numel() for parameter in base.parameters())


COSTS = {"published": diffusion4d_cost, "fourdm": fourdm_cost}


def parts(cost: Cost, frozen: int) -> dict[str, int]:
    """What lies on each GPU in training, in bytes: what is trained, and all that belongs to it, is in float32."""
    trained = cost.parameters - frozen
    single = 4 * trained
    gradients = 2 * trained  # that the bf16 dry run has counted among its peak
    found = {
        "weights": single,
        "gradients": single,
        "Adam's two moments": 2 * single,
        "moving average of the weights": single,
        "bf16 copies of weights (autocast)": single // 2,
        "activations": max(cost.peak - gradients, cost.kept, *(stage.peak for stage in cost.stages)),
    }
    return {"frozen base, bf16": 2 * frozen, **found} if frozen else found
