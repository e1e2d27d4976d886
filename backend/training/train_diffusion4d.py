# SPDX-License-Identifier: GPL-3.0-or-later
"""Training of the networks of kinesplat-small, on baked assets that are drawn while it trains.

Samples, noise and dropout are functions of (seed, step) alone, and a checkpoint holds everything else: a resumed run
is the uninterrupted run, bit for bit on the CPU.
"""

import json
import time
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from backend.data.samples import OrbitSample, SampleStream
from backend.models import motion_latents
from backend.models.diffusion import add_noise, alphas_cumprod
from backend.models.motion_magnitude import latent_magnitude, motion_magnitude, reconstruction_loss
from backend.models.small import SmallConfig, SmallVideoNet
from backend.models.text import Vocabulary, words
from backend.training.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class TrainConfig:
    """A training run; see `configs/`."""

    task: str  # "motion" or "static"
    network: dict
    resolution: int = 64
    seed: int = 0
    batch: int = 4  # per process
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    ema: float = 0.998
    warmup: int = 100
    decay: float = 0.25
    drop_all: float = 0.1
    drop_text: float = 0.1
    static: float = 0.05
    reconstruction_weight: float = 0.3
    precision: str = "auto"
    families: dict = field(default_factory=dict)


def read_config(path: Path) -> TrainConfig:
    """A run's configuration from a TOML file."""
    with open(path, "rb") as file:
        return TrainConfig(**tomllib.load(file))


@dataclass
class Batch:
    """Samples as the networks take them."""

    moving: Tensor  # [B, T, 4, H, W] premultiplied RGBA
    static: Tensor  # [B, T, 4, H, W]
    flow: Tensor  # [B, T, 3, H, W]
    camera_to_world: Tensor  # [B, T, 4, 4]
    viewmats: Tensor  # [B, T, 4, 4]
    focal: Tensor  # [B, T]
    times: Tensor  # [B, T]
    tokens: Tensor  # [B, L]


def collate(samples: list[OrbitSample], vocabulary: Vocabulary, device: torch.device) -> Batch:
    """Stack samples."""

    def stack(name: str) -> Tensor:
        return torch.stack([torch.from_numpy(getattr(sample, name)) for sample in samples]).to(device)

    pictures = {name: stack(name).permute(0, 1, 4, 2, 3) for name in ("moving", "static", "flow")}
    others = {name: stack(name) for name in ("camera_to_world", "viewmats", "focal", "times")}
    tokens = vocabulary.batch([sample.caption for sample in samples]).to(device)
    return Batch(**pictures, **others, tokens=tokens)


def motion_loss(
    network: torch.nn.Module, batch: Batch, config: TrainConfig, noise: torch.Generator
) -> dict[str, Tensor]:
    """Denoising and magnitude losses of the motion network on one batch."""
    size, device = len(batch.tokens), batch.tokens.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=noise).to(device)

    still = draw(size) < config.static
    moving = torch.where(still[:, None, None, None, None], batch.static, batch.moving)
    flow = batch.flow * ~still[:, None, None, None, None]
    magnitude = motion_magnitude(moving.permute(0, 1, 3, 4, 2), batch.static.permute(0, 1, 3, 4, 2))
    clean = motion_latents.encode(flow, moving, batch.static, magnitude)

    fate = draw(size)
    known = fate >= config.drop_all
    worded = fate >= config.drop_all + config.drop_text
    timestep = timesteps(draw(size))
    eps = torch.randn(clean.shape, generator=noise).to(device)
    predicted = network(
        add_noise(clean, eps, timestep),
        F.pixel_unshuffle(batch.static.flatten(0, 1), 2).unflatten(0, batch.static.shape[:2]) * 2 - 1,
        timestep,
        batch.times,
        batch.camera_to_world,
        batch.tokens * worded[:, None],
        magnitude,
        known,
    ).float()

    # What lies far from the subject is warped from nothing to nothing: it matters little.
    near = motion_latents.half(torch.maximum(moving, batch.static)[:, :, 3:]).flatten(0, 1)
    near = F.max_pool2d(near, 3, 1, 1).unflatten(0, moving.shape[:2])
    weight = 0.1 + near
    error = (weight * (predicted - clean).square()).mean((1, 2, 3, 4)) / weight.mean((1, 2, 3, 4))
    true, found = latent_magnitude(clean), latent_magnitude(predicted)
    unit = 1 / (true.detach() + 0.1)  # each clip counts alike, however large its latents are
    denoising = (error * unit).mean()
    # Compared as amplitudes, so that the few largest do not rule.
    magnitudes = reconstruction_loss((found + 1e-4).sqrt(), (true + 1e-4).sqrt(), alphas_cumprod(timestep))
    reconstruction = (magnitudes * unit).mean()
    return {
        "loss": denoising + config.reconstruction_weight * reconstruction,
        "denoising": denoising.detach(),
        "reconstruction": reconstruction.detach(),
    }


