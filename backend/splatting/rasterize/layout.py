# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernels agree on: constants of the image formation and the columns of a projected Gaussian.

The image formation is that of gsplat's "classic" mode, so that both engines give the same pictures.
"""

import numpy as np

TILE = 16  # pixels along the side of a tile; the inner loops are exactly this long, so that they become SIMD code
MAX_ALPHA = np.float32(0.999)  # of one Gaussian in one pixel
MIN_ALPHA = np.float32(1 / 255)  # weaker contributions are skipped
MIN_TRANSMITTANCE = np.float32(1e-4)  # a pixel is finished before it falls to this

# A projected Gaussian ("splat") is one row of float32; 12 columns are three quarters of a cache line.
MEAN_X, MEAN_Y = 0, 1  # pixels
CONIC_XX, CONIC_XY, CONIC_YY = 2, 3, 4  # inverse of the 2D covariance
OPACITY = 5
RED, GREEN, BLUE = 6, 7, 8
EXTENT_X, EXTENT_Y = 9, 10  # half the box outside which alpha < MIN_ALPHA, pixels; negative: not visible
DEPTH = 11  # along the camera's axis
SPLAT_COLUMNS = 12
GRADIENT_COLUMNS = 9  # MEAN_X to BLUE carry gradients
