# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU engine: the order of the kernels, their work shared out over threads, and their place in autograd."""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backend.splatting.rasterize import compositing, projection, tiles
from backend.splatting.rasterize.arguments import Options, Scene
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


def rasterize_cpu(scene: Scene, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Colors [I, H, W, 3] and alphas [I, H, W, 1] with gradients to the scene's Gaussians; splats [I, N, 12] without.

    Raises:
        ValueError: the cameras have a skew or no focal length.
    """
    compile_all()
    Ks = scene.Ks.reshape(-1, 3, 3).numpy()  # noqa: N806
    if Ks[:, 0, 1].any():
        raise ValueError("Ks has a skew (Ks[..., 0, 1] is not 0), which the CPU rasterizer does not know.")
    intrinsics = np.stack([Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]], axis=-1)
    if not (intrinsics[:, :2] > 0).all():
        raise ValueError("The focal lengths Ks[..., 0, 0] and Ks[..., 1, 1] must be above 0.")
    viewmats = scene.viewmats.reshape(-1, 4, 4).contiguous().numpy()
    if len(viewmats) * scene.means.shape[1] >= 2**31:
        raise ValueError("2^31 or more Gaussians times images in one call: rasterize fewer images at once.")
    if scene.colors.shape[2:] != (3,) or options.render_mode != "RGB" or options.antialiased:
        raise ValueError("The CPU rasterizer draws RGB only, for now.")
    size = (options.width, options.height, options.near_plane, options.eps2d)
    view = View(viewmats, intrinsics, scene.viewmats.shape[1], *size)
    return _Rasterize.apply(scene.means, scene.quats, scene.scales, scene.opacities, scene.colors, view)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, view: View):
        gaussians = [tensor.detach().contiguous() for tensor in (means, quats, scales, opacities, colors)]
        splats = project([tensor.numpy() for tensor in gaussians], view)
        lists = list_tiles(splats, view)
        pictures, alphas, ends = (torch.from_numpy(array) for array in composite(splats, lists, view))
        table = torch.from_numpy(splats).view(len(view.viewmats), means.shape[1], SPLAT_COLUMNS)
        ctx.view, ctx.lists = view, lists
        # Autograd notices if one of these is changed before the backward pass.
        ctx.save_for_backward(*gaussians, table, ends)
        ctx.mark_non_differentiable(table)
        ctx.set_materialize_grads(False)  # no zeros for the table
        return pictures, alphas, table

    @staticmethod
    @once_differentiable
    def backward(ctx, colors_gradient, alphas_gradient, _):
        *gaussians, table, ends = (tensor.numpy() for tensor in ctx.saved_tensors)
        splats = table.reshape(-1, SPLAT_COLUMNS)
        gradients = [
            np.zeros((*ends.shape[:3], channels), np.float32) if gradient is None else gradient.contiguous().numpy()
            for gradient, channels in ((colors_gradient, 3), (alphas_gradient, 1))
        ]
        splat_gradients = composite_backward(splats, ctx.lists, ends, gradients, ctx.view)
        result = project_backward(gaussians, splats, splat_gradients, ctx.view)
        return *(torch.from_numpy(gradient) for gradient in result), None


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


def composite(splats: np.ndarray, lists: TileLists, view: View) -> list[np.ndarray]:
    """Colors [I, H, W, 3], premultiplied, alphas [I, H, W, 1], and how each pixel ended [I, H, W, 2]."""
    size = (len(view.viewmats), view.height, view.width)
    result = [np.zeros((*size, channels), np.float32) for channels in (3, 1, 2)]
    run_all(
        compositing.composite,
        [
            (splats, lists.offsets, lists.entries, chosen, lists.columns, lists.rows, *result)
            for chosen in _shares(lists)
        ],
    )
    return result


def composite_backward(
    splats: np.ndarray,
    lists: TileLists,
    ends: np.ndarray,  # [I, H, W, 2] from `composite`
    gradients: list[np.ndarray],  # of colors and alphas
    view: View,
) -> np.ndarray:  # [I * N, 9]
    """Gradients of the splats."""
    entry_gradients = np.zeros((len(lists.entries), GRADIENT_COLUMNS), np.float32)
    geometry = (lists.columns, lists.rows, ends, *gradients)
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


def describe(splats: Tensor) -> dict[str, Tensor]:
    """The projected Gaussians [..., N, 12] under gsplat's names. All numbers are 0 where nothing is visible."""
    return {
        "means2d": splats[..., MEAN_X : MEAN_Y + 1],  # [..., N, 2] pixels
        "conics": splats[..., CONIC_XX : CONIC_YY + 1],  # [..., N, 3]
        "depths": splats[..., DEPTH],  # [..., N]
        "radii": splats[..., EXTENT_X : EXTENT_Y + 1].clamp_min(0).ceil().int(),  # [..., N, 2] pixels
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
