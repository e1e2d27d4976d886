# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU engine: the order of the kernels, their work shared out over threads, and their place in autograd."""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from backend.compiled import compile_all
from backend.splatting.rasterize import compositing, harmonics, projection, tiles
from backend.splatting.rasterize.arguments import Options, Scene
from backend.splatting.rasterize.layout import (
    EXTENT_X,
    EXTENT_Y,
    FIRST_CHANNEL,
    FIRST_CHANNEL_GRADIENT,
    LEAN,
    MEAN_X,
    MEAN_Y,
    SHARP_X,
    SHARP_Y,
    TILE_HEIGHT,
    TILE_WIDTH,
)
from backend.splatting.rasterize.threads import get_threads, run_all

CHUNKS_PER_THREAD = 4  # enough that one slow chunk does not hold up the rest
SMALLEST_RANGE = 2048  # Gaussians; below, a second thread costs more than it brings


class View(NamedTuple):
    """What the kernels need beside the Gaussians."""

    viewmats: np.ndarray  # [I, 4, 4] float32, I = B * C
    intrinsics: np.ndarray  # [I, 4] float32 fx, fy, cx, cy
    cameras: int  # C
    options: Options

    @property
    def projection(self) -> tuple:
        """The arguments that both ways of the projection share."""
        size = (self.options.width, self.options.height, np.float32(self.options.eps2d), self.options.antialiased)
        return (self.viewmats, self.intrinsics, self.cameras, *size)

    @property
    def centers(self) -> np.ndarray:  # [I, 3] float32
        """Where the cameras are."""
        return np.ascontiguousarray(np.linalg.inv(self.viewmats.astype(np.float64))[:, :3, 3], np.float32)


class TileLists(NamedTuple):
    """Which splats touch which tile, front to back; see `tiles`."""

    offsets: np.ndarray  # [I * tiles + 1] int64
    entries: np.ndarray  # [offsets[-1]] int32
    columns: int
    rows: int


def rasterize_cpu(scene: Scene, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [I, H, W, channels] and alphas [I, H, W, 1] with gradients to the scene's Gaussians; splats without.

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
    view = View(viewmats, intrinsics, scene.viewmats.shape[1], options)
    return _Rasterize.apply(scene.means, scene.quats, scene.scales, scene.opacities, scene.colors, view)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, view: View):
        gaussians = [tensor.detach().contiguous() for tensor in (means, quats, scales, opacities, colors)]
        splats = project([tensor.numpy() for tensor in gaussians], view)
        lists = list_tiles(splats, view)
        pictures, alphas, ends = (torch.from_numpy(array) for array in composite(splats, lists, view))
        table = torch.from_numpy(splats).view(len(view.viewmats), means.shape[1], splats.shape[1])
        ctx.view, ctx.lists = view, lists
        # Autograd notices if one of these is changed before the backward pass.
        ctx.save_for_backward(*gaussians, table, ends)
        ctx.mark_non_differentiable(table)
        ctx.set_materialize_grads(False)  # no zeros for the table
        return pictures, alphas, table

    @staticmethod
    @once_differentiable
    def backward(ctx, pictures_gradient, alphas_gradient, _):
        *gaussians, table, ends = (tensor.numpy() for tensor in ctx.saved_tensors)
        splats = table.reshape(-1, table.shape[-1])
        channels = _channels(splats, ctx.view.options)
        gradients = [
            np.zeros((*ends.shape[:3], size), np.float32) if gradient is None else gradient.contiguous().numpy()
            for gradient, size in ((pictures_gradient, channels), (alphas_gradient, 1))
        ]
        splat_gradients = composite_backward(splats, ctx.lists, ends, gradients, ctx.view)
        result = project_backward(gaussians, splats, splat_gradients, ctx.view)
        return *(torch.from_numpy(gradient) for gradient in result), None


def project(gaussians: list[np.ndarray], view: View) -> np.ndarray:  # [I * N, columns]
    """Splats of all Gaussians in all images, with their colors."""
    *geometry, colors = gaussians
    options, count, images = view.options, colors.shape[1], len(view.viewmats)
    channels = colors.shape[-1] if options.draws_colors else 0
    splats = np.empty((images * count, FIRST_CHANNEL + channels + 1), np.float32)
    inputs = (*geometry, *view.projection, np.float32(options.near_plane))
    ranges = _ranges(count, SMALLEST_RANGE)
    run_all(projection.project, [(*inputs, start, stop, splats) for start, stop in ranges])
    if options.draws_colors and options.sh_degree is None:
        for image in range(images):
            splats[image * count : (image + 1) * count, FIRST_CHANNEL:-1] = colors[_batch(image, colors, view)]
    elif options.draws_colors:
        inputs = (geometry[0], colors, view.centers, view.cameras, options.sh_degree)
        run_all(harmonics.shade, [(*inputs, start, stop, splats) for start, stop in ranges])
    return splats


