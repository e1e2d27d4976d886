# SPDX-License-Identifier: GPL-3.0-or-later
"""How tests are shared out where several run at once: a file's tests go together, and there is one window at a time."""

from pathlib import Path

import pytest

WINDOW = Path(__file__).parent / "window"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = WINDOW if WINDOW in item.path.parents else item.path
            item.add_marker(pytest.mark.xdist_group(str(group)))
