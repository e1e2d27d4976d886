# SPDX-License-Identifier: GPL-3.0-or-later
"""First guesses of still subjects, without a network: a picture is inflated, a text calls up a known subject.

They are what a text or image request starts from where the weights have no static network: learning volumes well takes
more computing than the shipped weights have seen, and a rough guess that is whole beats a learned one that is not.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.models.inflation import FLATNESS, thickness
from backend.models.text import words, worth
from backend.models.volume import HALF_SIDE, VOXELS, voxel_centers

FOCAL = 1 / 0.36  # per half width, of 39.6 degrees


@dataclass(frozen=True)
class Memory:
    """The subjects of the training set as volumes, of which only the occupied voxels are kept."""

    subjects: tuple[str, ...]  # what each is, such as "red fox"
    starts: Tensor  # [K + 1] int64: the voxels of subject k are those from starts[k] to starts[k + 1]
    places: Tensor  # [M] int32: index into a volume's N x N x N voxels (z, y, x)
    colors: Tensor  # [M, 3] uint8

    def volume(self, subject: int) -> Tensor:  # [N, N, N, 4] premultiplied RGBA, 0..1
        """One subject."""
        span = slice(int(self.starts[subject]), int(self.starts[subject + 1]))
        volume = torch.zeros(VOXELS**3, 4)
        volume[self.places[span].long(), :3] = self.colors[span].float() / 255
        volume[self.places[span].long(), 3] = 1
        return volume.reshape(VOXELS, VOXELS, VOXELS, 4)

    def nearest(self, prompt: str, seed: int) -> int | None:
        """The subject that a prompt names; `seed` chooses among several that fit equally. None: it names none.

        Rare words count more ("clown" in "clown fish"); words of the subject that the prompt lacks count against it.
        """
        named = [set(words(subject)) for subject in self.subjects]
        asked = set(words(prompt))
        value = worth(named)
        scores = np.array(
            [
                sum(value[word] for word in subject & asked) - 0.3 * sum(value[word] for word in subject - asked)
                if subject & asked
                else -np.inf
                for subject in named
            ]
        )
        if not np.isfinite(scores.max()):
            return None
        best = np.flatnonzero(scores > scores.max() - 1e-6)
        return int(best[seed % len(best)])


def remember(subjects: list[str], volumes: list[np.ndarray]) -> Memory:
    """A memory of volumes [N, N, N, 4] premultiplied RGBA, 0..1."""
    places, colors, starts = [], [], [0]
    for volume in volumes:
        flat = torch.from_numpy(volume).reshape(-1, 4)
        at = torch.nonzero(flat[:, 3] > 0.5)[:, 0]
        places.append(at.int())
        colors.append((flat[at, :3].clamp(0, 1) * 255).round().byte())
        starts.append(starts[-1] + len(at))
    return Memory(tuple(subjects), torch.tensor(starts), torch.cat(places), torch.cat(colors))


def inflate(first: Tensor) -> Tensor:  # [4, H, W] -> [N, N, N, 4]
    """A volume whose outline, seen by the first camera (at -Y, distance 2), is that of a picture, and round in depth.

    first: premultiplied RGBA, 0..1, H = W. Its far side has the colors of its near side. The volume is opaque, however
    faint the picture.
    """
    outline = first[3] > 0.5 * first[3].max()  # a ghost, or a line that fills no whole pixel, has one, too
    depth = torch.from_numpy(thickness(outline.numpy()))  # in pixels
    size = first.shape[-1]
    centers = voxel_centers(first.device)
    distance = 2 + centers[..., 1]
    column = ((centers[..., 0] / distance * FOCAL + 1) / 2 * size).long()
    row = ((-centers[..., 2] / distance * FOCAL + 1) / 2 * size).long()
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    column, row = column.clamp(0, size - 1), row.clamp(0, size - 1)
    pixel = 2 * 2 / FOCAL / size  # the side of a pixel at distance 2
    occupied = inside & (centers[..., 1].abs() <= (FLATNESS * pixel * depth[row, column]).clamp_min(HALF_SIDE / VOXELS))
    occupied &= depth[row, column] > 0
    color = (first[:3] / first[3:].clamp_min(1e-3)).clamp(0, 1)[:, row, column].permute(1, 2, 3, 0)
    return torch.cat([color, torch.ones_like(color[..., :1])], -1) * occupied[..., None]
