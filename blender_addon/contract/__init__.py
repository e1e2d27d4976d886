# SPDX-License-Identifier: GPL-3.0-or-later
"""What the add-on and the backend must agree on: clips, orbits, requests. Needs numpy alone."""
