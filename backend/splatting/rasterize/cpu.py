# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU engine: the order of the kernels, their work shared out over threads, and their place in autograd."""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backend.splatting.rasterize import compositing, projection, tiles
from backend.splatting.rasterize.arguments import Scene
from backend.splatting.rasterize.compiled import compile_all
from backend.splatting.rasterize.layout import (
    CONIC_XX,
    CONIC_YY,
    DEPTH,
    EXTENT_X,
    EXTENT_Y,
    GRADIENT_COLUMNS,
    MEAN_X,
    MEAN_Y,
    SPLAT_COLUMNS,
    TILE,
)
from backend.splatting.rasterize.threads import get_threads, run_all

CHUNKS_PER_THREAD = 4  # enough that one slow chunk does not hold up the rest
SMALLEST_RANGE = 2048  # Gaussians; below, a second thread costs more than it brings


class View(NamedTuple):
    """What the kernels need beside the Gaussians."""

    viewmats: np.ndarray  # [I, 4, 4] float32, I = B * C
    intrinsics: np.ndarray  # [I, 4] float32 fx, fy, cx, cy
    cameras: int  # C
    width: int
    height: int
    near_plane: float
    eps2d: float


class TileLists(NamedTuple):
    """Which splats touch which tile, front to back; see `tiles`."""

    offsets: np.ndarray  # [I * tiles + 1] int64
    entries: np.ndarray  # [offsets[-1]] int32
    columns: int
    rows: int


def rasterize_cpu(
    scene: Scene, width: int, height: int, near_plane: float, eps2d: float
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Colors [I, H, W, 3], alphas [I, H, W, 1] and the splats [I, N, 12], with gradients to the scene's Gaussians."""
    compile_all()
    cameras = scene.viewmats.shape[1]
    Ks = scene.Ks.reshape(-1, 3, 3).numpy()  # noqa: N806
    if Ks[:, 0, 1].any():
        raise ValueError("Ks has a skew (Ks[..., 0, 1] is not 0), which the CPU rasterizer does not know.")
    intrinsics = np.stack([Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]], axis=-1)
    if not (intrinsics[:, :2] > 0).all():
        raise ValueError("The focal lengths Ks[..., 0, 0] and Ks[..., 1, 1] must be above 0.")
    viewmats = scene.viewmats.reshape(-1, 4, 4).contiguous().numpy()
    view = View(viewmats, intrinsics, cameras, width, height, near_plane, eps2d)
    if len(viewmats) * scene.means.shape[1] >= 2**31:
        raise ValueError("More than 2^31 Gaussians times images in one call: rasterize fewer images at once.")
    gaussians = (scene.means, scene.quats, scene.scales, scene.opacities, scene.colors)
    kept: list[np.ndarray] = []
    colors, alphas = _Rasterize.apply(*gaussians, view, kept)
    return colors, alphas, kept[0].reshape(len(viewmats), -1, SPLAT_COLUMNS)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, view: View, kept: list[np.ndarray]):
        tensors = [tensor.detach().contiguous() for tensor in (means, quats, scales, opacities, colors)]
        splats = project([tensor.numpy() for tensor in tensors], view)
        lists = list_tiles(splats, view)
        pictures = composite(splats, lists, view)
        kept.append(splats)
        ctx.save_for_backward(*tensors)  # autograd then notices if they are changed before the backward pass
        ctx.kept = view, splats, lists, pictures
        return tuple(torch.from_numpy(picture) for picture in pictures)

    @staticmethod
    @once_differentiable
    def backward(ctx, colors_gradient, alphas_gradient):
        view, splats, lists, pictures = ctx.kept
        gaussians = [tensor.numpy() for tensor in ctx.saved_tensors]
        gradients = [gradient.contiguous().numpy() for gradient in (colors_gradient, alphas_gradient)]
        splat_gradients = composite_backward(splats, lists, pictures, gradients, view)
        result = project_backward(gaussians, splats, splat_gradients, view)
        return *(torch.from_numpy(gradient) for gradient in result), None, None


def project(gaussians: list[np.ndarray], view: View) -> np.ndarray:  # [I * N, 12]
    """Splats of all Gaussians in all images."""
    count = gaussians[0].shape[1]
    splats = np.empty((len(view.viewmats) * count, SPLAT_COLUMNS), np.float32)
    size = (view.width, view.height, np.float32(view.near_plane), np.float32(view.eps2d))
    inputs = (*gaussians, view.viewmats, view.intrinsics, view.cameras, *size)
    run_all(projection.project, [(*inputs, start, stop, splats) for start, stop in _ranges(count, SMALLEST_RANGE)])
    return splats


