# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which files of tests are handed to the processes that run them."""


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: one that began last would be waited for by everybody else."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable
