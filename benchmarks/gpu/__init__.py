# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured on a GPU at the published sizes, by one command: `python -m benchmarks.gpu` (see `__main__`)."""
