# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of posed triangle meshes, for training and of known subjects: one z-buffer kernel for a whole orbit.

Besides colour and coverage it renders *motion*: how far each visible surface point has moved since time 0, which is
what the small network learns to generate. Cycles renders of the same clips are what it is judged on.
"""

import numpy as np

from backend.compiled import kernel

SUPERSAMPLING = 2
_F = np.float32
_POSES, _POINTS, _PICTURES = "float32[:,:,::1]", "float32[:,::1]", "float32[:,:,:,::1]"  # types of arguments
_NUMBERS = "int32[:,::1]"


def stacked(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images [h, w, 3] of any size as `textures` and `texture_sizes` of `rasterize_views`; one texel where none are."""
    images = images or [np.zeros((1, 1, 3), _F)]
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    textures = np.zeros((len(images), *sizes.max(0), 3), _F)
    for texture, image in zip(textures, images, strict=True):
        texture[: image.shape[0], : image.shape[1]] = image
    return textures, sizes


@kernel(
    f"void({_POSES}, {_POSES}, {_POINTS}, {_POSES}, float64, {_NUMBERS}, {_POINTS}, {_POINTS}, int32[::1], "
    f"{_PICTURES}, {_NUMBERS}, {_POINTS}, int64, {_PICTURES}, {_PICTURES})",
    fastmath=True,
)
def rasterize_views(
    positions,
    normals,
    rest,
    viewmats,
    focal,
    faces,
    colors,
    uv,
    texture,
    textures,
    texture_sizes,
    light,
    size,
    rgba,
    motion,
):
    """Draw T views of a mesh, each of its own pose.

    positions, normals [T, V, 3]: the pose of each view, clip space; rest [V, 3]: the pose at time 0;
    viewmats [T, 4, 4]: world to camera, OpenCV axes; focal: pixels at `size`; faces [F, 3]; colors [F, 3] 0..1;
    uv [V, 2]; texture [F]: index into textures [N, h, w, 3] or -1; texture_sizes [N, 2] (h, w);
    light [T, 5]: direction towards the light in camera axes (3), ambient, diffuse.
    Fills rgba [T, size, size, 4] (premultiplied, display-referred) and motion [T, size, size, 3]: (position - rest) of
    the visible point in world axes, times 2 / depth, weighted by coverage. All float32.
    """
    ss = SUPERSAMPLING
    big = size * ss
    vertices = positions.shape[1]
    screen = np.empty((vertices, 3), np.float32)
    depth = np.empty((big, big), np.float32)
    shade = np.empty((big, big, 3), np.float32)
    moved = np.empty((big, big, 3), np.float32)
    scale, half = _F(focal * ss), _F(big * 0.5)
    for t in range(positions.shape[0]):
        view = viewmats[t]
        p, n = positions[t], normals[t]
        for v in range(vertices):
            x, y, z = p[v, 0], p[v, 1], p[v, 2]
            d = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
            inverse = scale / d
            screen[v, 0] = half + (view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]) * inverse
            screen[v, 1] = half + (view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]) * inverse
            screen[v, 2] = d
        depth[:] = _F(1e9)
        # the light in world axes, so that normals need no rotation
        lx = view[0, 0] * light[t, 0] + view[1, 0] * light[t, 1] + view[2, 0] * light[t, 2]
        ly = view[0, 1] * light[t, 0] + view[1, 1] * light[t, 1] + view[2, 1] * light[t, 2]
        lz = view[0, 2] * light[t, 0] + view[1, 2] * light[t, 1] + view[2, 2] * light[t, 2]
        for f in range(faces.shape[0]):
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            x0, y0, z0 = screen[a, 0], screen[a, 1], screen[a, 2]
            x1, y1, z1 = screen[b, 0], screen[b, 1], screen[b, 2]
            x2, y2, z2 = screen[c, 0], screen[c, 1], screen[c, 2]
            area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
            if abs(area) < _F(1e-7) or min(z0, z1, z2) < _F(0.05):
                continue
            left = max(0, int(np.ceil(min(x0, x1, x2) - _F(0.5))))
            right = min(big - 1, int(np.floor(max(x0, x1, x2) - _F(0.5))))
            top = max(0, int(np.ceil(min(y0, y1, y2) - _F(0.5))))
            bottom = min(big - 1, int(np.floor(max(y0, y1, y2) - _F(0.5))))
            inverse = _F(1) / area
            image = texture[f]
            for row in range(top, bottom + 1):
                py = _F(row) + _F(0.5)
                for column in range(left, right + 1):
                    px = _F(column) + _F(0.5)
                    w1 = ((px - x0) * (y2 - y0) - (x2 - x0) * (py - y0)) * inverse
                    w2 = ((x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)) * inverse
                    w0 = _F(1) - w1 - w2
                    if w0 < 0 or w1 < 0 or w2 < 0:
                        continue
                    d = w0 * z0 + w1 * z1 + w2 * z2
                    if d >= depth[row, column]:
                        continue
                    depth[row, column] = d
                    nx = w0 * n[a, 0] + w1 * n[b, 0] + w2 * n[c, 0]
                    ny = w0 * n[a, 1] + w1 * n[b, 1] + w2 * n[c, 1]
                    nz = w0 * n[a, 2] + w1 * n[b, 2] + w2 * n[c, 2]
                    length = np.sqrt(max(_F(1e-12), nx * nx + ny * ny + nz * nz))
                    facing = view[2, 0] * nx + view[2, 1] * ny + view[2, 2] * nz
                    turn = _F(-1) if facing > 0 else _F(1)  # both sides are lit, as Blender does
                    lit = light[t, 3] + light[t, 4] * max(_F(0), turn * (nx * lx + ny * ly + nz * lz) / length)
                    r, g, bl = colors[f, 0] * lit, colors[f, 1] * lit, colors[f, 2] * lit
                    if image >= 0:
                        u = w0 * uv[a, 0] + w1 * uv[b, 0] + w2 * uv[c, 0]
                        v = w0 * uv[a, 1] + w1 * uv[b, 1] + w2 * uv[c, 1]
                        j = min(texture_sizes[image, 0] - 1, int((v - np.floor(v)) * texture_sizes[image, 0]))
                        i = min(texture_sizes[image, 1] - 1, int((u - np.floor(u)) * texture_sizes[image, 1]))
                        r *= textures[image, j, i, 0]
                        g *= textures[image, j, i, 1]
                        bl *= textures[image, j, i, 2]
                    shade[row, column, 0] = min(_F(1), r)
                    shade[row, column, 1] = min(_F(1), g)
                    shade[row, column, 2] = min(_F(1), bl)
                    near = _F(2) / d
                    for k in range(3):
                        moved[row, column, k] = near * (
                            w0 * (p[a, k] - rest[a, k]) + w1 * (p[b, k] - rest[b, k]) + w2 * (p[c, k] - rest[c, k])
                        )
        share = _F(1) / _F(ss * ss)
        for row in range(size):
            for column in range(size):
                for k in range(4):
                    rgba[t, row, column, k] = 0
                for k in range(3):
                    motion[t, row, column, k] = 0
                for i in range(ss):
                    for j in range(ss):
                        if depth[row * ss + i, column * ss + j] < _F(1e8):
                            rgba[t, row, column, 3] += share
                            for k in range(3):
                                rgba[t, row, column, k] += share * shade[row * ss + i, column * ss + j, k]
                                motion[t, row, column, k] += share * moved[row * ss + i, column * ss + j, k]
