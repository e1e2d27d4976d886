# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension as Blender loads it: one package with relative imports, registered, with folders of its own."""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.addon.fake_backend import FakeBackend

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "kinesplat"


def load_extension():
    """The repository's root as the package `kinesplat`, loaded once per process."""
    if PACKAGE not in sys.modules:
        places = [str(ROOT)]
        spec = importlib.util.spec_from_file_location(PACKAGE, ROOT / "__init__.py", submodule_search_locations=places)
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
    return sys.modules[PACKAGE]


def fresh_file() -> None:
    """An empty file as Blender brings it, without anything of the user's."""
    _factory_settings()
    sys.modules["bpy"].ops.wm.read_homefile(use_empty=True, use_factory_startup=True)


@functools.cache
def _factory_settings() -> None:
    """Once per process: registering all of Blender's add-ons anew takes several times as long as the empty file."""
    sys.modules["bpy"].ops.wm.read_factory_settings(use_empty=True)


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """The extension, registered in an empty file, with its own data folder and a backend home that nobody else uses."""
    bpy = pytest.importorskip("bpy")
    fresh_file()
    module = load_extension()
    preferences = importlib.import_module(f"{PACKAGE}.blender_addon.preferences")
    monkeypatch.setattr(preferences, "data_folder", lambda: tmp_path / "addon")
    monkeypatch.setenv("KINESPLAT_HOME", str(tmp_path / "home"))
    entry = bpy.context.preferences.addons.new()
    entry.module = PACKAGE
    module.register()
    try:
        yield module
    finally:
        module.unregister()
        bpy.context.preferences.addons.remove(entry)
        fresh_file()


@pytest.fixture
def part(extension):
    """Modules of the registered extension by their path inside it, such as `blender_addon.job_tracker`."""
    return lambda path: importlib.import_module(f"{PACKAGE}.{path}")


@pytest.fixture
def backend(tmp_path):
    """A fake backend that runs, where the extension looks for one."""
    with FakeBackend(tmp_path / "home") as running:
        yield running


@pytest.fixture
def options(extension, part, monkeypatch):
    """The panel's settings, in a scene with nothing but a camera's worth of emptiness; short waits."""
    thread = part("blender_addon.http_thread")
    monkeypatch.setattr(thread, "RUNNING_INTERVAL", 0.02)
    monkeypatch.setattr(thread, "LOCAL_RETRY", 0.05)
    monkeypatch.setattr(part("operators.generate"), "CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(part("blender_addon.job_tracker"), "LOST_SECONDS", 0.5)
    bpy = pytest.importorskip("bpy")
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 3, 11
    scene.kinesplat.samples = 1
    return scene.kinesplat
