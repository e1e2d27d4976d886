# SPDX-License-Identifier: GPL-3.0-or-later
"""LGM: from four views of an object to 3D Gaussians, one per pixel, in one pass.

Tang et al., "LGM: Large Multi-View Gaussian Model for High-Resolution 3D Content Creation", 2024 (arXiv 2402.05054).
VideoMV fine-tuned its large form to refine what it generates. Names of the weights are those of both.

The network's space: Y up, the first camera at (0, 0, d) looking at the origin, where the object is (`refiner_poses`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.progress import UserError

VIEWS = 4  # that see each other
FOV = 39.6  # degrees, of the cameras in training
CHANNELS = 14  # of a Gaussian: position 3, opacity 1, scales 3, quaternion 4, color 3
IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, by which views are normalised
IMAGE_STD = (0.229, 0.224, 0.225)
LARGEST = 0.1  # factor of the scales
_SKIP = math.sqrt(0.5)  # keeps the variance where two branches meet
_HEADS = 16


@dataclass(frozen=True)
class Size:
    """Levels of the network, from fine to coarse and up again; it need not come up all the way."""

    down: tuple[int, ...] = (64, 128, 256, 512, 1024, 1024)  # channels
    down_attention: tuple[bool, ...] = (False, False, False, True, True, True)
    up: tuple[int, ...] = (1024, 1024, 512, 256, 128)
    up_attention: tuple[bool, ...] = (True, True, True, False, False)


LARGE = Size()  # "big" in the public code: views of 256 x 256 pixels, 128 x 128 Gaussians from each


class Splats(NamedTuple):
    """N Gaussians for each of B objects, in the network's space."""

    means: Tensor  # [B, N, 3] -1..1
    quats: Tensor  # [B, N, 4] wxyz
    scales: Tensor  # [B, N, 3] linear standard deviations
    opacities: Tensor  # [B, N] 0..1
    colors: Tensor  # [B, N, 3] RGB 0..1


class LGM(nn.Module):
    """Views with their rays -> Gaussians.

    `rotated`: whether the weights know of rotations. LGM's first release and VideoMV normalise each component of the
    quaternions over all Gaussians, and rasterise what is left of them without normalising again: with tens of
    thousands of Gaussians that is next to no rotation (some thousandths of a degree). Their weights need False; LGM's
    later "fixrot" weights, True.
    """

    def __init__(self, size: Size = LARGE, *, rotated: bool = False) -> None:
        super().__init__()
        self.rotated = rotated
        self.unet = AsymmetricUNet(3 + 6, CHANNELS, size)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, views: Tensor) -> Splats:
        """views [B, 4, 9, H, W]: ImageNet-normalised RGB (`normalised`), then Pluecker rays (`plucker_rays`)."""
        maps = self.conv(self.unet(views.flatten(0, 1))).float()
        raw = maps.unflatten(0, views.shape[:2]).permute(0, 1, 3, 4, 2).flatten(1, 3)  # [B, N, 14]
        position, opacity, scale, rotation, color = raw.split([3, 1, 3, 4, 3], dim=-1)
        still = rotation.new_tensor([1.0, 0.0, 0.0, 0.0]).expand_as(rotation)
        return Splats(
            means=position.clamp(-1, 1),
            quats=functional.normalize(rotation, dim=-1) if self.rotated else still,
            scales=LARGEST * functional.softplus(scale),
            opacities=opacity[..., 0].sigmoid(),
            colors=0.5 + 0.5 * color.tanh(),
        )


class AsymmetricUNet(nn.Module):
    """[B V, in, H, W] -> [B V, out, H', W'], H' = H times 2 for each level up, over 2 for each level down."""

    def __init__(self, channels: int, out: int, size: Size) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, size.down[0], 3, padding=1)
        last = len(size.down) - 1
        self.down_blocks = nn.ModuleList(
            DownBlock(size.down[max(level - 1, 0)], width, attention=attention, downsample=level < last)
            for level, (width, attention) in enumerate(zip(size.down, size.down_attention, strict=True))
        )
        self.mid_block = MidBlock(size.down[-1])
        last = len(size.up) - 1
        self.up_blocks = nn.ModuleList(
            UpBlock(
                size.up[max(level - 1, 0)],
                size.down[max(-2 - level, -len(size.down))],
                width,
                attention=attention,
                upsample=level < last,
            )
            for level, (width, attention) in enumerate(zip(size.up, size.up_attention, strict=True))
        )
        self.norm_out = _norm(size.up[-1])
        self.conv_out = nn.Conv2d(size.up[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of B V views, V of an object one after another."""
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, skips)
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x, skips)
        return self.conv_out(functional.silu(self.norm_out(x)))


class DownBlock(nn.Module):
    """Two residual blocks, then half the size. What each makes is left in `skips`."""

    def __init__(self, channels: int, out: int, *, attention: bool, downsample: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList([ResidualBlock(channels, out), ResidualBlock(out, out)])
        self.attns = _attentions(out, len(self.nets), attention)
        self.downsample = nn.Conv2d(out, out, 3, stride=2, padding=1) if downsample else None

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """[B V, channels, H, W] -> [B V, out, H / 2, W / 2], or of the same size on the lowest level."""
        for net, attend in zip(self.nets, self.attns, strict=True):
            x = attend(net(x))
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """Attention between two residual blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])
        self.attns = _attentions(channels, 1, True)

    def forward(self, x: Tensor) -> Tensor:
        """[B V, C, H, W] -> the same shape."""
        return self.nets[1](self.attns[0](self.nets[0](x)))


