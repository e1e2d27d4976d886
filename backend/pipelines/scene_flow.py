# SPDX-License-Identifier: GPL-3.0-or-later
"""Scene flow of a moving orbit, by the network that comes with the program, as a guide for construction."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.models.scene_flow import RESOLUTION, SceneFlowNet, load, opposite_views
from backend.splatting.guide import SceneFlow
from backend.splatting.observations import Observations
from blender_addon.contract.orbit import Orbit, intrinsics

SAME_PLACE = 0.01  # clip space and radians; cameras that differ by less count as one
LONGEST = 24  # frames that the network sees at once
MOST_OFF_AXIS = 0.25  # clip space; the subject's middle may lie so far beside a camera's axis


@torch.no_grad()
def observe_scene_flow(
    moving: Observations,
    static: Observations | None,
    device: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> SceneFlow | None:
    """How far the surface that the static pictures show has moved at the times of the moving ones.

    None where the network has nothing to compare: each moving picture needs a static one from the same camera, and the
    cameras have to look at the middle of clip space. `device`: None is the GPU where there is one. `check` is called
    every `LONGEST` pictures, and may cancel by raising.
    """
    if static is None:
        return None
    poses = moving.cameras.camera_to_world
    near = _same_cameras(poses, static.cameras.camera_to_world)
    if near is None or not _looks_at_middle(poses):
        return None
    static = static.subset(_as_far_away(static.cameras.camera_to_world, near))  # they are brought to one scale
    still = static.cameras.camera_to_world
    near, far = _same_cameras(poses, still), opposite_views(poses, still)
    pictures, _ = _as_trained(moving)
    before, before_Ks = _as_trained(static)  # noqa: N806
    network = load(device=device)
    flows, spreads, covers, views, times, intrinsic = [], [], [], [], [], []
    for chain in _chains(moving.cameras.times, poses):
        check()
        flow, spread = _predict(network, pictures[chain], before[near[chain]], before[far[chain]], moving, chain)
        for side, shown in enumerate((near[chain], far[chain])):
            flows.append(flow[:, side])
            spreads.append(spread[:, side])
            covers.append(before[shown][:, 3])
            views.append(static.viewmats[shown])
            intrinsic.append(before_Ks[shown])
            times.append(moving.times[chain])
    return SceneFlow(
        flow=torch.cat(flows).permute(0, 2, 3, 1).contiguous(),
        spread=torch.cat(spreads)[:, 0],
        coverage=torch.cat(covers),
        viewmats=torch.cat(views),
        Ks=torch.cat(intrinsic),
        times=torch.cat(times),
    )


def _predict(
    network: SceneFlowNet, moving: Tensor, near: Tensor, far: Tensor, views: Observations, chain: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Flow [T, 2, 3, H, W] and spread [T, 2, 1, H, W] of the near and the far pictures, each as its camera sees it.

    The mean of what the network says of the pictures and of their mirror images.
    """
    device = next(network.parameters()).device
    cameras = torch.from_numpy(views.cameras.camera_to_world[chain]).float()
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    given = torch.stack([moving, near, far.flip(-1)])[:, None]  # the network sees the far side mirrored
    both = torch.cat([given, given.flip(-1)], 1).to(device)
    poses = torch.stack([cameras, mirror @ cameras @ mirror]).to(device)
    times = views.times[chain].expand(2, -1).to(device)
    flow, spread = (tensor.cpu() for tensor in network(*both, poses, times))
    back = flow[1].flip(-1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    flow, spread = (flow[0] + back) / 2, (spread[0] + spread[1].flip(-1)) / 2
    unmirrored = [tensor.clone() for tensor in (flow, spread)]
    for tensor in unmirrored:
        tensor[:, 1] = tensor[:, 1].flip(-1)
    return unmirrored[0], unmirrored[1]


def _chains(times: np.ndarray, poses: np.ndarray) -> list[np.ndarray]:
    """The pictures in chains of one picture per time, in order of time and at most `LONGEST` long.

    With several pictures per time, a chain follows one place in the order of their azimuths. Longer ones are dealt
    out, so that each part still spans all of the time.
    """
    azimuths = np.arctan2(poses[:, 0, 3], -poses[:, 1, 3])
    place = np.zeros(len(times), int)
    for time in np.unique(times):
        own = np.flatnonzero(times == time)
        place[own[np.argsort(azimuths[own], kind="stable")]] = np.arange(len(own))
    chains = []
    for number in range(place.max() + 1):
        chain = np.flatnonzero(place == number)
        chain = chain[np.argsort(times[chain], kind="stable")]
        parts = -(-len(chain) // LONGEST)
        chains += [chain[part::parts] for part in range(parts)]
    return chains


def _same_cameras(poses: np.ndarray, still: np.ndarray) -> np.ndarray | None:  # [V, 4, 4], [S, 4, 4] -> [V]
    """Which static camera is each moving one; None where one has none."""
    difference = np.abs(poses[:, None, :3] - still[None, :, :3]).max(axis=(2, 3))
    nearest = difference.argmin(axis=1)
    return nearest if (difference[np.arange(len(poses)), nearest] < SAME_PLACE).all() else None


def _as_far_away(still: np.ndarray, near: np.ndarray) -> np.ndarray:  # [S, 4, 4], [V] -> [S] bool
    """Which static cameras are as far from the middle as one that is a moving one; further views may not be."""
    distances = np.linalg.norm(still[:, :3, 3], axis=1)
    return (np.abs(distances[:, None] - distances[near]) < SAME_PLACE).any(axis=1)


def _looks_at_middle(poses: np.ndarray) -> bool:
    beside = poses[:, :3, 3] - (poses[:, :3, 3] * poses[:, :3, 2]).sum(1, keepdims=True) * poses[:, :3, 2]
    return bool((np.linalg.norm(beside, axis=1) < MOST_OFF_AXIS).all())


def _as_trained(views: Observations) -> tuple[Tensor, Tensor]:
    """The pictures [V, 4, R, R] and their intrinsics [V, 3, 3] at the scale at which the network has learned.

    That is the scale of the default orbit at `RESOLUTION`: pictures from further off are enlarged, and cut or filled
    up to a square round the picture's middle.
    """
    wanted = float(intrinsics(Orbit.fov, RESOLUTION, RESOLUTION)[0, 0]) / Orbit.distance  # pixels per clip space unit
    distances = np.linalg.norm(views.cameras.camera_to_world[:, :3, 3], axis=1)
    scale = wanted / float(np.median(views.cameras.Ks[:, 0, 0] / distances))
    images = views.images.permute(0, 3, 1, 2)
    size = [max(round(length * scale), 1) for length in images.shape[2:]]
    exact = [new / old for new, old in zip(size, images.shape[2:], strict=True)]
    mode = {"mode": "area"} if scale <= 1 else {"mode": "bilinear", "align_corners": False}
    images = functional.interpolate(images, size, **mode)
    offset = [(RESOLUTION - length) // 2 for length in size]
    rest = [RESOLUTION - length - before for length, before in zip(size, offset, strict=True)]
    images = functional.pad(images, (offset[1], rest[1], offset[0], rest[0]))
    Ks = views.Ks.clone()  # noqa: N806
    for row, axis in ((0, 1), (1, 0)):
        Ks[:, row] *= exact[axis]
        Ks[:, row, 2] += offset[axis]
    return images, Ks
