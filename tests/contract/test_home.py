# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the backend and the add-on look for each other."""

import sys
from pathlib import Path

import pytest

from blender_addon.contract.home import INSTALLATION_FILE, SERVER_FILE, home_folder


@pytest.fixture(autouse=True)
def user(monkeypatch):
    for name in ("XDG_DATA_HOME", "HOST_XDG_DATA_HOME", "FLATPAK_ID", "KINESPLAT_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/jö na")


@pytest.mark.parametrize(
    ("platform", "variables", "place"),
    [
        ("linux", {}, "/home/jö na/.local/share/kinesplat"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/kinesplat"),
        ("linux", {"XDG_DATA_HOME": "data"}, "/home/jö na/.local/share/kinesplat"),
        ("darwin", {}, "/home/jö na/Library/Application Support/kinesplat"),
        # Of the terminal in which a backend is started, and not of a Blender that is started from the dock.
        ("darwin", {"XDG_DATA_HOME": "/data"}, "/home/jö na/Library/Application Support/kinesplat"),
        ("win32", {}, "/home/jö na/AppData/Local/kinesplat"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/kinesplat"),
        ("linux", {"KINESPLAT_HOME": "/elsewhere"}, "/elsewhere"),
        ("linux", {"KINESPLAT_HOME": "~/elsewhere"}, "/home/jö na/elsewhere"),
    ],
)
def test_each_system_has_its_place(monkeypatch, platform, variables, place):
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert home_folder() == Path(place)
    assert home_folder("/chosen") == Path("/chosen")


def test_a_relative_folder_stays_the_same_one_for_a_process_that_starts_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert home_folder("here") == tmp_path / "here"


def test_blender_of_flatpak_finds_the_backend_of_the_terminal(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    sandbox = tmp_path / ".var" / "app" / "org.blender.Blender" / "data"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(sandbox))
    assert home_folder() == sandbox / "kinesplat"  # a user who has set it so
    monkeypatch.setenv("FLATPAK_ID", "org.blender.Blender")
    outside = tmp_path / ".local" / "share" / "kinesplat"
    assert home_folder() == outside
    (sandbox / "kinesplat").mkdir(parents=True)
    (sandbox / "kinesplat" / INSTALLATION_FILE).touch()
    assert home_folder() == sandbox / "kinesplat"  # set up from a terminal inside
    outside.mkdir(parents=True)
    (outside / SERVER_FILE).touch()
    assert home_folder() == outside
    monkeypatch.setenv("HOST_XDG_DATA_HOME", str(tmp_path / "host"))
    assert home_folder() == sandbox / "kinesplat"
