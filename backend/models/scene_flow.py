# SPDX-License-Identifier: GPL-3.0-or-later
"""The scene-flow network: where the surface of a subject has gone, from pictures of it then and at time 0.

One view per time does not tell how the subject moves in depth, nor what its far side does; how animals, people and
machines usually move does. For each frame the network compares the picture with the two sides of the subject at time
0, the one that the frame's camera sees and the one that it does not, and tells for each pixel of both how far its
surface point has moved by then, and how sure that is. Construction takes this as a guide (`splatting.guide`).
"""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.models.shipped import CARD, WEIGHTS, default_device, load_network, read_card, readable, sizes, write_model
from backend.models.small import (
    Block,
    blocks_to_channels,
    channels_first,
    channels_last,
    channels_to_blocks,
    sinusoid,
)

FOLDER = WEIGHTS / "scene-flow"
FORMAT, VERSION = "kinesplat-scene-flow", 1
RESOLUTION = 64  # pixels of the pictures that it has learned from
REACH = 4  # pixels of 1/2 and of 1/4 of the resolution, that a surface point is looked for around its place
MATCHED = (1, 2)  # sides that are matched with the frame at 1/2 and at 1/4: finely, the near one alone
SHARPNESS = 50.0  # of the matching: what a squared difference of colors of 1 counts
PICTURES = 3  # frame, near and far side at time 0; RGBA each
OUTPUTS = 8  # right, up, backward and log of the spread, of both sides
UNIT = 0.1  # of flow, at outputs of 1
SMALLEST_SPREAD, LARGEST_SPREAD = 0.005, 1.0  # of flow


@dataclass(frozen=True)
class SceneFlowConfig:
    """Sizes of the network. `widths` are channels at 1/2, 1/4, 1/8 and 1/16 of the pictures' resolution."""

    widths: tuple[int, ...] = (64, 128, 192, 256)
    encoder: tuple[int, ...] = (0, 1, 1, 1)
    decoder: tuple[int, ...] = (1, 1, 1, 2)
    embedding: int = 256
    heads: int = 4


