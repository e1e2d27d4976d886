# SPDX-License-Identifier: GPL-3.0-or-later
"""Still subjects as colored volumes: the static branch of kinesplat-small.

The published static model denoises 24 views of a video network. At this size that gives 24 blurred guesses that do not
agree. Here one volume is denoised and seen from all sides: every view shows the same subject, and a picture of the
first view is laid into the volume along its rays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.models.small import Attention, TextEncoder, sinusoid
from backend.models.video_blocks import zeroed

VOXELS = 48  # along each axis
HALF_SIDE = 0.56  # of the volume, in clip space: the subject's longest side is 1
RAY_STEPS = 112
FOCAL = 1 / 0.36  # focal length / half the width, of 39.6 degrees
EDGE = (0.35, 0.65)  # coverage of a voxel at which it begins to be seen, and is opaque
AMBIENT, DIFFUSE = 0.75, 0.25  # the light of the stage on which the add-on renders
LIGHT = (0.0, -0.89, -0.45)  # towards it, in camera axes (x right, y down, z forward)


@dataclass(frozen=True)
class VolumeConfig:
    """Sizes of the network. `widths` are channels at 1/2, 1/4 and 1/8 of the volume's resolution."""

    vocabulary: int  # words
    widths: tuple[int, int, int] = (48, 128, 256)
    blocks: int = 4  # at the lowest level
    embedding: int = 256
    text_width: int = 192
    heads: int = 4


