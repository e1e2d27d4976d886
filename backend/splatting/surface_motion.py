# SPDX-License-Identifier: GPL-3.0-or-later
"""The one movement of a surface that scene flow in the pictures of an orbit tells.

Each picture of an orbit shows another moment from another side. A network that draws their scene flow errs in each of
them on its own: a limb that is right in one picture is torn in the next. But all of them show one surface, which moves
steadily, and rigidly in the small. The movement that comes nearest to all flows at once is found by least squares:
control points shifted along series in time, held together as rigidly as possible (Sorkine and Alexa 2007: turns of the
neighbourhoods and shifts in alternation), with flows far off the others counting less.

It says where points are that no picture shows, and its own pictures of flow fit together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from backend.splatting.control_points import ControlPoints, make_control_points
from backend.splatting.motion import TimeBasis
from backend.splatting.observations import Observations
from backend.splatting.sight import unhidden
from backend.splatting.spread import spread_samples
from blender_addon.contract.surface import SurfaceSamples

POINTS, CONTROL_POINTS = 3_000, 128
HARMONICS = 5  # whole cycles of the fastest function of time
RIGIDITY = 1.0  # against stretched neighbourhoods, beside mean square distances from the flow
SPECTRAL = 1e-3  # against fast terms, by the fourth power of their frequency
RIDGE = 1e-4  # against what nothing shows
STIFFNESS = 3.0  # of `unstretched`: rigidity beside nearness
UNSTRETCHED_ROUNDS = 3
LARGEST_STEP = 1.25  # by which a movement grows before it is held together
UNTURNED = 0.03  # of a neighbourhood's edges, for no turn: what lies in a line tells none about itself
OUTLIER = 0.05  # clip space; flow so far off the movement counts half
SIGHT_CELLS = 24  # to a picture's side, of the depth picture that tells what is hidden
SIGHT_DEPTH = 0.06  # clip space; what lies deeper behind what a camera sees first is hidden from it
GRAZING = 0.4  # least weight of a visible point, seen edge-on
FEW, MANY = 0.04, 0.12  # of the points outside a picture: with more, the whole travels less, or all moves less
EDGE = 0.97  # of the picture
COVERED = 0.1  # of the weight of the best covered pixel, from which on a pixel shows the surface


@dataclass(frozen=True)
class Surface:
    """Points on a subject's surface at time 0, what moves them, and the cameras round them. Clip space, float32."""

    points: Tensor  # [N, 3]
    normals: Tensor  # [N, 3]
    control: ControlPoints
    weights: csr_matrix  # [N, B] of the control points, sum 1
    pairs: csr_matrix  # [B B, N] products of a point's weights
    viewmats: Tensor  # [T, 4, 4] world to camera, OpenCV axes
    focal: Tensor  # [T] focal length / half the picture's width
    functions: Tensor  # [T, J] of time, at the times of the motion pictures
    prior: Tensor  # [J B, J B] what series of shifts cost in themselves, of which `_turned` is the linear part

    def moved(self, shifts: Tensor) -> Tensor:  # [T, B, 3] -> [T, N, 3]
        """How far the points have moved with control points that are shifted so far."""
        frames = len(shifts)
        moved = self.weights @ shifts.transpose(0, 1).flatten(1).numpy()
        return torch.from_numpy(moved).unflatten(1, (frames, 3)).transpose(0, 1).contiguous()


def make_surface(samples: SurfaceSamples, still: Observations, times: np.ndarray, *, loop: bool = False) -> Surface:
    """The surface that is sampled, for motion pictures from the cameras of `still` at `times` [T], 0..1.

    loop: its movements end at time 1 as they began at time 0.
    """
    points, normals = spread_samples(samples.points, samples.normals, POINTS, np.random.default_rng(0))
    control = make_control_points(points, CONTROL_POINTS)
    basis = TimeBasis(loop, HARMONICS)
    functions = basis(torch.from_numpy(times).float()).T.contiguous()
    return Surface(
        points=torch.from_numpy(points),
        normals=torch.from_numpy(normals),
        control=control,
        weights=_weights(control),
        pairs=_pairs(control),
        viewmats=still.viewmats,
        focal=2 * still.Ks[:, 0, 0] / still.images.shape[2],
        functions=functions,
        prior=_prior(control, functions, basis.frequencies),
    )


