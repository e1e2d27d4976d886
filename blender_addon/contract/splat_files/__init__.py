# SPDX-License-Identifier: GPL-3.0-or-later
"""The formats in which other programs keep 3D Gaussians, one module each, and `opening`, which tells them apart."""