class VolumeNet(nn.Module):
    """Noisy volume, text, first view -> clean volume (x0-prediction): a 3D U-Net, with attention at the bottom."""

    def __init__(self, config: VolumeConfig) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.widths
        width = config.embedding
        self.time = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.text = TextEncoder(config.vocabulary, config.text_width)
        self.text_pooled = nn.Linear(config.text_width, width)
        self.shared = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.entrance = Conv3d(8 * 4 + 8 * 4 + 1 + 3, fine)  # volume, first view, whether there is one, place
        self.down_fine = nn.Linear(8 * fine, middle)
        self.encoder = Block3d(middle, width)
        self.down_middle = nn.Linear(8 * middle, coarse)
        self.place = nn.Parameter(torch.zeros((VOXELS // 8) ** 3, coarse))
        self.lowest = nn.ModuleList(TokenBlock(coarse, config) for _ in range(config.blocks))
        self.up_middle = nn.Linear(coarse, 8 * middle)
        self.join_middle = nn.Linear(2 * middle, middle)
        self.decoder = Block3d(middle, width)
        self.up_fine = nn.Linear(middle, 8 * fine)
        self.join_fine = nn.Linear(2 * fine, fine)
        self.last = Block3d(fine, width)
        self.exit_norm = nn.LayerNorm(fine)
        self.exit = zeroed(nn.Linear(fine, 8 * 4))

    def forward(self, latents: Tensor, first: Tensor, shown: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Predict the clean volume.

        latents [B, N, N, N, 4] (z, y, x; -1..1): noisy; first [B, 4, H, W]: premultiplied RGBA of the camera at azimuth
        0, elevation 0, distance 2; shown [B]: 1 where there is one, else 0; timestep [B]: share of the diffusion time;
        tokens [B, L].
        """
        text, absent = self.text(tokens)
        embedding = self.shared(self.time(sinusoid(timestep, 128)) + self.text_pooled(text[:, 0]))
        given = shown[:, None, None, None, None]
        rays = (along_rays(first) * 2 - 1) * given
        half = VOXELS // 2
        place = torch.stack(
            torch.meshgrid(*[torch.linspace(-1, 1, half, device=latents.device)] * 3, indexing="ij"), -1
        )
        sides = [given.expand(-1, half, half, half, -1), place.expand(len(latents), -1, -1, -1, -1)]
        x0 = self.entrance(torch.cat([to_channels(latents), to_channels(rays), *sides], -1))
        x1 = self.encoder(self.down_fine(to_channels(x0)), embedding)
        x2 = self.down_middle(to_channels(x1))
        shape = x2.shape
        x2 = x2.flatten(1, 3) + self.place
        for block in self.lowest:
            x2 = block(x2, embedding, text, absent)
        x1 = self.join_middle(torch.cat([from_channels(self.up_middle(x2.reshape(shape))), x1], -1))
        x1 = self.decoder(x1, embedding)
        x0 = self.last(self.join_fine(torch.cat([from_channels(self.up_fine(x1)), x0], -1)), embedding)
        return from_channels(self.exit(functional.silu(self.exit_norm(x0))))


class Conv3d(nn.Conv3d):
    """A 3 x 3 x 3 convolution of [B, D, H, W, C]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return super().forward(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class Block3d(nn.Module):
    """Two convolutions, scaled and shifted by the embedding."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(channels, elementwise_affine=False)
        self.film = nn.Linear(embedding, 2 * channels)
        self.conv_in = Conv3d(channels, channels)
        self.norm_out = nn.LayerNorm(channels)
        self.conv_out = zeroed(Conv3d(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, D, H, W, C]; embedding [B, E]."""
        scale, shift = self.film(embedding)[:, None, None, None].chunk(2, -1)
        hidden = self.conv_in(functional.silu(torch.addcmul(shift, self.norm_in(x), 1 + scale)))
        return x + self.conv_out(functional.silu(self.norm_out(hidden)))


class TokenBlock(nn.Module):
    """Attention over all places and the words, then a layer of each place alone."""

    def __init__(self, channels: int, config: VolumeConfig) -> None:
        super().__init__()
        self.attention = Attention(channels, config)
        self.norm_in = nn.LayerNorm(channels, elementwise_affine=False)
        self.film = nn.Linear(config.embedding, 2 * channels)
        self.layers = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.SiLU(), zeroed(nn.Linear(4 * channels, channels))
        )

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor, absent: Tensor) -> Tensor:
        """x [B, L, C]; embedding [B, E]; text, absent as `TextEncoder` gives them."""
        x = self.attention(x, text, absent, 1)
        scale, shift = self.film(embedding)[:, None].chunk(2, -1)
        return x + self.layers(torch.addcmul(shift, self.norm_in(x), 1 + scale))


def to_channels(x: Tensor) -> Tensor:
    """[B, D, H, W, C] -> [B, D/2, H/2, W/2, 8 C]."""
    x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)


def from_channels(x: Tensor) -> Tensor:
    """The reverse of `to_channels`."""
    x = x.unflatten(4, (2, 2, 2, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def voxel_centers(device: torch.device) -> Tensor:  # [N, N, N, 3] (x, y, z), indexed z, y, x
    """The middle of each voxel, in clip space."""
    axis = ((torch.arange(VOXELS, device=device) + 0.5) / VOXELS * 2 - 1) * HALF_SIDE
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], -1)


def along_rays(first: Tensor) -> Tensor:  # [B, 4, H, W] -> [B, N, N, N, 4]
    """The picture of the first camera (at -Y, distance 2) laid along its rays."""
    centers = voxel_centers(first.device)
    depth = 2 + centers[..., 1]
    grid = torch.stack([centers[..., 0] / depth, -centers[..., 2] / depth], -1) * FOCAL
    size = len(first)
    flat = grid.reshape(1, -1, VOXELS, 2).expand(size, -1, -1, -1)
    sampled = functional.grid_sample(first.float(), flat, align_corners=False)
    return sampled.reshape(size, 4, VOXELS, VOXELS, VOXELS).permute(0, 2, 3, 4, 1)


@torch.no_grad()
def render_volume(volume: Tensor, camera_to_world: Tensor, focal: Tensor, size: int) -> Tensor:  # [T, 4, size, size]
    """Pictures of a volume [N, N, N, 4] (premultiplied RGBA, 0..1), lit as on the add-on's stage.

    camera_to_world [T, 4, 4]: OpenGL axes; focal [T]: focal length / half the width. Premultiplied RGBA.
    """
    device = volume.device
    coverage = volume[..., 3]
    padded = functional.pad(coverage[None, None], [1] * 6)
    slope = torch.stack(
        [
            padded[0, 0, 1:-1, 1:-1, 2:] - padded[0, 0, 1:-1, 1:-1, :-2],
            padded[0, 0, 1:-1, 2:, 1:-1] - padded[0, 0, 1:-1, :-2, 1:-1],
            padded[0, 0, 2:, 1:-1, 1:-1] - padded[0, 0, :-2, 1:-1, 1:-1],
        ],
        -1,
    )
    # Normals of single voxels are stairs: they are smoothed.
    slope = functional.avg_pool3d(slope.permute(3, 0, 1, 2)[None], 3, 1, 1)[0]
    looks = torch.cat([coverage[None], volume[..., :3].permute(3, 0, 1, 2), slope])[None].float()  # [1, 7, N, N, N]
    solid = looks[:, :1].contiguous()
    axis = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    reach = HALF_SIDE * 3**0.5
    depths = 2 - reach + 2 * reach * (torch.arange(RAY_STEPS, device=device) + 0.5) / RAY_STEPS
    frames = []
    for pose, k in zip(camera_to_world.to(device).float(), focal.to(device).float(), strict=True):
        rays = torch.stack([u / k, -v / k, -torch.ones_like(u)], -1) @ pose[:3, :3].T  # one unit of depth each
        places = (pose[:3, 3] + rays[None] * depths[:, None, None, None]) / HALF_SIDE  # [S, h, w, 3]
        covered = functional.grid_sample(solid, places[None], align_corners=False)[0, 0]
        alpha = ((covered - EDGE[0]) / (EDGE[1] - EDGE[0])).clamp(0, 1)
        weights = alpha * torch.cumprod(torch.cat([torch.ones_like(alpha[:1]), 1 - alpha[:-1]]), 0)
        shown = weights.flatten().nonzero()[:, 0]  # few: the rest is air, or lies behind
        seen = functional.grid_sample(looks, places.view(-1, 3)[shown][None, None, None], align_corners=False)
        seen = seen[0, :, 0, 0]  # [7, P]
        normals = -functional.normalize(seen[4:], dim=0)
        towards = pose[:3, :3] @ (pose.new_tensor(LIGHT) * pose.new_tensor([1.0, -1.0, -1.0]))
        lit = AMBIENT + DIFFUSE * (normals * towards[:, None]).sum(0).clamp_min(0)
        color = (seen[1:4] / seen[0].clamp_min(EDGE[0])).clamp(0, 1)
        shaded = color.new_zeros(3, weights.numel())  # to be added in the same order every time, on a GPU as well
        shaded[:, shown] = color * lit * weights.flatten()[shown]
        frames.append(torch.cat([shaded.view(3, *weights.shape).sum(1), weights.sum(0)[None]]))
    return torch.stack(frames).clamp(0, 1)