def lift(surface: Surface, flow: Tensor, begin: Tensor | None = None, rounds: int = 3) -> Tensor:
    """The shifts [T, B, 3] of the control points with which the surface moves most nearly as the flow says.

    Args:
        surface: what moves.
        flow: [T, 3, h, w] how far what a pixel shows has moved since time 0, world axes, times 2 / depth.
        begin: shifts from which to go on, such as those of a flow that differed little.
        rounds: of looking up the flow where the points have moved to, and of turning the neighbourhoods.
    """
    frames, functions = len(flow), surface.functions
    bases, terms = len(surface.control.points), functions.shape[1]
    shifts = torch.zeros(frames, bases, 3) if begin is None else begin
    trusting = begin is None  # nothing tells outliers yet
    for _ in range(rounds):
        weight, target = _evidence(surface, flow, surface.moved(shifts), trusting)
        weight = weight / len(surface.points) / frames
        grams = torch.from_numpy(surface.pairs @ weight.T.numpy())  # [B B, T]
        products = (grams @ (functions[:, :, None] * functions[:, None, :]).flatten(1)).T
        matrix = products.unflatten(1, (bases, bases)).unflatten(0, (terms, terms)).transpose(1, 2)
        pull = surface.weights.T @ (weight[..., None] * target).transpose(0, 1).flatten(1).numpy()
        wanted = torch.from_numpy(pull).unflatten(1, (frames, 3)).transpose(0, 1)
        wanted = wanted + RIGIDITY / frames * _turned(surface.control, shifts)
        wanted = torch.einsum("tj,tbc->jbc", functions, wanted).flatten(0, 1)
        factor = torch.linalg.cholesky(matrix.reshape_as(surface.prior) + surface.prior)
        series = torch.cholesky_solve(wanted, factor).unflatten(0, (terms, bases))
        shifts, trusting = torch.einsum("tj,jbc->tbc", functions, series), False
    return shifts


