# SPDX-License-Identifier: GPL-3.0-or-later
"""One file per way from a request to a clip; each reads top-down like its paper."""
