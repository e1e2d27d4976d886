# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: N806 - capitals as in the formulas
"""From Gaussians in space to splats on the picture, and the way back for gradients (EWA splatting, pinhole camera).

With V = [R | t] the view matrix, (tx, ty, tz) = R mean + t and (u, v) = (tx, ty) / tz, the 2D covariance is
S + eps2d I, S = J R Sigma R^T J^T, where J R has the rows p = fx / tz (R_x - u R_z) and r = fy / tz (R_y - v R_z), and
Sigma = Q diag(scales^2) Q^T. Only there, u and v are clamped to the picture widened by 15 % per side, as in gsplat:
outside, the linearization would blow up. With a_k and b_k the k-th principal axis seen through p and r, det S is the
sum of (a_k b_l - a_l b_k)^2, which is exact also for needles.

The kernels are scalar code per Gaussian, fused so that nothing between input and splat goes through memory. Colors are
no matter of theirs.
Source: Zwicker et al., "EWA Splatting" (2002); Ye et al., "Mathematical Supplement for the gsplat Library" (2023);
antialiasing: Yu et al., "Mip-Splatting" (2024), equation 9.
"""

import numpy as np
from numba import njit

from backend.compiled import kernel
from backend.splatting.rasterize.layout import EXTENT_X, EXTENT_Y, LEAN, MEAN_X, MEAN_Y, OPACITY, SHARP_X, SHARP_Y

F = np.float32
ZERO, HALF, ONE, TWO = F(0), F(0.5), F(1), F(2)
MARGIN = F(0.15)  # how far past the picture's edge the linearization follows, as a part of the picture's side
LARGEST = F(1e8)  # pixels; whatever is beyond has overflowed or is not a number
LEVELS = F(255)

_INPUTS = (
    "float32[:,:,::1], float32[:,:,::1], float32[:,:,::1], float32[:,::1], "
    "float32[:,:,::1], float32[:,::1], int64, int64, int64, float32, boolean"
)


@njit(inline="always")
def _rotation(w, x, y, z):
    """The rows of the rotation matrix of a unit quaternion."""
    return (
        ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y),
        TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x),
        TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y),
    )  # fmt: skip


@njit(inline="always")
def _bounds(focal, center, side):
    """Where the slope (u or v) is clamped: lowest and highest."""
    margin = MARGIN * side / focal
    return -(center / focal + margin), (side - center) / focal + margin