class SceneFlowNet(nn.Module):
    """Pictures -> flow of what the near and the far pictures show, and its spread."""

    def __init__(self, config: SceneFlowConfig) -> None:
        super().__init__()
        self.config = config
        widths, width = config.widths, config.embedding
        self.frame_time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.camera = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.shared = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.entrance = nn.Conv2d(4 * 4 * PICTURES, widths[0], 3, padding=1)
        self.matches = nn.ModuleList(
            nn.Linear(sides * (2 * REACH + 1) ** 2, widths[level]) for level, sides in enumerate(MATCHED)
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(widths):
            lowest = level == len(widths) - 1
            if level:
                self.downs.append(nn.Linear(4 * widths[level - 1], channels))
                self.ups.append(nn.Linear(channels, 4 * widths[level - 1]))
            make = lambda: Block(channels, config, attention=lowest)  # noqa: E731, B023 - used at once
            self.encoder.append(nn.ModuleList(make() for _ in range(config.encoder[level])))
            join = [] if lowest else [nn.Linear(2 * channels, channels)]  # of the skip connection
            self.decoder.append(nn.ModuleList(join + [make() for _ in range(config.decoder[level])]))
        self.exit_norm = nn.LayerNorm(widths[0])
        self.exit = nn.Conv2d(widths[0], 4 * OUTPUTS, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(
        self, moving: Tensor, near: Tensor, far: Tensor, camera_to_world: Tensor, times: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Flow [B, T, 2, 3, H, W] (near, far) and its spread [B, T, 2, 1, H, W].

        Args:
            moving: [B, T, 4, H, W] premultiplied RGBA 0..1, sRGB; T frames in the order of time; H and W multiples of
                16.
            near: [B, T, 4, H, W] what the same cameras see at time 0.
            far: [B, T, 4, H, W] what cameras opposite to them see at time 0, mirrored left to right.
            camera_to_world: [B, T, 4, 4] of the frames.
            times: [B, T] 0..1.

        Flow is the movement of a surface point from time 0 to the frame's time in world axes, times 2 over its depth
        at time 0; spread is the scale of its Laplace distribution.
        """
        batch, frames = moving.shape[:2]
        moving, near, far = (pictures.flatten(0, 1) for pictures in (moving, near, far))
        given = torch.cat([moving, near, far], 1) * 2 - 1
        x = channels_last(self.entrance(functional.pixel_unshuffle(given, 2)))
        embedding = self.frame_time(sinusoid(times, 64)) + self.camera(camera_to_world.flatten(2).to(times.dtype))
        context = (self.shared(embedding).flatten(0, 1), None, None, frames)
        skips = []
        for level, blocks in enumerate(self.encoder):
            if level:
                x = self.downs[level - 1](blocks_to_channels(x))
            if level < len(self.matches):
                small = [functional.avg_pool2d(pictures, 2 << level) for pictures in (moving, near, far)]
                found = torch.cat([matches(reference, small[0]) for reference in small[1 : 1 + MATCHED[level]]], 1)
                x = x + self.matches[level](channels_last(found).to(x.dtype))
            for block in blocks:
                x = block(x, *context)
            skips.append(x)
        for level in reversed(range(len(self.encoder))):
            for part in self.decoder[level]:
                joins = isinstance(part, nn.Linear)
                x = part(torch.cat([x, skips[level]], -1)) if joins else part(x, *context)
            if level:
                x = channels_to_blocks(self.ups[level - 1](x))
        out = self.exit(channels_first(functional.silu(self.exit_norm(x))))
        out = functional.pixel_shuffle(out, 2).float().unflatten(1, (2, 4)).unflatten(0, (batch, frames))
        flow = torch.einsum("btij,btsjhw->btsihw", camera_to_world[..., :3, :3].float(), out[:, :, :, :3] * UNIT)
        spread = UNIT * (out[:, :, :, 3:] - 0.5).exp()
        return flow, spread.clamp(SMALLEST_SPREAD, LARGEST_SPREAD)


def matches(reference: Tensor, frame: Tensor) -> Tensor:  # [N, C, H, W] x 2 -> [N, (2 REACH + 1)^2, H, W]
    """How well each pixel of `reference` agrees with each of those of `frame` round its place; sums to their number.

    Row by row, from REACH pixels up and left to as many down and right.
    """
    height, width = frame.shape[2:]
    reference, padded = reference.contiguous(), functional.pad(frame, (REACH,) * 4).contiguous()
    side = 2 * REACH + 1
    costs = frame.new_zeros(len(frame), side * side, height, width)
    for place in range(side * side):
        row, column = divmod(place, side)
        for channel in range(frame.shape[1]):
            difference = reference[:, channel] - padded[:, channel, row : row + height, column : column + width]
            costs[:, place].addcmul_(difference, difference)
    return (-SHARPNESS * costs).softmax(1) * side * side


def opposite_views(cameras: np.ndarray, candidates: np.ndarray) -> np.ndarray:  # [T, 4, 4], [V, 4, 4] -> [T] int
    """Which of the candidates looks most nearly against each camera; both camera to world.

    Looked for are the same height and the other side: the camera's direction with its horizontal part turned round.
    """
    wanted = cameras[:, :3, 2] * np.array([-1.0, -1.0, 1.0])
    return np.argmax(wanted @ candidates[:, :3, 2].T, axis=1)


def available(folder: Path = FOLDER) -> bool:
    """Whether there are weights of the network; they do not come with every version of the program."""
    return (folder / CARD).is_file()


@cache
def load(folder: Path = FOLDER, device: str | None = None) -> SceneFlowNet:
    """The network in `folder`, its files checked; loaded once. `device`: None is the GPU where there is one.

    Raises:
        UserError: the files are missing, damaged or of another version.
    """
    with readable(folder):
        card = read_card(folder, FORMAT, VERSION)
        network = SceneFlowNet(SceneFlowConfig(**sizes(card["network"])))
        load_network(network, folder, card["files"]["scene_flow"], device or default_device())
        return network.to(memory_format=torch.channels_last)


def save(folder: Path, network: SceneFlowNet, about: dict) -> None:
    """Write the network and its card, which tells `about` (name, licence, training) too."""
    told = {**about, "network": asdict(network.config), "resolution": RESOLUTION}
    write_model(folder, FORMAT, VERSION, {"scene_flow": network}, told)
