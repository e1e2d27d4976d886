# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussians, their motion, rasterisers, losses and the construction of clips from orbits."""