@kernel(f"void({_INPUTS}, float32, int64, int64, float32[:,::1])")
def project(
    means,  # [B or 1, N, 3]; 1 where all images share it
    quats,  # [B or 1, N, 4] wxyz, any length above 0
    scales,  # [B or 1, N, 3]
    opacities,  # [B or 1, N]
    viewmats,  # [I, 4, 4], I = B * cameras
    intrinsics,  # [I, 4] fx, fy, cx, cy
    cameras,
    width,
    height,
    eps2d,
    antialiased,
    near_plane,
    start,  # Gaussians [start, stop) of all images
    stop,
    splats,  # [I * N, columns] out, all but the colors
):
    """Project a range of Gaussians into every image. What cannot be seen gets a negative extent."""
    count, depth = means.shape[1], splats.shape[1] - 1
    wide, high = F(width), F(height)
    for image in range(viewmats.shape[0]):
        batch = image // cameras
        mu = means[min(batch, means.shape[0] - 1)]
        quat = quats[min(batch, quats.shape[0] - 1)]
        scale = scales[min(batch, scales.shape[0] - 1)]
        opacity = opacities[min(batch, opacities.shape[0] - 1)]
        V = viewmats[image]
        fx, fy, cx, cy = intrinsics[image, 0], intrinsics[image, 1], intrinsics[image, 2], intrinsics[image, 3]
        u_low, u_high = _bounds(fx, cx, wide)
        v_low, v_high = _bounds(fy, cy, high)
        for n in range(start, stop):
            out = splats[image * count + n]
            X, Y, Z = mu[n, 0], mu[n, 1], mu[n, 2]
            tz = V[2, 0] * X + V[2, 1] * Y + V[2, 2] * Z + V[2, 3]
            o = opacity[n]
            out[:] = ZERO
            out[EXTENT_X] = F(-1)
            out[EXTENT_Y] = F(-1)
            # Every test is written so that it fails for NaN.
            if not (tz > near_plane and o * LEVELS >= ONE):
                continue
            tx = V[0, 0] * X + V[0, 1] * Y + V[0, 2] * Z + V[0, 3]
            ty = V[1, 0] * X + V[1, 1] * Y + V[1, 2] * Z + V[1, 3]
            iz = ONE / tz
            mx = fx * tx * iz + cx
            my = fy * ty * iz + cy
            u = min(max(tx * iz, u_low), u_high)
            v = min(max(ty * iz, v_low), v_high)
            ax, ay = fx * iz, fy * iz
            p0, p1, p2 = ax * (V[0, 0] - u * V[2, 0]), ax * (V[0, 1] - u * V[2, 1]), ax * (V[0, 2] - u * V[2, 2])
            r0, r1, r2 = ay * (V[1, 0] - v * V[2, 0]), ay * (V[1, 1] - v * V[2, 1]), ay * (V[1, 2] - v * V[2, 2])
            w, x, y, z = quat[n, 0], quat[n, 1], quat[n, 2], quat[n, 3]
            inverse = ONE / np.sqrt(w * w + x * x + y * y + z * z)
            Q = _rotation(w * inverse, x * inverse, y * inverse, z * inverse)
            s0, s1, s2 = scale[n, 0], scale[n, 1], scale[n, 2]
            a0, b0 = (p0 * Q[0] + p1 * Q[3] + p2 * Q[6]) * s0, (r0 * Q[0] + r1 * Q[3] + r2 * Q[6]) * s0
            a1, b1 = (p0 * Q[1] + p1 * Q[4] + p2 * Q[7]) * s1, (r0 * Q[1] + r1 * Q[4] + r2 * Q[7]) * s1
            a2, b2 = (p0 * Q[2] + p1 * Q[5] + p2 * Q[8]) * s2, (r0 * Q[2] + r1 * Q[5] + r2 * Q[8]) * s2
            d01, d02, d12 = a0 * b1 - a1 * b0, a0 * b2 - a2 * b0, a1 * b2 - a2 * b1
            sxx, sxy, syy = a0 * a0 + a1 * a1 + a2 * a2, a0 * b0 + a1 * b1 + a2 * b2, b0 * b0 + b1 * b1 + b2 * b2
            area = d01 * d01 + d02 * d02 + d12 * d12  # det S
            blurred = area + eps2d * (sxx + syy + eps2d)
            cxx, cyy = sxx + eps2d, syy + eps2d
            if antialiased:
                o *= np.sqrt(area / blurred)
                if not (o * LEVELS >= ONE):
                    continue
            reach = np.sqrt(TWO * np.log(o * LEVELS))  # where alpha falls to 1 / 255, in standard deviations
            ex, ey = reach * np.sqrt(cxx), reach * np.sqrt(cyy)
            # The wide margin only drops what is surely outside; binning decides exactly.
            seen = mx + ex > F(-1) and mx - ex < wide + ONE and my + ey > F(-1) and my - ey < high + ONE
            if not (seen and ex < LARGEST and ey < LARGEST and abs(mx) < LARGEST and abs(my) < LARGEST):
                continue
            if not (blurred > ZERO and cyy < blurred * LARGEST):
                continue
            out[MEAN_X] = mx
            out[MEAN_Y] = my
            out[SHARP_X] = cyy / blurred
            out[LEAN] = sxy / cyy
            out[SHARP_Y] = ONE / cyy
            out[OPACITY] = o
            out[EXTENT_X] = ex
            out[EXTENT_Y] = ey
            out[depth] = tz


