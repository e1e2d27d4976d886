# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension as Blender loads it: one package with relative imports, registered, with folders of its own."""

import functools
import importlib.util
import sys
import zlib
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


def built_once(reuse, folder: Path):
    """The add-on's `_reuse`: what it has built in an empty file it finds again in the next one, appended in no time.

    It still looks whether the group is the one that it would build.
    """

    def reused(kind: str, name: str, build):
        data, kept = sys.modules["bpy"].data, folder / f"{zlib.crc32(name.encode())}.blend"
        first = not data.node_groups
        if first and kept.exists():
            with data.libraries.load(str(kept), link=False) as (_, wanted):
                wanted.node_groups = [name]
            data.libraries.remove(data.libraries[kept.name])
        tree = reuse(kind, name, build)
        if first and not kept.exists():
            data.libraries.write(str(kept), {tree})
        return tree

    return reused


@pytest.fixture(scope="session")
def built_groups(tmp_path_factory) -> Path:
    """Where node groups lie that a test has built."""
    return tmp_path_factory.mktemp("groups")


@pytest.fixture(autouse=True)
def groups_built_once(monkeypatch, built_groups):
    """A playback group is built once per process and appended after; that takes a twentieth of the time."""
    if groups := sys.modules.get("blender_addon.node_groups"):
        monkeypatch.setattr(groups, "_reuse", built_once(groups._reuse, built_groups))


@pytest.fixture
def extension(tmp_path, monkeypatch, built_groups):
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
    groups = importlib.import_module(f"{PACKAGE}.blender_addon.node_groups")
    monkeypatch.setattr(groups, "_reuse", built_once(groups._reuse, built_groups))
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
