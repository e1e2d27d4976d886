# SPDX-License-Identifier: GPL-3.0-or-later
"""What window tests share: a Blender, the built extension archive, a backend outside, a place for pictures."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backend.service.settings import Settings
from tests.service.running import SERVE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def _load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def blender():
    """The Blender of the window tests; where there is none, they are skipped with the reason."""
    blender_window = _load("blender_window")
    try:
        return blender_window.find_blender()
    except blender_window.NoBlenderError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The extension archive, built the way users get it."""
    wheel = importlib.util.find_spec("bpy")  # it carries Blender's tool that builds archives
    if wheel is None:
        pytest.skip("building the extension archive needs the bpy wheel")
    tool = next(Path(wheel.origin).parent.glob("*/scripts/addons_core/bl_pkg/cli/blender_ext.py"))
    out = tmp_path_factory.mktemp("archive")
    command = [sys.executable, tool, "build", "--source-dir", ROOT, "--output-dir", out]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return next(out.glob("kinesplat-*.zip"))


@pytest.fixture
def work(tmp_path, request):
    """A folder that Blender sees; pictures and results left in it are kept under out/window."""
    (tmp_path / "work").mkdir()
    yield tmp_path / "work"
    kept = ROOT / "out" / "window" / request.node.name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for pattern in ("pictures/*.png", "*.json", "*.txt", "backend/logs/*", "backend/jobs/*/*.log"):
        for path in tmp_path.glob(f"work/{pattern}"):
            shutil.copy(path, kept)


@pytest.fixture
def backend_home(work):
    """The data folder of a backend that runs outside Blender, as a process of its own."""
    home = work / "backend"
    yield from _serve(work, ["-m", "backend", "serve", "--home", home, "--min-free-gb", "0.1"])


@pytest.fixture
def swaying_home(work):
    """The same with pipelines that need no network: what they generate sways."""
    settings = Settings(work / "backend", pipelines="tests.window.swaying:PIPELINES", min_free=0)
    yield from _serve(work, ["-c", SERVE, settings.to_json()])


def _serve(work, arguments):
    home = work / "backend"
    log = open(work / "backend.txt", "w")  # noqa: SIM115 - lives as long as the process
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        deadline = time.monotonic() + 120
        while not (home / "server.json").is_file():
            assert process.poll() is None, f"the backend ended: {(work / 'backend.txt').read_text()}"
            assert time.monotonic() < deadline, "the backend did not start within 120 s"
            time.sleep(0.2)
        yield home
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
