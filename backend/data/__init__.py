# SPDX-License-Identifier: GPL-3.0-or-later
"""Training data: animated assets, their pictures and how they move."""
