# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels: none is left out of what is compiled before a job needs it, and constants elsewhere count as theirs.

And what a worker loads before its first job.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend import compiled
from tests.test_house import ROOT, module_name

FILES = [path for path in sorted((ROOT / "backend").rglob("*.py")) if "numba" in path.read_text("utf-8")]
OWN = (
    "backend.compiled",
    "backend.data.skinning",
    "backend.data.stills",
)  # the latter: training and evaluation only


def decorators(function: ast.FunctionDef) -> set[str]:
    """Names of the decorators, without module and arguments."""
    calls = [item.func if isinstance(item, ast.Call) else item for item in function.decorator_list]
    return {item.attr if isinstance(item, ast.Attribute) else item.id for item in calls}


@pytest.mark.parametrize("path", [path for path in FILES if module_name(path) not in OWN], ids=module_name)
def test_what_python_calls_is_a_kernel_of_one_signature(path: Path) -> None:
    """A function that is only njit is compiled when somebody first waits for it; so kernels alone may call it."""
    functions = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    helpers = {function.name for function in functions if "njit" in decorators(function)}
    for function in functions:
        if decorators(function) & {"njit", "kernel", "intrinsic"}:
            continue
        used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert not used & helpers, f"{function.name} calls {used & helpers}: decorate it with @kernel(signature)"


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """What a process has that has loaded the pipelines, as warm-up and the worker do it, and after that a training."""
    code = "import json, sys; from backend.service import worker; from backend import compiled\n"
    code += "from backend.splatting import rasterize\n"
    code += "for kind in worker.PIPELINES: worker.load_pipeline(f'{worker.__name__}:PIPELINES', kind)\n"
    code += "compiled.compile_all = lambda tell: None; rasterize.warm_up()\n"
    code += "kernels = sorted({kernel.__module__ for kernel, _ in compiled._kernels})\n"
    code += "import backend.training.trainer, backend.evaluation.motion_metrics\n"
    code += "print(json.dumps({'kernels': kernels, 'modules': list(sys.modules)}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_loading_the_pipelines_makes_all_kernels_known(loaded) -> None:
    has_kernels = {
        module_name(path) for path in (ROOT / "backend").rglob("*.py") if "@kernel(" in path.read_text("utf-8")
    }
    assert set(loaded["kernels"]) == has_kernels
    assert {"backend.nerf.kernels", "backend.models.inflation"} < has_kernels


@pytest.mark.slow
def test_what_few_need_is_not_imported_at_the_start(loaded) -> None:
    """Each is seconds of every worker and every command: transformers comes with the VAE, scipy.stats with DPM."""
    assert {"backend.pipelines.fourdiffusion", "backend.pipelines.diffusion4d"} < set(loaded["modules"])
    assert not {"transformers", "scipy.stats"} & set(loaded["modules"])


def test_a_kernel_is_compiled_anew_where_a_file_that_it_imports_from_changes(tmp_path, monkeypatch) -> None:
    (tmp_path / "splatting").mkdir()
    kernels, constants = tmp_path / "splatting" / "kernels.py", tmp_path / "splatting" / "constants.py"
    kernels.write_text("from backend.splatting.constants import SIZE\n")
    constants.write_text("from backend.splatting.kernels import LOOP\nSIZE = 4\n")
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    (tmp_path / "compiled.py").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    find = compiled._cache_folder.__wrapped__
    before = find(kernels)
    assert before == find(kernels)
    constants.write_text("SIZE = 8\n")
    assert find(kernels) != before


def test_kernels_that_nobody_has_asked_for_in_a_long_time_are_forgotten(tmp_path, monkeypatch) -> None:
    kernels = tmp_path / "kernels.py"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    find = compiled._cache_folder.__wrapped__
    folders = []
    for version in ("1", "2", "3"):
        kernels.write_text(f"SIZE = {version}\n")
        folders.append(find(kernels))
        (folders[-1] / "kernels.nbi").touch()
        os.utime(folders[-1], (0, 0))
    assert [folder.exists() for folder in folders] == [False, False, True]
    find(kernels)  # is in use again
    kernels.write_text("SIZE = 4\n")
    find(kernels)
    assert folders[-1].exists()


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_kernels_that_a_crash_has_cut_short_are_compiled_anew(ending, tmp_path, monkeypatch) -> None:
    (tmp_path / "kernels.py").write_text("def add(a, b):\n    return a + b\n")
    monkeypatch.setattr(compiled, "_cache_folder", lambda file: tmp_path / "cache")
    monkeypatch.setattr(compiled, "_kernels", [])

    def loaded():
        made: dict = {}
        path = tmp_path / "kernels.py"
        exec(compile(path.read_text(), path, "exec"), made)
        add = compiled.kernel("float64(float64, float64)")(made["add"])
        monkeypatch.setattr(compiled, "_compiled", len(compiled._kernels) - 1)
        compiled.compile_all()
        assert add(1.0, 2.0) == 3.0
        return add

    assert loaded().stats.cache_misses
    assert loaded().stats.cache_hits
    for path in tmp_path.rglob(f"*.{ending}"):
        path.write_bytes(path.read_bytes()[:5])
    loaded()
    assert loaded().stats.cache_hits, "it was mended for good"


def test_kernels_that_cannot_be_kept_are_compiled_all_the_same(tmp_path, monkeypatch) -> None:
    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled, "_cache_folder", lambda file: tmp_path)
    monkeypatch.setattr(compiled, "_kernels", [])
    monkeypatch.setattr(compiled, "_compiled", 0)
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    twice = compiled.kernel("float64(float64)")(lambda a: a * 2)
    compiled.compile_all()
    assert twice(2.0) == 4.0
