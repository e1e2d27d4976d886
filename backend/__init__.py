# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinesplat's backend: video diffusion and Gaussian splatting behind a local service and a command line."""

import time

STARTED = time.monotonic()  # for commands that have to be done by a certain time
__version__ = "0.1.0"