def timesteps(uniform: Tensor) -> Tensor:
    """Shares of the diffusion time [B] from uniform numbers [B]: evenly spread over the batch, denser towards noise.

    Motion is decided at high noise. Every eighth sample or so is pure noise, where sampling starts.
    """
    size = len(uniform)
    spread = ((torch.arange(size, device=uniform.device) + uniform) / size).sqrt()
    return torch.where(spread > 0.9375, torch.ones_like(spread), spread.clamp_min(0.01))


LOSSES = {"motion": motion_loss}


def learning_rate(config: TrainConfig, step: int, share: float) -> float:
    """Warm-up by steps, then constant, then to zero over the last part of the planned time (`share` 0..1 of it)."""
    rise = min(1.0, (step + 1) / config.warmup)
    fall = min(1.0, max(0.0, (1 - share) / config.decay))
    return config.learning_rate * rise * fall


def has_matrix_units() -> bool:
    """Whether bf16 is faster than fp32 here."""
    return torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()


def build_network(config: TrainConfig, vocabulary: Vocabulary) -> SmallVideoNet:
    """The network of a run, freshly initialised."""
    shapes = {"motion": {"latent_channels": motion_latents.CHANNELS, "condition_channels": 16, "vector_channels": 3}}
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in config.network.items()}
    torch.manual_seed(config.seed)
    return SmallVideoNet(SmallConfig(**shapes[config.task], vocabulary=len(vocabulary.words), **sizes))


def train(config: TrainConfig, assets: Path, out: Path, *, minutes: float, save_minutes: float = 5.0) -> None:
    """Train for `minutes` from where `out` left off, or from the start."""
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_matrix_units())
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not torch.cuda.is_available())
    stream = SampleStream(assets, "train", resolution=config.resolution, seed=config.seed, families=config.families)
    vocabulary = Vocabulary(tuple(sorted({word for text in stream.captions() for word in words(text)})))
    network = build_network(config, vocabulary).to(memory_format=torch.channels_last)
    ema = build_network(config, vocabulary).requires_grad_(False).to(accelerator.device)
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, betas=tuple(config.betas), weight_decay=config.weight_decay
    )
    step = load_checkpoint(out, network, ema, optimizer)
    plain = network
    network, optimizer = accelerator.prepare(network, optimizer)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    out.mkdir(parents=True, exist_ok=True)
    log = open(out / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115
    (out / "config.json").write_text(json.dumps({**asdict(config), "vocabulary": vocabulary.words}, indent=1))

    begin = saved = time.monotonic()
    batches = stream.batches(config.batch, first=step * config.batch)
    sums: dict[str, float] = {}
    for samples in batches:
        share = (time.monotonic() - begin) / (60 * minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, share)
        batch = collate(samples, vocabulary, accelerator.device)
        noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step * ranks + rank)
        with accelerator.autocast():
            losses = LOSSES[config.task](network, batch, config, noise)
        optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        norm = accelerator.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        step += 1
        rate = min(config.ema, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(plain.parameters()), 1 - rate)
        for name, value in {**losses, "norm": norm}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if step % 50 == 0:
            means = {name: round(value / 50, 4) for name, value in sums.items()}
            sums = {}
            seconds = round(time.monotonic() - begin)
            row = {"step": step, "seconds": seconds, "lr": optimizer.param_groups[0]["lr"], **means}
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(row, flush=True)
        if time.monotonic() - saved > 60 * save_minutes:
            save_checkpoint(out, plain, ema, optimizer, step)
            saved = time.monotonic()
    save_checkpoint(out, plain, ema, optimizer, step)