def flow_of(surface: Surface, shifts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pictures of the flow with which the surface moves, from its own cameras: the reverse of `lift`.

    Returns flow times coverage [T, 3, size, size], and coverage [T, 1, size, size], 1 where the surface is.
    """
    moved = surface.moved(shifts)
    place, depth = _projected(surface, surface.points + moved)
    seen = _visibility(surface, surface.points + moved, place, depth)
    flow = torch.cat([moved * (2 / depth)[..., None], torch.ones_like(depth)[..., None]], -1) * seen[..., None]
    pixel = (place + 1) / 2 * size - 0.5
    corner = pixel.floor()
    share = pixel - corner
    frames = torch.arange(len(moved))[:, None] * (size * size)
    sums = torch.zeros(len(moved) * size * size, 4)
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):  # bilinear
        step = torch.tensor(step)
        cell = (corner + step).long()
        inside = ((cell >= 0) & (cell < size)).all(-1)
        weight = torch.where(step == 1, share, 1 - share).prod(-1)
        index = frames + cell[..., 1] * size + cell[..., 0]
        sums.index_add_(0, index[inside], (flow * weight[..., None])[inside])
    sums = sums.unflatten(0, (len(moved), size, size)).permute(0, 3, 1, 2)
    enough = COVERED * sums[:, 3:].amax((2, 3), keepdim=True)
    coverage = (sums[:, 3:] / enough.clamp_min(1e-6)).clamp(0, 1)
    return sums[:, :3] / sums[:, 3:].clamp_min(1e-6) * coverage, coverage


def kept_in_view(surface: Surface, shifts: Tensor) -> Tensor:  # [T, B, 3] -> [T, B, 3]
    """The same movement where it stays in the pictures; else the whole travels less, and if need be all moves less.

    First it goes less far to the side, so that what jumps or falls over still does so from and to the ground.
    """
    travel = shifts.mean(1, keepdim=True)
    at_rest = _outside(surface, torch.zeros_like(shifts))

    def stays(moved: Tensor, most: float = FEW) -> bool:
        return _outside(surface, moved) <= max(most, at_rest)

    if stays(shifts):
        return shifts
    for less in (travel * travel.new_tensor([1.0, 1.0, 0.0]), travel):
        share = _largest(lambda share, less=less: stays(shifts - (1 - share) * less))
        if share > 0 or stays(shifts - less):
            return shifts - (1 - share) * less
    on_the_spot = shifts - travel
    size = 1.0 if stays(on_the_spot, MANY) else _largest(lambda size: stays(size * on_the_spot, MANY))
    return size * on_the_spot


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest share that fits, or 0."""
    low, high = 0.0, 1.0
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _outside(surface: Surface, shifts: Tensor) -> float:
    """The share of the points that lies outside the picture, in the picture with the most."""
    place, _ = _projected(surface, surface.points + surface.moved(shifts))
    return float((place.abs() > EDGE).any(-1).float().mean(1).max())


def unstretched(control: ControlPoints, shifts: Tensor) -> Tensor:  # [T, B, 3] -> [T, B, 3]
    """Nearby shifts of control points that stretch their neighbourhoods less."""
    count = len(control.points)
    factor = torch.linalg.cholesky(torch.eye(count) / count + STIFFNESS * _stretch(control))
    found = shifts
    for _ in range(UNSTRETCHED_ROUNDS):
        pull = shifts / count + STIFFNESS * _turned(control, found)
        found = torch.cholesky_solve(pull.transpose(0, 1).flatten(1), factor).unflatten(1, (-1, 3)).transpose(0, 1)
    return found


def grown(control: ControlPoints, shifts: Tensor, size: float) -> Tensor:  # [T, B, 3] -> [T, B, 3]
    """Shifts of control points times a size. What grows is held together on the way, so that limbs turn farther."""
    while size > 1:
        step = min(size, LARGEST_STEP)
        larger = step * shifts
        share = math.log(step) / math.log(LARGEST_STEP)  # a part of a step counts as one, so that none makes a jump
        shifts = larger + share * (unstretched(control, larger) - larger)
        size /= step
    return size * shifts


def poses(surface: Surface, shifts: Tensor) -> Tensor:  # [T, B, 3] -> [T, B, 16]
    """Shifted control points, turned as their neighbourhoods are, as `motion.blend` takes them."""
    turns, points = _turns(surface.control, shifts), surface.control.points
    translations = points + shifts - (turns @ points[:, :, None])[..., 0]
    quats = Rotation.from_matrix(turns.flatten(0, 1).numpy()).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    quats = torch.from_numpy(quats).float().unflatten(0, turns.shape[:2])
    return torch.cat([turns.flatten(2), translations, quats], -1).contiguous()


def _evidence(surface: Surface, flow: Tensor, moved: Tensor, trusting: bool) -> tuple[Tensor, Tensor]:
    """Where each point should be by each picture's flow, from time 0 [T, N, 3], and how much that counts [T, N]."""
    place, depth = _projected(surface, surface.points + moved)
    weight = _visibility(surface, surface.points + moved, place, depth)
    found = functional.grid_sample(flow, place[:, None], align_corners=False, padding_mode="border")[:, :, 0]
    target = found.transpose(1, 2) * (depth / 2)[..., None]
    if not trusting:
        weight = weight / (1 + (target - moved).square().sum(-1) / OUTLIER**2)
    return weight, target


def _projected(surface: Surface, points: Tensor) -> tuple[Tensor, Tensor]:
    """Points [T, N, 3] in the pictures, -1..1 from edge to edge [T, N, 2], and their depths [T, N]."""
    rotation, shift = surface.viewmats[:, :3, :3], surface.viewmats[:, :3, 3]
    camera = points @ rotation.transpose(1, 2) + shift[:, None]
    depth = camera[..., 2].clamp_min(1e-3)
    return surface.focal[:, None, None] * camera[..., :2] / depth[..., None], depth


def _visibility(surface: Surface, points: Tensor, place: Tensor, depth: Tensor) -> Tensor:  # [T, N]
    """How well the cameras see points [T, N, 3]: 0 behind others, else by how squarely they face the camera."""
    cells = ((place + 1) / 2 * SIGHT_CELLS).long().clamp(0, SIGHT_CELLS - 1)
    cell = cells[..., 1] * SIGHT_CELLS + cells[..., 0]
    cameras = -(surface.viewmats[:, None, :3, 3] @ surface.viewmats[:, :3, :3])
    squarely = (functional.normalize(cameras - points, dim=-1) * surface.normals).sum(-1)
    return unhidden(cell, depth, SIGHT_DEPTH) * squarely.clamp(GRAZING, 1)


def _weights(control: ControlPoints) -> csr_matrix:  # [N, B]
    """How far points follow which control points; dense, nearly all of it would be zeros."""
    count, each = control.index.shape
    starts = np.arange(0, count * each + 1, each)
    return csr_matrix(
        (control.weights.numpy().ravel(), control.index.numpy().ravel(), starts), (count, len(control.points))
    )


def _pairs(control: ControlPoints) -> csr_matrix:  # [B B, N]
    """Which pairs of control points have a say in the same points, times weights [N] the matrix of least squares."""
    index, weights = control.index.numpy(), control.weights.numpy()
    count, bases = len(index), len(control.points)
    cells = (index[:, :, None].astype(np.int64) * bases + index[:, None, :]).ravel()
    shares = (weights[:, :, None] * weights[:, None, :]).ravel()
    return csr_matrix((shares, (cells, np.repeat(np.arange(count), index.shape[1] ** 2))), (bases**2, count))


def _prior(control: ControlPoints, functions: Tensor, frequencies: Tensor) -> Tensor:  # [T, J], [J] -> [J B, J B]
    """The quadratic part of what a movement costs in itself."""
    smooth = torch.diag(SPECTRAL * frequencies**4 + RIDGE)
    each = torch.eye(len(control.points)) / len(control.points)
    rigid = torch.kron(functions.T @ functions / len(functions), RIGIDITY * _stretch(control))
    return rigid + torch.kron(smooth, each)


def _stretch(control: ControlPoints) -> Tensor:  # [B, B]
    """The quadratic part of what stretched neighbourhoods cost, of which `_turned` is the linear part."""
    first, second = control.edges.long().T
    weights = control.edge_weights / len(first)
    stretch = torch.zeros(len(control.points), len(control.points))
    for i, j, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
        stretch.index_put_((i, j), sign * weights, accumulate=True)
    return stretch


def _turned(control: ControlPoints, shifts: Tensor) -> Tensor:  # [T, B, 3] -> [T, B, 3]
    """The linear part: what pulls at control points whose neighbours' edges are turned as their neighbourhoods are."""
    first, second = control.edges.long().T
    weights = (control.edge_weights / len(first))[:, None]
    edges = control.points[second] - control.points[first]
    pull = weights * ((_turns(control, shifts)[:, first] @ edges[..., None])[..., 0] - edges)
    return torch.zeros_like(shifts).index_add_(1, second, pull).index_add_(1, first, -pull)


def _turns(control: ControlPoints, shifts: Tensor) -> Tensor:  # [T, B, 3] -> [T, B, 3, 3]
    """How the neighbourhoods of control points are turned by shifts: rotations that fit their edges best."""
    first, second = control.edges.long().T
    edges = control.points[second] - control.points[first]
    moved = edges + shifts[:, second] - shifts[:, first]
    spread = torch.zeros(*shifts.shape, 3)
    spread.index_add_(1, first, control.edge_weights[:, None, None] * moved[..., :, None] * edges[:, None, :])
    size = spread.diagonal(dim1=-2, dim2=-1).abs().sum(-1).clamp_min(1e-12)
    u, _, vh = torch.linalg.svd(spread + UNTURNED * size[..., None, None] * torch.eye(3))
    handed = torch.ones(*shifts.shape)
    handed[..., 2] = torch.det(u @ vh).sign()  # turns, not mirror images
    return (u * handed[..., None, :]) @ vh
