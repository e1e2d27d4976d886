# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks of published size with random weights, and how many operations a pass of them takes."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def published(device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[[], nn.Module]]:
    """How each network is made. CLIP's halves and the VAE serve VideoMV and 4DM alike: they have the same sizes."""
    return {
        "text_encoder": lambda: filled(_encoders(dtype).text, device),
        "image_encoder": lambda: filled(_encoders(dtype).image, device),
        "vae": lambda: filled(_encoders(dtype).vae, device),
        "text": partial(_videomv, "text", device, dtype),
        "image": partial(_videomv, "image", device, dtype),
        "moving": partial(_videomv, "moving", device, dtype),
        "fourdm": partial(_fourdm, device, dtype),
    }


def _videomv(name: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from backend.models.diffusion4d import Diffusion4DNet
    from backend.models.videomv import IMAGE, TEXT, VideoMV

    with torch.device("meta"):
        network = Diffusion4DNet(IMAGE) if name == "moving" else VideoMV(TEXT if name == "text" else IMAGE)
    network = filled(network.to(dtype), device)
    getattr(network, "base", network).weights_channels_last()
    return network


def _fourdm(device: torch.device, dtype: torch.dtype) -> nn.Module:
    from backend.models.fourdm import FourDM
    from backend.models.fourdm_blocks import PositionTable

    with torch.device("meta"):
        network = FourDM().to(dtype)
    network = filled(network, device)
    for module in network.modules():
        if isinstance(module, PositionTable):
            module.reset()
    return network


@cache
def _encoders(dtype: torch.dtype):
    from backend.models.encoders import empty_encoders

    return empty_encoders(dtype)


def filled(network: nn.Module, device: torch.device) -> nn.Module:
    """A network of shapes alone, now with weights of noise on `device`."""
    network.to_empty(device=device)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:  # what goes in and what comes out is equally large, as with trained weights
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.constant_(parameter, float(name.endswith("weight")))
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_floating_point():  # positions 0, 1, ...
                setattr(module, name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
    return network


def orbit_operations(config: object | None = None, frames: int = 24, pixels: int = 256) -> float:
    """Floating-point operations of one pass of the moving network for one branch, from its shapes."""
    from backend.models.videomv import IMAGE, LATENT_CHANNELS, VideoMV

    config, side = config or IMAGE, pixels // 8
    with torch.device("meta"):
        network = VideoMV(config).requires_grad_(False)
        given = {
            "x": torch.empty(1, LATENT_CHANNELS, frames, side, side),
            "t": torch.empty(1, dtype=torch.int64),
            "y": torch.empty(1, 77, config.context_width),
            "camera_data": torch.empty(1, frames, 16),
            "image": torch.empty(1, 1, config.context_width),
            "local_image": torch.empty(1, LATENT_CHANNELS, 1, side, side),
        }
    return _counted(network, given)


def fourdm_operations(config: object | None = None, frames: int = 8, pixels: int = 256, features: int = 257) -> float:
    """Floating-point operations of one step of 4DM, both branches, with the pixel view; from its shapes."""
    from backend.models.fourdm import PUBLISHED, FourDM

    config, side, views = config or PUBLISHED, pixels // 8, 5
    rows = 2 * frames * views
    with torch.device("meta"):
        network = FourDM(config).requires_grad_(False)
        given = {
            "latents": torch.empty(rows, config.latent_channels, side, side),
            "timesteps": torch.empty(rows, dtype=torch.int64),
            "text": torch.empty(rows, 77, config.context_width),
            "cameras": torch.empty(rows, config.camera_width),
            "image": torch.empty(rows, features, config.image_width),
            "pixels": torch.empty(2 * frames, config.latent_channels, side, side),
            "frames": frames,
            "views": views,
        }
    return _counted(network, given)


def _counted(network: nn.Module, given: Mapping[str, object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(**given)
    return float(counter.get_total_flops())


OPERATIONS = {"orbit": cache(orbit_operations), "fourdm": cache(fourdm_operations)}
