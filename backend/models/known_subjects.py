# SPDX-License-Identifier: GPL-3.0-or-later
"""Still subjects that the model knows, those of its training set: a text calls them up where no network makes any.

Learning to make subjects of words takes more computing than the shipped weights have seen, and a known subject that is
whole beats a learned one that is not.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.models.mesh_raster import rasterize_views, stacked
from backend.models.text import words, worth
from backend.models.volume import AMBIENT, DIFFUSE, LIGHT
from blender_addon.contract.orbit import Cameras

LATER = 0.3  # worth of a word that follows what the subject does


@dataclass(frozen=True)
class Mesh:
    """A still subject in clip space, with its look."""

    positions: np.ndarray  # [V, 3] float32
    normals: np.ndarray  # [V, 3] float32
    uv: np.ndarray  # [V, 2] float32, v downwards
    faces: np.ndarray  # [F, 3] int32
    colors: np.ndarray  # [F, 3] float32, sRGB 0..1
    texture: np.ndarray  # [F] int32: index into `textures`, by which the color is multiplied, or -1
    textures: np.ndarray  # [N, h, w, 3] float32
    texture_sizes: np.ndarray  # [N, 2] int32 (h, w)

    def pictures(self, cameras: Cameras) -> np.ndarray:  # [V, H, W, 4] float32, premultiplied
        """What cameras of one focal length see, in the light of the add-on's stage."""
        size, views = cameras.width, len(cameras.times)
        rgba, motion = np.empty((views, size, size, 4), np.float32), np.empty((views, size, size, 3), np.float32)
        positions, normals = (np.tile(values, (views, 1, 1)) for values in (self.positions, self.normals))
        light = np.tile(np.float32([*(np.float32(LIGHT) / np.linalg.norm(LIGHT)), AMBIENT, DIFFUSE]), (views, 1))
        viewmats = np.ascontiguousarray(cameras.viewmats(), np.float32)
        poses = (positions, normals, self.positions, viewmats, cameras.Ks[0, 0, 0])
        look = (self.faces, self.colors, self.uv, self.texture, self.textures, self.texture_sizes)
        rasterize_views(*poses, *look, light, size, rgba, motion)
        return rgba


@dataclass(frozen=True)
class KnownSubjects:
    """The subjects of the training set, their meshes one after the other."""

    subjects: tuple[str, ...]  # what each is, such as "red fox"
    starts: Tensor  # [K + 1, 2] int64: vertices and faces of subject k are those from starts[k] to starts[k + 1]
    vertices: Tensor  # [V, 3] float16, clip space
    normals: Tensor  # [V, 3] int8, times 127
    uv: Tensor  # [V, 2] float16
    faces: Tensor  # [F, 3] int16, indices into the subject's own vertices
    colors: Tensor  # [F, 3] uint8
    texture: Tensor  # [F] int16: number of an image, or -1
    images: Tensor  # [N, 3] int64: first texel, height and width of each
    texels: Tensor  # [P, 3] uint8

    def mesh(self, subject: int) -> Mesh:
        """One subject."""
        (v0, f0), (v1, f1) = self.starts[subject].tolist(), self.starts[subject + 1].tolist()
        used, texture = np.unique(self.texture[f0:f1].numpy(), return_inverse=True)
        plain = used[0] < 0
        images = [self._image(int(number)) for number in used[int(plain) :]]
        textures, sizes = stacked(images)
        return Mesh(
            positions=self.vertices[v0:v1].float().numpy(),
            normals=(self.normals[v0:v1].float() / 127).numpy(),
            uv=self.uv[v0:v1].float().numpy(),
            faces=self.faces[f0:f1].int().numpy(),
            colors=(self.colors[f0:f1].float() / 255).numpy(),
            texture=(texture - plain).astype(np.int32),
            textures=textures,
            texture_sizes=sizes,
        )

    def _image(self, number: int) -> np.ndarray:  # [h, w, 3] float32
        start, height, width = self.images[number].tolist()
        return (self.texels[start : start + height * width].float() / 255).reshape(height, width, 3).numpy()

    def nearest(self, prompt: str, seed: int) -> int | None:
        """The subject that a prompt names; `seed` chooses among several that fit equally. None: it names none.

        Rare words count more ("clown" in "clown fish"), those after what the subject does less ("a knight attacks with
        a sword" is no sword fish); words of the subject that the prompt lacks count against it.
        """
        named = [set(words(subject)) for subject in self.subjects]
        value = worth(named)
        asked: dict[str, float] = {}
        share = 1.0
        for word in words(prompt):
            if word in value:
                asked.setdefault(word, share)
            elif asked:
                share = LATER
        scores = np.array(
            [
                sum(asked[word] * value[word] for word in subject & asked.keys())
                - 0.3 * sum(value[word] for word in subject - asked.keys())
                if subject & asked.keys()
                else -np.inf
                for subject in named
            ]
        )
        if not np.isfinite(scores.max()):
            return None
        best = np.flatnonzero(scores > scores.max() - 1e-6)
        return int(best[seed % len(best)])


def remember(subjects: list[str], meshes: list[Mesh]) -> KnownSubjects:
    """A memory of meshes of fewer than 32,768 vertices each; images that several have are kept once."""
    numbers: dict[tuple[int, int, bytes], int] = {}
    texels, images, textures = [np.zeros((0, 3), np.uint8)], [], []
    for mesh in meshes:
        known = [-1]
        for image, (height, width) in zip(mesh.textures, mesh.texture_sizes, strict=True):
            content = np.rint(255 * image[:height, :width]).astype(np.uint8).reshape(-1, 3)
            number = numbers.setdefault((height, width, content.tobytes()), len(images))
            if number == len(images):
                images.append((sum(map(len, texels)), height, width))
                texels.append(content)
            known.append(number)
        textures.append(torch.from_numpy(np.array(known, np.int16)[mesh.texture + 1]))

    def joined(name: str) -> Tensor:
        return torch.cat([torch.from_numpy(getattr(mesh, name)) for mesh in meshes])

    counts = [(len(mesh.positions), len(mesh.faces)) for mesh in meshes]
    return KnownSubjects(
        subjects=tuple(subjects),
        starts=torch.tensor([(0, 0), *counts]).cumsum(0),
        vertices=joined("positions").half(),
        normals=(joined("normals") * 127).round().to(torch.int8),
        uv=joined("uv").half(),
        faces=joined("faces").to(torch.int16),
        colors=(joined("colors").clamp(0, 1) * 255).round().byte(),
        texture=torch.cat(textures),
        images=torch.tensor(images, dtype=torch.int64).reshape(-1, 3),
        texels=torch.from_numpy(np.concatenate(texels)),
    )
