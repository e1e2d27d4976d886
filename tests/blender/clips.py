# SPDX-License-Identifier: GPL-3.0-or-later
"""Clips whose Gaussians move, turn and stretch smoothly, and what Blender makes of them."""

import bpy
import numpy as np

from blender_addon import point_cloud
from blender_addon.contract import rotations
from blender_addon.contract.clip import Clip, FrameMotion


def twisting_ring(
    n: int = 200,
    frames: int = 6,
    sh_degree: int = 1,
    *,
    moving_scales: bool = True,
    moving_opacities: bool = False,
    seed: int = 0,
    **fields,
) -> Clip:
    """A ring of flat, colorful, partly transparent Gaussians that twists and breathes."""
    random = np.random.default_rng(seed)
    round_ring, round_tube = random.uniform(0, 2 * np.pi, (2, n))
    normal_angle = random.uniform(0, np.pi, n)
    size = 1.1 * np.sqrt(1 / n) * random.uniform([0.6, 0.35, 0.08], [1.3, 0.9, 0.2], (n, 3))
    means, quats, scales = [], [], []
    for t in range(frames):
        phase = 2 * np.pi * t / max(frames, 2)
        tube = round_tube + 0.5 * np.sin(phase) * np.sin(round_ring)
        radius = 0.35 + 0.13 * np.cos(tube)
        height = 0.13 * np.sin(tube) + 0.08 * np.sin(phase + round_ring)
        means.append(np.stack([radius * np.cos(round_ring), radius * np.sin(round_ring), height], axis=-1))
        about_z = _turn(round_ring + 0.4 * np.sin(phase), 2)
        turned = rotations.multiply(about_z, rotations.multiply(_turn(-tube, 1), _turn(normal_angle, 0)))
        quats.append(turned)
        scales.append(size * (1 + 0.3 * np.sin(phase + np.arange(3))))
    base = 0.5 + 0.45 * np.sin(np.stack([3 * round_ring, 2 * round_tube + 1, round_ring + round_tube], axis=-1))
    sh = random.normal(0, 0.12, (n, (sh_degree + 1) ** 2, 3))
    sh[:, 0] = (base - 0.5) / 0.28209479177387814
    opacities = random.uniform(0.25, 0.97, (frames, n))
    unit = rotations.normalize(rotations.make_continuous(np.stack(quats)))

    def single(values) -> np.ndarray:
        return np.ascontiguousarray(values, np.float32)

    return Clip(
        means=single(means[0]),
        quats=single(unit[0]),
        scales=single(scales[0]),
        opacities=single(opacities[0]),
        sh=single(sh),
        motion=FrameMotion(
            single(np.stack(means)),
            single(unit),
            single(np.stack(scales)) if moving_scales else None,
            single(opacities) if moving_opacities else None,
        ),
        **fields,
    )


def _turn(angles: np.ndarray, axis: int) -> np.ndarray:  # [N] radians -> [N, 4]
    quats = np.zeros((len(angles), 4))
    quats[:, 0] = np.cos(angles / 2)
    quats[:, 1 + axis] = np.sin(angles / 2)
    return quats


def show(frame: float) -> None:
    """Go to a scene frame, which may be fractional."""
    bpy.context.scene.frame_set(int(np.floor(frame)), subframe=frame - np.floor(frame))


def evaluated(splats: bpy.types.Object, draw: str):
    """The object's evaluated geometry set, drawn in one of the ways."""
    point_cloud.set_draw_mode(splats, viewport=draw)
    bpy.context.view_layer.update()
    return splats.evaluated_get(bpy.context.evaluated_depsgraph_get()).evaluated_geometry()


def read(attributes, name: str) -> np.ndarray:
    """An attribute of evaluated geometry, [N] or [N, width]."""
    attribute = attributes[name]
    key, width = {
        "FLOAT": ("value", 1),
        "FLOAT_VECTOR": ("vector", 3),
        "QUATERNION": ("value", 4),
        "FLOAT4": ("vector", 4),
        "FLOAT_COLOR": ("color", 4),
    }[attribute.data_type]
    values = np.empty(len(attribute.data) * width, np.float32)
    attribute.data.foreach_get(key, values)
    return values if width == 1 else values.reshape(-1, width)


def point_centers(splats: bpy.types.Object) -> np.ndarray:  # [N, 3] object space
    """Where the preview points are at the current frame."""
    geometry = evaluated(splats, "POINTS")  # kept: its parts die with it
    return read(geometry.pointcloud.attributes, "position")


def quad_corners(splats: bpy.types.Object) -> np.ndarray:  # [N, 4, 3] object space
    """Corners of the quads at the current frame, in the order of the Gaussians."""
    geometry = evaluated(splats, "QUADS")
    return read(geometry.mesh.attributes, "position").reshape(-1, 4, 3)


def add_camera(matrix: np.ndarray | None = None, resolution: int = 64) -> bpy.types.Object:
    """A perspective camera, 50 mm, as the scene's own; `matrix` is camera-to-world, by default in front, at -Y."""
    scene = bpy.context.scene
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    if matrix is None:
        matrix = np.array([[1, 0, 0, 0], [0, 0, -1, -2.0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    from mathutils import Matrix

    camera.matrix_world = Matrix(np.asarray(matrix).tolist())
    scene.render.resolution_x = scene.render.resolution_y = resolution
    scene.render.resolution_percentage = 100
    return camera