class UpBlock(nn.Module):
    """Three residual blocks, each of which also sees the newest of `skips`, then twice the size."""

    def __init__(self, channels: int, finer: int, out: int, *, attention: bool, upsample: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            [ResidualBlock(channels + out, out), ResidualBlock(2 * out, out), ResidualBlock(out + finer, out)]
        )
        self.attns = _attentions(out, len(self.nets), attention)
        self.upsample = nn.Conv2d(out, out, 3, padding=1) if upsample else None

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """[B V, channels, H, W] -> [B V, out, 2 H, 2 W], or of the same size on the last level."""
        for net, attend in zip(self.nets, self.attns, strict=True):
            x = attend(net(torch.cat([x, skips.pop()], dim=1)))
        if self.upsample is not None:
            x = self.upsample(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = _norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B V, channels, H, W] -> [B V, out, H, W]."""
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return (y + self.shortcut(x)) * _SKIP


class MultiViewAttention(nn.Module):
    """All pixels of an object's views attend to each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.attn = Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B V, C, H, W] -> the same shape."""
        objects, (channels, height, width) = len(x) // VIEWS, x.shape[1:]
        tokens = self.norm(x).reshape(objects, VIEWS, channels, -1).transpose(2, 3).flatten(1, 2)  # [B, V H W, C]
        mixed = self.attn(tokens).unflatten(1, (VIEWS, -1)).transpose(2, 3).reshape(-1, channels, height, width)
        return (x + mixed) * _SKIP


class Attention(nn.Module):
    """Self-attention of 16 heads; one matrix makes queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, C] -> the same shape."""
        queries, keys, values = self.qkv(tokens).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def normalised(pictures: Tensor) -> Tensor:
    """Pictures [..., 3, H, W] in 0..1 as the network wants to see them."""
    mean, std = (pictures.new_tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return (pictures - mean) / std


def refiner_poses(camera_to_world: Tensor, *, as_released: bool = False) -> Tensor:  # [V, 4, 4]
    """Cameras in the network's space: all moved together so that the first stands at (0, 0, d), not turned.

    camera_to_world [V, 4, 4]: OpenGL axes, looking at the origin of any right-handed frame, the first at distance d.

    `as_released`: as VideoMV's sampling script does it. That takes its cameras, which have OpenGL axes, for ones with
    OpenCV axes and flips them, so that only the first still faces the object (issue 6 of alibaba/VideoMV shows the
    pictures). In training it does not, and training is what the weights know: so the default does not, either.
    """
    cameras = camera_to_world.float()
    if as_released:
        cameras = cameras @ torch.diag(cameras.new_tensor([1.0, -1.0, -1.0, 1.0]))
    start = torch.eye(4, device=cameras.device)
    start[2, 3] = cameras[0, :3, 3].norm()
    return start @ torch.linalg.inv(cameras[0]) @ cameras


def plucker_rays(poses: Tensor, size: int, fov: float = FOV) -> Tensor:  # [V, 6, size, size]
    """Rays through the middles of pixels as (o x d, d): o the camera's position, d the unit direction.

    poses [V, 4, 4]: camera to world, OpenGL axes. fov: degrees, both ways.
    """
    focal = 0.5 * size / math.tan(math.radians(fov) / 2)
    across = (torch.arange(size, device=poses.device) + 0.5 - size / 2) / focal
    down, right = torch.meshgrid(across, across, indexing="ij")
    local = functional.normalize(torch.stack([right, -down, -torch.ones_like(down)]), dim=0)  # [3, H, W]
    directions = torch.einsum("vij,jhw->vihw", poses[:, :3, :3].float(), local)
    origins = poses[:, :3, 3, None, None].float().expand_as(directions)
    return torch.cat([torch.linalg.cross(origins, directions, dim=1), directions], dim=1)


def refiner_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights for an `LGM`, out of LGM's own file or of VideoMV's, where they lie beside the video network's.

    Raises:
        UserError: there are none.
    """
    prefix = "lgm_big." if any(name.startswith("lgm_big.") for name in state) else ""
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    wanted = {name: value for name, value in inside.items() if name.startswith(("unet.", "conv."))}
    if "unet.conv_in.weight" not in wanted:
        raise UserError(
            "no_refiner",
            "These weights hold no Gaussian refiner.",
            "Use VideoMV's weights, or LGM's (model_fp16_fixrot.safetensors).",
        )
    return wanted


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-5)


def _attentions(channels: int, count: int, wanted: bool) -> nn.ModuleList:
    return nn.ModuleList(MultiViewAttention(channels) if wanted else nn.Identity() for _ in range(count))
