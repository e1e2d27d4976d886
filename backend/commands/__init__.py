# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of `python -m backend`: their options, and what they do. Heavy modules are imported by their command."""
