# SPDX-License-Identifier: GPL-3.0-or-later
"""A run of the tests ends, whatever a test does to its process."""

import subprocess
import sys
from pathlib import Path

import pytest

import run

ROOT = Path(run.__file__).parent


def run_tests(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """pytest with this project's settings on a file of tests in a folder of its own."""
    (folder / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tests.conftest", *arguments, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.blender
def test_a_process_ends_whose_blender_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("bpy")
    code = "import ctypes\n\nimport bpy\n\n\ndef test():\n    ctypes.pythonapi.Py_IncRef(ctypes.py_object(bpy))\n"
    code += "    assert False, 'as it should'\n"
    done = run_tests(tmp_path, code, "-n", "0")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "as it should" in done.stdout
    assert "1 failed in" in done.stdout


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `run.py test` gives to pytest, for one process and tests of half a second."""
    given = []
    monkeypatch.setattr(run, "run_module", lambda python, module, arguments: given.extend(arguments))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)
    run.test(Path(sys.executable), ["-n", "1", "-o", "faulthandler_timeout=0.5"])
    return given


def test_a_test_that_hangs_ends_the_run(tmp_path: Path, arguments: list[str]) -> None:
    code = "import time\n\n\ndef test_hangs():\n    time.sleep(60)\n\n\ndef test_after():\n    pass\n"
    done = run_tests(tmp_path, code, *arguments)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert 'test_it.py", line 5 in test_hangs' in done.stderr, "the stacks"
    assert "crashed while running" in done.stdout
    assert "restarting disabled" in done.stdout


def test_a_crash_outside_of_all_tests_is_a_failure(tmp_path: Path, arguments: list[str]) -> None:
    """pytest-xdist by itself may end with 0 where another process is left."""
    code = (
        "import os\n\nif os.environ.get('PYTEST_XDIST_WORKER') == 'gw0':\n    os._exit(0)\n\n\ndef test():\n    pass\n"
    )
    done = run_tests(tmp_path, code, *arguments, "-n", "2")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "restarting disabled" in done.stdout
