# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the backend of this computer keeps its data, and the files there by which the add-on finds it."""

import os
import sys
from pathlib import Path

HOME_VARIABLE = "KINESPLAT_HOME"
SERVER_FILE = "server.json"  # of a backend that runs: port, process, version
TOKEN_FILE = "token"
INSTALLATION_FILE = "installation.json"  # where the program lies that was set up last


def home_folder(override: str | os.PathLike | None = None) -> Path:
    """The data directory: `override`, else KINESPLAT_HOME, else the system's place for a user's data."""
    if chosen := override or os.environ.get(HOME_VARIABLE):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Application Support"
    else:
        return _linux_home()
    return Path(base).expanduser() / "kinesplat"


def _linux_home() -> Path:
    """Inside a Flatpak, XDG_DATA_HOME is the sandbox's own: a backend of the terminal has its data elsewhere.

    The two should meet, so there the terminal's place is taken, unless something of ours lies in the sandbox alone.
    """
    names = ["HOST_XDG_DATA_HOME", "XDG_DATA_HOME"] if os.environ.get("FLATPAK_ID") else ["XDG_DATA_HOME"]
    bases = [os.environ.get(name, "") for name in names]
    homes = [Path(base if os.path.isabs(base) else "~/.local/share").expanduser() / "kinesplat" for base in bases]
    known = (home for home in homes if (home / SERVER_FILE).exists() or (home / INSTALLATION_FILE).exists())
    return next(known, homes[0])