def list_tiles(splats: np.ndarray, view: View) -> TileLists:
    """The splats of every tile, front to back."""
    images = len(view.viewmats)
    count = len(splats) // images if images else 0
    columns, rows = -(-view.options.width // TILE_WIDTH), -(-view.options.height // TILE_HEIGHT)
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
    """Pictures [I, H, W, channels], premultiplied, alphas [I, H, W, 1], and how each pixel ended [I, H, W, 2]."""
    channels = _channels(splats, view.options)
    size = (len(view.viewmats), view.options.height, view.options.width)
    result = [np.empty((*size, planes), np.float32) for planes in (channels, 1, 2)]
    run_all(
        compositing.composite,
        [
            (splats, lists.offsets, lists.entries, chosen, lists.columns, lists.rows, *result)
            for chosen in _shares(lists, empty_too=True)
        ],
    )
    return result


def composite_backward(
    splats: np.ndarray,
    lists: TileLists,
    ends: np.ndarray,  # [I, H, W, 2] from `composite`
    gradients: list[np.ndarray],  # of pictures and alphas
    view: View,
) -> np.ndarray:  # [I * N, 6 + channels]
    """Gradients of the splats."""
    channels = _channels(splats, view.options)
    entry_gradients = np.empty((len(lists.entries), FIRST_CHANNEL_GRADIENT + channels), np.float32)
    geometry = (lists.columns, lists.rows, ends, *gradients)
    run_all(
        compositing.composite_backward,
        [(splats, lists.offsets, lists.entries, chosen, *geometry, entry_gradients) for chosen in _shares(lists)],
    )
    splat_gradients = np.zeros((len(splats), FIRST_CHANNEL_GRADIENT + channels), np.float32)
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
    *geometry, colors = gaussians
    options, count = view.options, colors.shape[1]
    *geometry_gradients, colors_gradient = result = [np.zeros_like(gaussian) for gaussian in gaussians]
    depth = splat_gradients.shape[1] - 1 if options.draws_depth else -1
    inputs = (*geometry, *view.projection, splats, splat_gradients)
    ranges = _ranges(count, SMALLEST_RANGE)
    run_all(
        projection.project_backward,
        [(*inputs, depth, start, stop, *geometry_gradients) for start, stop in ranges],
    )
    if options.draws_colors and options.sh_degree is None:
        of_colors = splat_gradients[:, FIRST_CHANNEL_GRADIENT : FIRST_CHANNEL_GRADIENT + colors.shape[-1]]
        for image in range(len(view.viewmats)):
            colors_gradient[_batch(image, colors, view)] += of_colors[image * count : (image + 1) * count]
    elif options.draws_colors:
        inputs = (geometry[0], colors, view.centers, view.cameras, options.sh_degree, splats, splat_gradients)
        gradients = (geometry_gradients[0], colors_gradient)
        run_all(harmonics.shade_backward, [(*inputs, start, stop, *gradients) for start, stop in ranges])
    return result


def describe(splats: Tensor) -> dict[str, Tensor]:
    """The projected Gaussians [..., N, columns] under gsplat's names. All numbers are 0 where nothing is visible."""
    sharp_x, lean, sharp_y = splats[..., SHARP_X], splats[..., LEAN], splats[..., SHARP_Y]
    return {
        "means2d": splats[..., MEAN_X : MEAN_Y + 1],  # [..., N, 2] pixels
        "conics": torch.stack([sharp_x, -lean * sharp_x, sharp_y + lean * lean * sharp_x], dim=-1),  # [..., N, 3]
        "depths": splats[..., -1],  # [..., N]
        "radii": splats[..., EXTENT_X : EXTENT_Y + 1].clamp_min(0).ceil().int(),  # [..., N, 2] pixels
    }


def _batch(image: int, tensor: np.ndarray, view: View) -> int:
    """Which part of a tensor [B or 1, ...] an image is about."""
    return min(image // view.cameras, len(tensor) - 1)


def _channels(splats: np.ndarray, options: Options) -> int:
    """How many channels are drawn: those of the colors and, if asked for, the depth behind them."""
    return splats.shape[1] - FIRST_CHANNEL - (not options.draws_depth)


def _ranges(count: int, smallest: int) -> list[tuple[int, int]]:
    """0..count cut into ranges for the threads."""
    pieces = 1 if get_threads() == 1 else min(CHUNKS_PER_THREAD * get_threads(), count // smallest)
    edges = np.linspace(0, count, max(pieces, 1) + 1).astype(int).tolist()
    return list(itertools.pairwise(edges))


def _shares(lists: TileLists, empty_too: bool = False) -> list[np.ndarray]:
    """The tiles, dealt to the threads longest list first, so that the shares take equally long."""
    lengths = np.diff(lists.offsets)
    chosen = np.arange(len(lengths), dtype=np.int32) if empty_too else np.flatnonzero(lengths).astype(np.int32)
    if get_threads() == 1:
        return [chosen]
    chosen = chosen[np.argsort(-lengths[chosen], kind="stable")]
    pieces = CHUNKS_PER_THREAD * get_threads()
    return [np.ascontiguousarray(chosen[i::pieces]) for i in range(min(pieces, len(chosen)))]
