# SPDX-License-Identifier: GPL-3.0-or-later
"""What the add-on can do to Blender data: no operators, no panels, no torch."""
