# SPDX-License-Identifier: GPL-3.0-or-later
"""How processes of our own are started, as far as it can be seen without each system."""

import os
import subprocess
import sys

from backend.interpreter import own_process


def test_a_process_of_our_own_finds_our_package_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (tmp_path / "backend").mkdir()  # of another project, in which the service was started
    for name in ("__init__.py", "__main__.py"):
        (tmp_path / "backend" / name).touch()
    command, environment = own_process("backend", "--version", KINESPLAT_EXTRA="1")
    assert environment["KINESPLAT_EXTRA"] == "1"
    said = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("Kinesplat ")


def test_on_windows_the_starter_of_a_virtual_environment_is_left_out(monkeypatch):
    """A socket is handed to the process with an id, and memory is asked by it: it must be that of the Python."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "executable", "C:/venv/Scripts/python.exe")
    monkeypatch.setattr(sys, "_base_executable", "C:/Python311/python.exe")
    command, environment = own_process("backend.service.api")
    assert command[0] == "C:/Python311/python.exe"
    assert environment["__PYVENV_LAUNCHER__"] == "C:/venv/Scripts/python.exe"
    monkeypatch.setattr(sys, "executable", "C:/Python311/python.exe")
    command, environment = own_process("backend.service.api")
    assert command[0] == "C:/Python311/python.exe"
    assert environment.get("__PYVENV_LAUNCHER__") == os.environ.get("__PYVENV_LAUNCHER__")
