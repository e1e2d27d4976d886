# SPDX-License-Identifier: GPL-3.0-or-later
"""A video whose prompt names what it shows, seen from other sides: a known subject's shape is behind each frame."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from backend.models.kinesplat_small import KinesplatSmall
from backend.pipelines.far_side import far_side
from backend.pipelines.known_shapes import Shape, known_shape
from backend.pipelines.multi_view_video import DISTANCE, FOV
from backend.pipelines.solids import DEPTHS, RAYS, solid_views
from blender_addon.contract.orbit import Cameras, Orbit, intrinsics

FINER = 2  # subpixels to a pixel's side, so that outlines are smooth


class ShapedVideo:
    """Frames with what is behind them, which all cameras see the same solid body of."""

    def __init__(self, video: Tensor, shape: Shape) -> None:
        """video: [F, 4, H, W] 0..1, premultiplied, as a camera at -Y with 4Diffusion's field of view sees it."""
        self.subject = shape.subject
        self._pictures = np.ascontiguousarray(video.movedim(1, -1).numpy())
        self._far = [far_side(picture, mirrored=shape.sideways) for picture in self._pictures]
        self._shape = shape
        self._solids: dict[int, tuple[tuple[slice, ...], np.ndarray]] = {}  # float16, where there is some of it

    def seen(self, poses: Tensor, frame: int, side: int, finer: int = FINER) -> Tensor:  # [V, 4, side, side]
        """One frame from other sides, premultiplied. poses [V, 4, 4]: camera-to-world, in 4Diffusion's distance."""
        cameras = _cameras(poses, side * finer)
        views = solid_views(self._pictures[frame], self._far[frame], self._solid(frame), cameras, whole=False)
        return functional.avg_pool2d(torch.from_numpy(views).movedim(-1, 1), finer)

    def _solid(self, frame: int) -> np.ndarray:  # [RAYS, RAYS, DEPTHS] float32
        if frame not in self._solids:
            solid = self._shape.solid(frame)
            box = (ndimage.find_objects((solid > 0).astype(np.uint8)) or [(slice(0),) * 3])[0]
            self._solids[frame] = box, solid[box].astype(np.float16)
        box, part = self._solids[frame]
        solid = np.zeros((RAYS, RAYS, DEPTHS), np.float32)
        solid[box] = part
        return solid


def shaped_video(
    video: Tensor, prompt: str, model: KinesplatSmall, report: Callable[[float], None]
) -> ShapedVideo | None:
    """A video [F, 4, H, W] with the shape of what its prompt names; None: it names nothing known, or nothing fits.

    report: told which share is done, often; may raise.
    """
    alphas = functional.interpolate(video[:, 3:], (RAYS, RAYS), mode="bilinear", antialias=True)[:, 0].numpy()
    shape = known_shape(alphas, model, prompt, float(np.tan(np.radians(FOV / 2))), report)
    return shape and ShapedVideo(video, shape)


def _cameras(poses: Tensor, side: int) -> Cameras:
    """The cameras, in the distance in which solids are seen; what they see is larger by as much."""
    matrices = poses.numpy().astype(np.float64)
    matrices[:, :3, 3] *= Orbit.distance / DISTANCE
    Ks = np.repeat(intrinsics(FOV, side, side)[None], len(matrices), axis=0)  # noqa: N806
    return Cameras(matrices, Ks, np.zeros(len(matrices)), side, side)
