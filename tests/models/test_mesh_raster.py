# SPDX-License-Identifier: GPL-3.0-or-later
"""The rasterizer of meshes against rays cast in numpy."""

import numpy as np

from backend.models.mesh_raster import SUPERSAMPLING, rasterize_views
from blender_addon.contract.orbit import Orbit, orbit_cameras

SIZE, VIEWS, TRIANGLES = 24, 3, 40
LIGHT = np.float32([0.3, -0.5, -0.8, 0.4, 0.6])  # towards the light, ambient, diffuse


def soup() -> dict[str, np.ndarray]:
    """Small triangles round the origin, some behind others, in as many poses as views; every second one textured."""
    rng = np.random.default_rng(5)
    middle = rng.uniform(-0.45, 0.45, (TRIANGLES, 1, 3))
    rest = (middle + rng.uniform(-0.2, 0.2, (TRIANGLES, 3, 3))).reshape(-1, 3)
    step = np.repeat(rng.uniform(-0.15, 0.15, (TRIANGLES, 3)), 3, 0) + rng.uniform(-0.02, 0.02, rest.shape)
    positions = np.stack([rest + t * step for t in range(VIEWS)])
    normals = np.repeat(rng.normal(size=(VIEWS, TRIANGLES, 3)), 3, 1)
    texture = np.where(np.arange(TRIANGLES) % 2, -1, 0).astype(np.int32)
    return {
        "positions": positions.astype(np.float32),
        "normals": normals.astype(np.float32),
        "rest": positions[0].astype(np.float32),
        "faces": np.arange(3 * TRIANGLES, dtype=np.int32).reshape(-1, 3),
        "colors": rng.uniform(0.1, 0.9, (TRIANGLES, 3)).astype(np.float32),
        "uv": np.repeat(rng.uniform(-2, 2, (TRIANGLES, 2)), 3, 0).astype(np.float32),  # one texel for each face
        "texture": texture,
        "textures": rng.uniform(0.3, 1, (1, 4, 8, 3)).astype(np.float32),
        "texture_sizes": np.array([[4, 8]], np.int32),
    }


def cast(mesh: dict, t: int, viewmat: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """One view by rays through the middles of the subpixels: rgba and flow, as `rasterize_views` defines them."""
    big = SIZE * SUPERSAMPLING
    line = ((np.arange(big) + 0.5) / SUPERSAMPLING - SIZE / 2) / focal
    rays = np.stack([*np.meshgrid(line, line), np.ones((big, big))], -1)
    light = LIGHT[:3] / np.linalg.norm(LIGHT[:3])
    seen = mesh["positions"][t] @ viewmat[:3, :3].T + viewmat[:3, 3]
    nearest = np.full((big, big), np.inf)
    color, moved = np.zeros((big, big, 3)), np.zeros((big, big, 3))
    for number, face in enumerate(mesh["faces"]):
        a, b, c = seen[face]
        matrix = np.stack([rays, np.broadcast_to(a - b, rays.shape), np.broadcast_to(a - c, rays.shape)], -1)
        depth, w1, w2 = np.moveaxis(np.linalg.solve(matrix, np.broadcast_to(a, rays.shape)[..., None])[..., 0], -1, 0)
        hit = (w1 >= 0) & (w2 >= 0) & (w1 + w2 <= 1) & (depth < nearest)
        nearest[hit] = depth[hit]
        weights = np.stack([1 - w1 - w2, w1, w2], -1)
        normal = weights @ (mesh["normals"][t][face] @ viewmat[:3, :3].T)
        normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
        normal = np.where(normal[..., 2:] > 0, -normal, normal)  # towards the viewer
        shade = LIGHT[3] + LIGHT[4] * np.maximum(0, normal @ light)
        albedo = mesh["colors"][number]
        if mesh["texture"][number] >= 0:
            u, v = mesh["uv"][face[0]]
            height, width = mesh["texture_sizes"][0]
            albedo = albedo * mesh["textures"][0, int(np.floor(v % 1 * height)), int(np.floor(u % 1 * width))]
        color[hit] = np.minimum(1, albedo * shade[..., None])[hit]
        step = (mesh["positions"][t] - mesh["rest"])[face]
        moved[hit] = (weights @ step * 2 / depth[..., None])[hit]
    solid = np.isfinite(nearest)[..., None]
    picture = np.concatenate([color * solid, solid, moved * solid], -1)
    picture = picture.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING, 7).mean((1, 3))
    return picture[..., :4], picture[..., 4:]


def test_pictures_and_flow_agree_with_cast_rays():
    mesh = soup()
    cameras = orbit_cameras(Orbit(frames=VIEWS, elevation=15.0), SIZE, SIZE, moving=True)
    viewmats = np.ascontiguousarray(cameras.viewmats(), np.float32)
    rgba, flow = np.empty((VIEWS, SIZE, SIZE, 4), np.float32), np.empty((VIEWS, SIZE, SIZE, 3), np.float32)
    light = np.tile(LIGHT, (VIEWS, 1))
    light[:, :3] /= np.linalg.norm(light[0, :3])
    poses = (mesh["positions"], mesh["normals"], mesh["rest"], viewmats, cameras.Ks[0, 0, 0])
    look = [mesh[name] for name in ("faces", "colors", "uv", "texture", "textures", "texture_sizes")]
    rasterize_views(*poses, *look, light, SIZE, rgba, flow)
    for t in range(VIEWS):
        true_rgba, true_flow = cast(mesh, t, cameras.viewmats()[t], cameras.Ks[0, 0, 0])
        assert 0.15 < true_rgba[..., 3].mean() < 0.9
        wrong = np.abs(rgba[t, ..., 3] - true_rgba[..., 3]) > 1e-3
        assert wrong.mean() < 0.01  # a subpixel on an edge may fall to either side
        assert np.abs(rgba[t] - true_rgba)[~wrong].max() < 1e-4
        # Within a triangle the kernel interpolates in the picture, rays do it in space: nearly the same.
        assert np.abs(flow[t] - true_flow)[~wrong].max() < 0.01
        assert (flow[0] == 0).all()
    assert np.abs(flow[1:]).max() > 0.1
