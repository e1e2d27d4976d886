# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements, each a module with a `main`: `python run.py bench NAME`."""
