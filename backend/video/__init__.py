# SPDX-License-Identifier: GPL-3.0-or-later
"""Video in: decoded in a process of its own, cut out, and framed as the networks expect their subject."""
