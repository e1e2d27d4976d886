# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinesplat's backend: video diffusion and Gaussian splatting behind a local service and a command line."""

import os
import time

# Threads of torch sleep while they wait for each other, which costs a twentieth. Spinning they would take the cores
# from each other where Blender renders meanwhile: with one of two cores busy, a motion was invented in 17 s, now in 9.
# It is read when torch is loaded, so before that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

STARTED = time.monotonic()  # for commands that have to be done by a certain time
__version__ = "0.1.0"