@kernel(
    f"void({_INPUTS}, float32[:,::1], float32[:,::1], int64, int64, int64, "
    "float32[:,:,::1], float32[:,:,::1], float32[:,:,::1], float32[:,::1])"
)
def project_backward(
    means,
    quats,
    scales,
    opacities,
    viewmats,
    intrinsics,
    cameras,
    width,
    height,
    eps2d,
    antialiased,
    splats,  # [I * N, columns] as `project` left them
    splat_gradients,  # [I * N, 6 + channels]
    depth_gradient,  # the column with the gradient of the depth; -1 if depth is not drawn
    start,
    stop,
    means_gradient,  # [B or 1, N, 3] zeros; out, summed over the images that share it
    quats_gradient,  # [B or 1, N, 4]
    scales_gradient,  # [B or 1, N, 3]
    opacities_gradient,  # [B or 1, N]
):
    """Gradients of a range of Gaussians."""
    count, depth = means.shape[1], splats.shape[1] - 1
    wide, high = F(width), F(height)
    for image in range(viewmats.shape[0]):
        batch = image // cameras
        mu = means[min(batch, means.shape[0] - 1)]
        quat = quats[min(batch, quats.shape[0] - 1)]
        scale = scales[min(batch, scales.shape[0] - 1)]
        opacity = opacities[min(batch, opacities.shape[0] - 1)]
        mu_out = means_gradient[min(batch, means.shape[0] - 1)]
        quat_out = quats_gradient[min(batch, quats.shape[0] - 1)]
        scale_out = scales_gradient[min(batch, scales.shape[0] - 1)]
        opacity_out = opacities_gradient[min(batch, opacities.shape[0] - 1)]
        V = viewmats[image]
        fx, fy, cx, cy = intrinsics[image, 0], intrinsics[image, 1], intrinsics[image, 2], intrinsics[image, 3]
        u_low, u_high = _bounds(fx, cx, wide)
        v_low, v_high = _bounds(fy, cy, high)
        for n in range(start, stop):
            splat = splats[image * count + n]
            grad = splat_gradients[image * count + n]
            if splat[EXTENT_X] < ZERO:
                continue

            # The forward pass again, which costs less than keeping it.
            X, Y, Z = mu[n, 0], mu[n, 1], mu[n, 2]
            tx = V[0, 0] * X + V[0, 1] * Y + V[0, 2] * Z + V[0, 3]
            ty = V[1, 0] * X + V[1, 1] * Y + V[1, 2] * Z + V[1, 3]
            iz = ONE / splat[depth]
            u_free, v_free = tx * iz, ty * iz
            u = min(max(u_free, u_low), u_high)
            v = min(max(v_free, v_low), v_high)
            ax, ay = fx * iz, fy * iz
            p0, p1, p2 = ax * (V[0, 0] - u * V[2, 0]), ax * (V[0, 1] - u * V[2, 1]), ax * (V[0, 2] - u * V[2, 2])
            r0, r1, r2 = ay * (V[1, 0] - v * V[2, 0]), ay * (V[1, 1] - v * V[2, 1]), ay * (V[1, 2] - v * V[2, 2])
            w, x, y, z = quat[n, 0], quat[n, 1], quat[n, 2], quat[n, 3]
            inverse = ONE / np.sqrt(w * w + x * x + y * y + z * z)
            w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
            Q = _rotation(w, x, y, z)

            # Gradient of the 2D covariance (gxy: of each of its two equal entries). SHARP_X = 1 / (Sxx - LEAN^2 Syy).
            A, k, W = splat[SHARP_X], splat[LEAN], splat[SHARP_Y]
            gv = -A * A * grad[SHARP_X]
            gk = W * grad[LEAN]
            gxx, gxy, gyy = gv, HALF * gk - k * gv, k * k * gv - k * gk - W * W * grad[SHARP_Y]
            kept = ONE  # of the opacity, squared root of det S / det (S + eps2d I)
            if antialiased:
                kept = splat[OPACITY] / opacity[n]
                step = HALF * grad[OPACITY] * opacity[n] / kept
                trace = ONE / A + (k * k + ONE) / W - eps2d
                lost = eps2d * trace * A * W  # 1 - kept^2
                gxx += step * (lost * A - eps2d * A * W)
                gxy -= step * lost * k * A
                gyy += step * (lost * (A * k * k + W) - eps2d * A * W)
            opacity_out[n] += grad[OPACITY] * kept

            # 2D covariance to scales, and to p, r and the rotation matrix, one principal axis after the other.
            gp0, gp1, gp2, gr0, gr1, gr2 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            q00, q01, q02, q10, q11, q12, q20, q21, q22 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            for axis in range(3):
                s = scale[n, axis]
                pa = p0 * Q[axis] + p1 * Q[3 + axis] + p2 * Q[6 + axis]
                rb = r0 * Q[axis] + r1 * Q[3 + axis] + r2 * Q[6 + axis]
                da = TWO * s * (gxx * pa + gxy * rb)
                db = TWO * s * (gxy * pa + gyy * rb)
                scale_out[n, axis] += da * pa + db * rb
                da *= s
                db *= s
                gp0 += da * Q[axis]
                gp1 += da * Q[3 + axis]
                gp2 += da * Q[6 + axis]
                gr0 += db * Q[axis]
                gr1 += db * Q[3 + axis]
                gr2 += db * Q[6 + axis]
                c0, c1, c2 = da * p0 + db * r0, da * p1 + db * r1, da * p2 + db * r2
                if axis == 0:
                    q00, q10, q20 = c0, c1, c2
                elif axis == 1:
                    q01, q11, q21 = c0, c1, c2
                else:
                    q02, q12, q22 = c0, c1, c2

            # Rotation matrix to quaternion, then through its normalization: only the part across it remains.
            gw = TWO * (x * (q21 - q12) + y * (q02 - q20) + z * (q10 - q01))
            gx = TWO * (-TWO * x * (q11 + q22) + y * (q01 + q10) + z * (q02 + q20) + w * (q21 - q12))
            gy = TWO * (x * (q01 + q10) - TWO * y * (q00 + q22) + z * (q12 + q21) + w * (q02 - q20))
            gz = TWO * (x * (q02 + q20) + y * (q12 + q21) - TWO * z * (q00 + q11) + w * (q10 - q01))
            along = gw * w + gx * x + gy * y + gz * z
            quat_out[n, 0] += (gw - along * w) * inverse
            quat_out[n, 1] += (gx - along * x) * inverse
            quat_out[n, 2] += (gy - along * y) * inverse
            quat_out[n, 3] += (gz - along * z) * inverse

            # p, r and the 2D mean to the camera-space mean. A clamped slope does not move with the mean.
            gu = -ax * (gp0 * V[2, 0] + gp1 * V[2, 1] + gp2 * V[2, 2])
            gv = -ay * (gr0 * V[2, 0] + gr1 * V[2, 1] + gr2 * V[2, 2])
            if u_free < u_low or u_free > u_high:
                gu = ZERO
            if v_free < v_low or v_free > v_high:
                gv = ZERO
            gu += fx * grad[MEAN_X]
            gv += fy * grad[MEAN_Y]
            # p and r scale with 1 / tz; (u, v) = (tx, ty) / tz.
            stretch = gp0 * p0 + gp1 * p1 + gp2 * p2 + gr0 * r0 + gr1 * r1 + gr2 * r2
            gtx = gu * iz
            gty = gv * iz
            gtz = -(stretch + gu * u_free + gv * v_free) * iz
            if depth_gradient >= 0:
                gtz += grad[depth_gradient]
            mu_out[n, 0] += V[0, 0] * gtx + V[1, 0] * gty + V[2, 0] * gtz
            mu_out[n, 1] += V[0, 1] * gtx + V[1, 1] * gty + V[2, 1] * gtz
            mu_out[n, 2] += V[0, 2] * gtx + V[1, 2] * gty + V[2, 2] * gtz