def list_tiles(splats: np.ndarray, view: View) -> TileLists:
    """The splats of every tile, front to back."""
    images = len(view.viewmats)
    count = len(splats) // images if images else 0
    columns, rows = -(-view.width // TILE), -(-view.height // TILE)
    order = np.empty((images, count), np.int32)
    visible = np.empty(images, np.int32)
    counts = np.zeros(images * columns * rows, np.int64)
    bits = splats.view(np.uint32)
    ranges = _ranges(images, 1)
    run_all(
        tiles.sort_and_count,
        [(splats, bits, count, columns, rows, start, stop, order, visible, counts) for start, stop in ranges],
    )
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    entries = np.empty(offsets[-1], np.int32)
    run_all(
        tiles.fill,
        [(splats, columns, rows, start, stop, order, visible, offsets, entries) for start, stop in ranges],
    )
    return TileLists(offsets, entries, columns, rows)


def composite(splats: np.ndarray, lists: TileLists, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Colors [I, H, W, 3], premultiplied, and alphas [I, H, W, 1]."""
    colors = np.zeros((len(view.viewmats), view.height, view.width, 3), np.float32)
    alphas = np.zeros((len(view.viewmats), view.height, view.width, 1), np.float32)
    run_all(
        compositing.composite,
        [
            (splats, lists.offsets, lists.entries, chosen, lists.columns, lists.rows, colors, alphas)
            for chosen in _shares(lists)
        ],
    )
    return colors, alphas


def composite_backward(
    splats: np.ndarray,
    lists: TileLists,
    pictures: tuple[np.ndarray, np.ndarray],
    gradients: list[np.ndarray],  # of the pictures
    view: View,
) -> np.ndarray:  # [I * N, 9]
    """Gradients of the splats."""
    entry_gradients = np.zeros((len(lists.entries), GRADIENT_COLUMNS), np.float32)
    geometry = (lists.columns, lists.rows, *pictures, *gradients)
    run_all(
        compositing.composite_backward,
        [(splats, lists.offsets, lists.entries, chosen, *geometry, entry_gradients) for chosen in _shares(lists)],
    )
    splat_gradients = np.zeros((len(splats), GRADIENT_COLUMNS), np.float32)
    first = lists.offsets[:: lists.columns * lists.rows]  # of each image, and the end
    run_all(
        tiles.scatter,
        [
            (entry_gradients, lists.entries, int(first[start]), int(first[stop]), splat_gradients)
            for start, stop in _ranges(len(view.viewmats), 1)
        ],
    )
    return splat_gradients


def project_backward(
    gaussians: list[np.ndarray], splats: np.ndarray, splat_gradients: np.ndarray, view: View
) -> list[np.ndarray]:
    """Gradients of means, quats, scales, opacities and colors, of their shapes."""
    count = gaussians[0].shape[1]
    result = [np.zeros_like(gaussian) for gaussian in gaussians]
    inputs = (*gaussians, view.viewmats, view.intrinsics, view.cameras, view.width, view.height)
    run_all(
        projection.project_backward,
        [(*inputs, splats, splat_gradients, start, stop, *result) for start, stop in _ranges(count, SMALLEST_RANGE)],
    )
    return result


def describe(splats: np.ndarray, batch: torch.Size, cameras: int) -> dict[str, Tensor]:
    """The projected Gaussians under gsplat's names, without gradients. Radii are 0 where nothing is visible."""
    splats = splats.reshape(*batch, cameras, -1, SPLAT_COLUMNS)
    seen = splats[..., EXTENT_X : EXTENT_Y + 1] >= 0  # the other columns are not written where this is False
    table = torch.from_numpy(np.where(seen[..., :1], splats, 0))
    return {
        "means2d": table[..., MEAN_X : MEAN_Y + 1],  # [..., C, N, 2] pixels
        "conics": table[..., CONIC_XX : CONIC_YY + 1],  # [..., C, N, 3]
        "depths": table[..., DEPTH],  # [..., C, N]
        "radii": table[..., EXTENT_X : EXTENT_Y + 1].ceil().int(),  # [..., C, N, 2] pixels
    }


def _ranges(count: int, smallest: int) -> list[tuple[int, int]]:
    """0..count cut into ranges for the threads."""
    pieces = 1 if get_threads() == 1 else min(CHUNKS_PER_THREAD * get_threads(), count // smallest)
    edges = np.linspace(0, count, max(pieces, 1) + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def _shares(lists: TileLists) -> list[np.ndarray]:
    """The tiles that have splats, dealt to the threads longest first, so that the shares take equally long."""
    lengths = np.diff(lists.offsets)
    chosen = np.flatnonzero(lengths).astype(np.int32)
    if get_threads() == 1:
        return [chosen]
    chosen = chosen[np.argsort(-lengths[chosen], kind="stable")]
    pieces = CHUNKS_PER_THREAD * get_threads()
    return [np.ascontiguousarray(chosen[i::pieces]) for i in range(min(pieces, len(chosen)))]
