# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of the imported object against a plain splat renderer: same camera, same moment."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from mathutils import Matrix  # noqa: E402

from blender_addon import node_groups, point_cloud, versions  # noqa: E402
from tests.blender import ewa  # noqa: E402
from tests.blender.clips import add_camera, show, twisting_ring  # noqa: E402
from tests.blender.conftest import fresh_file  # noqa: E402

pytestmark = pytest.mark.blender

CAMERA = np.array([[1, 0, 0, 0], [0, 0.5, -0.8660254, -1.5], [0, 0.8660254, 0.5, 0.8660254], [0, 0, 0, 1]])


def set_up(clip, size, folder, *, scene_linear=False):
    """The clip in a fresh file, its frame t at scene frame t, and a camera; colors as they were fitted."""
    fresh_file()
    scene = bpy.context.scene
    scene.render.fps = round(clip.fps)
    splats = point_cloud.import_clip(clip, scene, start=0)
    point_cloud.ensure_scene_settings(scene)
    modifier = point_cloud.playback_modifier(splats)
    versions.set_modifier_input(modifier, node_groups.SCENE_LINEAR, scene_linear)
    add_camera(CAMERA, size)
    scene.world = bpy.data.worlds.new("World")
    scene.render.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = 1
    scene.cycles.use_adaptive_sampling = scene.cycles.use_denoising = False
    scene.cycles.pixel_filter_type = "BOX"
    scene.cycles.filter_width = 1.0
    scene.render.film_transparent = True
    scene.render.filter_size = 0.0  # EEVEE
    scene.view_settings.view_transform = "Raw"
    settings = scene.render.image_settings
    settings.file_format, settings.color_mode, settings.color_depth = "OPEN_EXR", "RGBA", "32"
    scene.render.filepath = str(folder / "picture.exr")
    return splats


def picture():  # [H, W, 4] premultiplied, the top row first
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(bpy.context.scene.render.filepath)
    image.colorspace_settings.name = "Non-Color"
    width, height = image.size
    pixels = np.empty(width * height * 4, np.float32)
    image.pixels.foreach_get(pixels)
    bpy.data.images.remove(image)
    return pixels.reshape(height, width, 4)[::-1]


def reference(clip, splats, t, size):
    focal = size * 50 / 36
    return ewa.render(clip.frame(t), clip.sh, np.array(splats.matrix_world), CAMERA, focal, size)


def test_cycles_small(tmp_path):
    clip = twisting_ring(500, 8)
    splats = set_up(clip, 64, tmp_path)
    show(2.5)
    color, alpha = reference(clip, splats, 2.5, 64)
    rendered = picture()
    assert 0.1 < alpha.mean() < 0.9  # there is something to compare
    assert ewa.psnr(rendered[..., :3], color) > 38
    assert ewa.psnr(rendered[..., 3], alpha) > 38


def test_moved_turned_and_scaled(tmp_path):
    clip = twisting_ring(500, 8, sh_degree=2, moving_opacities=True)
    splats = set_up(clip, 64, tmp_path)
    turn = Matrix.Rotation(1.1, 4, (1, -2, 0.5))
    splats.matrix_world = Matrix.Translation((0.05, 0.2, -0.05)) @ turn @ Matrix.Scale(0.7, 4)
    show(4.25)
    color, alpha = reference(clip, splats, 4.25, 64)
    rendered = picture()
    assert ewa.psnr(rendered[..., :3], color) > 38
    assert ewa.psnr(rendered[..., 3], alpha) > 38


def test_deleted_points_are_gone_from_pictures(tmp_path):
    clip = twisting_ring(400, 4)
    splats = set_up(clip, 64, tmp_path)
    left = clip.means[:, 0] < 0
    bpy.context.view_layer.objects.active = splats
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="DESELECT")
    bpy.ops.object.mode_set(mode="OBJECT")
    splats.data.vertices.foreach_set("select", left)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.delete(type="VERT")
    bpy.ops.object.mode_set(mode="OBJECT")
    rest = point_cloud.clip_of_object(splats)
    assert rest.count == np.sum(~left)
    show(1.5)
    color, alpha = reference(rest, splats, 1.5, 64)
    rendered = picture()
    assert ewa.psnr(rendered[..., :3], color) > 38
    assert ewa.psnr(rendered[..., 3], alpha) > 38


def test_without_enough_transparent_bounces_pictures_are_wrong(tmp_path):
    """Why the scene settings are changed on import."""
    clip = twisting_ring(2000, 4)
    splats = set_up(clip, 64, tmp_path)
    show(1)
    color, _ = reference(clip, splats, 1, 64)
    right = ewa.psnr(picture()[..., :3], color)
    bpy.context.scene.cycles.transparent_max_bounces = 8
    bpy.context.scene.cycles.min_transparent_bounces = 0
    assert ewa.psnr(picture()[..., :3], color) < right - 10


@pytest.mark.slow
def test_cycles_full_size(tmp_path):
    clip = twisting_ring(20_000, 24, moving_opacities=True)
    splats = set_up(clip, 256, tmp_path)
    show(5.5)
    color, alpha = reference(clip, splats, 5.5, 256)
    rendered = picture()
    quality = ewa.psnr(rendered[..., :3], color), ewa.psnr(rendered[..., 3], alpha)
    print(f"\nCycles, 20,000 Gaussians, 256x256, frame 5.5: color {quality[0]:.1f} dB, alpha {quality[1]:.1f} dB")
    assert min(quality) >= 38


@pytest.mark.slow
def test_eevee(tmp_path):
    """In a process of its own: without a display, EEVEE needs software OpenGL from the start."""
    environment = {**os.environ, "EGL_PLATFORM": "surfaceless", "LIBGL_ALWAYS_SOFTWARE": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.blender.test_splat_render", str(tmp_path)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    color, alpha = (float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("PSNR"))
    assert color > 38
    assert alpha > 38


def render_in_eevee(folder):
    clip = twisting_ring(500, 8)
    splats = set_up(clip, 64, Path(folder))
    bpy.context.scene.render.engine = versions.eevee_id()
    bpy.context.scene.eevee.taa_render_samples = 1
    show(2.5)
    color, alpha = reference(clip, splats, 2.5, 64)
    rendered = picture()
    print(f"\nPSNR {ewa.psnr(rendered[..., :3], color)}\nPSNR {ewa.psnr(rendered[..., 3], alpha)}", flush=True)


if __name__ == "__main__":
    render_in_eevee(sys.argv[1])
