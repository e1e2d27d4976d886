# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernels agree on: constants of the image formation and the columns of a projected Gaussian.

The image formation is that of gsplat, so that both engines give the same pictures. A Gaussian's exponent is written as

    sigma = 1/2 (SHARP_X (dx - LEAN dy)^2 + SHARP_Y dy^2),    (dx, dy) = pixel - mean

in place of gsplat's 1/2 (conic_xx dx^2 + 2 conic_xy dx dy + conic_yy dy^2). It is the same number, but a sum of
squares, which loses no digits where a splat is long and thin, and says at once which pixels of a row it reaches.
"""

import numpy as np

from backend.splatting.rasterize.lanes import WIDTH

TILE_WIDTH, TILE_HEIGHT = 32, 16  # pixels
ROW = TILE_WIDTH + WIDTH  # numbers per row of a tile's buffers: eight lanes may begin at its last pixel
MAX_ALPHA = np.float32(0.999)  # of one Gaussian in one pixel
MIN_ALPHA = np.float32(1 / 255)  # weaker contributions are skipped
MIN_TRANSMITTANCE = np.float32(1e-4)  # a pixel is finished before it falls to this

# A projected Gaussian ("splat") is one row of float32: these columns, then its colors, then its depth along the
# camera's axis, which so can be drawn as one more channel.
MEAN_X, MEAN_Y = 0, 1  # pixels
SHARP_X, LEAN, SHARP_Y = 2, 3, 4  # 1 / variance of x where y is known, covariance / variance of y, 1 / variance of y
OPACITY = 5  # antialiasing included
EXTENT_X, EXTENT_Y = 6, 7  # half the box outside which alpha < MIN_ALPHA, pixels; negative: not visible
FIRST_CHANNEL = 8

# A row of gradients: MEAN_X to OPACITY, then the channels that are drawn.
FIRST_CHANNEL_GRADIENT = 6
