# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of Gaussians in the Asset Browser: from the front at three quarters and a little above.

Blender's own preview of a mesh that is nothing but points is a grey icon. The picture is drawn without rendering, so
neither the scene nor its settings are touched, and it is the same in a window and in background mode.
"""

import math
from dataclasses import replace

import bpy
import numpy as np
from mathutils import Matrix

from . import node_groups, splat_object, splat_picture, versions
from .contract.clip import Clip, Gaussians

SIZE = 256  # pixels a side, as Blender's own previews
ICON_SIZE = 32
AZIMUTH = 35.0  # degrees from the front, -Y, counter-clockwise seen from above
ELEVATION = 15.0
FIELD_OF_VIEW = 25.0
MARGIN = 0.04  # of the picture, left free on each side
STRAY = 0.5  # per cent of the Gaussians that may lie outside on each side: stray ones are no part of the subject
REACH = 1.5  # standard deviations round a Gaussian that are to be in the picture
FAINT = 0.1  # less opaque Gaussians have no part in the framing
MOST = 0.75  # of the largest surface that is there at any moment: less of it does not show what the subject is


def set_preview(splats: bpy.types.Object, clip: Clip) -> None:
    """Draw a clip, which is what the object holds and plays, and make the picture the object's preview."""
    modifier = splat_object.playback_modifier(splats)
    gaussians = clip.frame(telling_moment(clip))
    gaussians = replace(
        gaussians,
        scales=gaussians.scales * versions.modifier_input(modifier, node_groups.SPLAT_SIZE),
        opacities=gaussians.opacities * versions.modifier_input(modifier, node_groups.OPACITY),
    )
    camera = camera_to_see(gaussians)
    focal = SIZE / 2 / math.tan(math.radians(FIELD_OF_VIEW) / 2)
    picture = splat_picture.draw(gaussians, clip.sh, camera, focal, SIZE)
    if clip.color_space == "linear":
        picture = splat_picture.to_srgb(picture)
    preview = splats.preview_ensure()
    block = SIZE // ICON_SIZE
    icon = picture.reshape(ICON_SIZE, block, ICON_SIZE, block, 4).mean(axis=(1, 3))
    preview.image_size, preview.icon_size = (SIZE, SIZE), (ICON_SIZE, ICON_SIZE)
    preview.image_pixels.foreach_set(_packed(picture))  # color times alpha, as Blender draws previews
    preview.icon_pixels.foreach_set(_packed(icon))


def telling_moment(clip: Clip) -> int:
    """The stored frame that shows the motion best: of those at which most is there, whose pose is farthest from the
    mean one."""
    frames = clip.frames()
    there = frames.there
    surface = (there * np.prod(np.sort(frames.scales)[..., 1:], axis=-1)).sum(axis=1)
    means = (there[..., None] * frames.means).sum(axis=0) / np.maximum(there.sum(axis=0), 1)[:, None]
    ways = (there * np.square(frames.means - means).sum(axis=-1)).sum(axis=1)
    return int(np.where(surface >= MOST * surface.max(), ways, -1).argmax())


def camera_to_see(gaussians: Gaussians) -> np.ndarray:  # [4, 4]
    """Camera-to-world, or whichever space the Gaussians are in, that has all but stray ones in its picture."""
    visible = gaussians.opacities >= min(FAINT, gaussians.opacities.max())
    turn = Matrix.Rotation(math.radians(AZIMUTH), 3, "Z") @ Matrix.Rotation(math.radians(90 - ELEVATION), 3, "X")
    axes = np.array(turn)  # columns: right, up, backward
    centers, reach = gaussians.means[visible] @ axes, REACH * gaussians.scales[visible].max(axis=1, keepdims=True)
    low, high = np.percentile(centers - reach, STRAY, axis=0), np.percentile(centers + reach, 100 - STRAY, axis=0)
    half = np.maximum((high - low) / 2, 1e-6)
    distance = half[:2].max() / (1 - 2 * MARGIN) / math.tan(math.radians(FIELD_OF_VIEW) / 2) + half[2]
    camera = np.eye(4)
    camera[:3, :3] = axes
    camera[:3, 3] = axes @ ((low + high) / 2 + [0, 0, distance])
    return camera


def _packed(picture: np.ndarray) -> np.ndarray:  # [H, W, 4] float -> [H * W] int32
    """As previews hold pixels: a byte for each channel, the bottom row first."""
    levels = np.round(np.clip(picture[::-1], 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(levels).view(np.int32).reshape(-1)
