# SPDX-License-Identifier: GPL-3.0-or-later
"""The house rules that a program can hold: who imports whom, licence lines, versions, what stays out of the project."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from backend import __version__
from backend.data.blender_wheel import INSTALL

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("blender_addon", "operators", "panels", "backend", "examples", "benchmarks", "tests")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
STANDARD = set(sys.stdlib_module_names)

# Longest prefix wins. A room may import itself, the standard library, and what its line names.
LEAVES = (
    *("backend.__version__", "backend.progress", "backend.versions", "backend.interpreter"),
    *("backend.compiled", "backend.pictures"),
    "blender_addon.contract",
)
MAY_IMPORT = {
    "blender_addon": ("numpy", "requests", "bpy", "bmesh", "mathutils", "bpy_extras", "gpu"),
    "blender_addon.contract": ("numpy",),
    "blender_addon.contract.splat_files.spz": ("numpy", "compression", "zstandard", "blender_addon.contract"),
    "blender_addon.client": ("requests", "blender_addon.contract"),
    "operators": ("bpy", "mathutils", "bpy_extras", "numpy", "blender_addon"),
    "panels": ("bpy", "blender_addon"),
    "backend.progress": ("numpy",),
    "backend.versions": ("backend.__version__",),
    "backend.interpreter": ("filelock",),
    "backend.compiled": ("numba", "platformdirs"),
    "backend.pictures": ("numpy", "torch"),
    "backend.console": ("rich", *LEAVES),
    "backend.splatting": (
        *("numpy", "torch", "numba", "llvmlite", "scipy", "gsplat", "PIL", "platformdirs", "filelock", "psutil"),
        *LEAVES,
    ),
    "backend.evaluation": (
        *("numpy", "torch", "scipy", "PIL", "transformers"),
        *("backend.pipelines", "backend.splatting", "backend.models", "backend.data", *LEAVES),
    ),
    "backend.evaluation.truth_worker": ("numpy", "PIL", "backend", "blender_addon"),  # a process of its own
    "backend.models": (
        *("numpy", "numba", "torch", "diffusers", "transformers", "tokenizers", "ftfy", "safetensors"),
        *("huggingface_hub", "requests", "filelock", "platformdirs", *LEAVES),
    ),
    "backend.guidance": ("torch", "diffusers"),
    "backend.nerf": ("numpy", "torch", "numba", *LEAVES),
    "backend.video": ("numpy", "scipy", "PIL", "psutil", "rembg", *LEAVES),
    "backend.video.decoder": ("numpy", "PIL", "av", "backend.video", *LEAVES),  # a process of its own, alone decodes
    "backend.exchange": ("numpy", "PIL", *LEAVES),
    "backend.exchange.usd": ("numpy", "pxr", "backend.exchange", *LEAVES),
    "backend.pipelines": (
        *("numpy", "torch", "numba", "scipy", "PIL"),
        *("backend.models", "backend.guidance", "backend.splatting", "backend.nerf", "backend.video", *LEAVES),
    ),
    "backend.data": (
        *("numpy", "numba", "torch", "PIL"),
        *("backend.models", "backend.guidance", "backend.pipelines", "backend.splatting", *LEAVES),
        *("backend.evaluation.metrics", "backend.__version__"),
    ),
    **dict.fromkeys(  # each is run in a process of its own
        (f"backend.data.{name}" for name in ("blender_model", "blender_renderer", "bake", "still_model")),
        ("bpy", "mathutils", "numpy", "PIL", "backend", "blender_addon"),
    ),
    "backend.training": (
        *("numpy", "torch", "scipy", "PIL", "accelerate", "diffusers", "safetensors", "backend.console"),
        *("backend.data", "backend.models", "backend.guidance", "backend.pipelines", "backend.splatting", *LEAVES),
        "backend.evaluation.metrics",
    ),
    "backend.service": (
        *("fastapi", "starlette", "uvicorn", "pydantic", "anyio", "requests", "rich", "psutil", "filelock"),
        *("platformdirs", "PIL", "numpy", "torch", "numba", "gsplat"),
        *("backend.pipelines", "backend.splatting", "backend.console", "backend.options", *LEAVES),
    ),
    "backend.service.executors": (*("ray", "numpy", "filelock", "platformdirs", "backend.service", *LEAVES),),
    "backend.commands.export": ("numpy", "backend", "blender_addon.contract"),
    "backend.commands": ("backend", "blender_addon.contract"),
    "backend.commands.jobs": ("rich", "backend", "blender_addon.contract"),
    "backend.commands.submit": ("numpy", "backend", "blender_addon.contract"),
    "backend.commands.published_weights": ("rich", "backend", "blender_addon.contract"),
    "backend.commands.published_dry_run": ("torch", "rich", "backend", "blender_addon.contract"),
    "backend.commands.evaluate_video": ("torch", "backend", "blender_addon.contract"),
    "backend.commands.generate_files": ("numpy", "backend", "blender_addon.contract"),
    "backend.commands.work_folder": ("filelock", "backend", "blender_addon.contract"),
    "backend.commands.orbit_folders": ("numpy", "PIL", "backend", "blender_addon.contract"),
    "backend.options": ("backend.video", *LEAVES),  # of several commands
    "backend.__main__": ("backend", "blender_addon.contract"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{module}.{alias.name}" if module else alias.name for alias in node.names)
    return found


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


INSTALLED = ("blender_addon", "operators", "panels", "backend")
PRODUCT = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in INSTALLED]


@pytest.mark.parametrize("path", PRODUCT, ids=module_name)
def test_imports_follow_the_arrows(path: Path) -> None:
    name = module_name(path)
    rooms = [room for room in MAY_IMPORT if within(name, room)]
    if not rooms:
        assert name == "backend", f"{name} has no room: give it one in MAY_IMPORT"
        return
    room = max(rooms, key=len)
    for imported in imports(path):
        top = imported.split(".")[0]
        allowed = (
            top in STANDARD
            or imported == name.split(".")[0]
            or any(within(imported, other) for other in (room, *MAY_IMPORT[room]))
        )
        talks = room == "backend.__main__" or within(room, "backend.commands")
        if within(imported, "backend.service") and not talks:
            allowed = within(name, "backend.service")
        assert allowed, f"{name} must not import {imported}"


def test_the_extension_uses_relative_imports_only() -> None:
    for path in PRODUCT:
        if module_name(path).startswith("backend"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.split(".")[0] not in ("blender_addon", "operators", "panels"), f"{path}: {name}"


def test_the_demo_starts_without_torch() -> None:
    """Its bar shall be there at once; what diffuses and constructs is a process of its own."""
    code = "import sys, examples.demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_root_imports_without_blender() -> None:
    code = "import importlib.util, sys; spec = importlib.util.spec_from_file_location('kinesplat', '__init__.py');"
    code += "spec.loader.exec_module(importlib.util.module_from_spec(spec)); sys.exit('bpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_source_names_its_licence() -> None:
    for path in [*SOURCES, ROOT / "run.py", ROOT / "__init__.py"]:
        text = path.read_text("utf-8")
        assert not text.strip() or text.startswith("# SPDX-License-Identifier: GPL-3.0-or-later\n"), path


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_scripts_in_documents_run_as_they_are_pasted(path: Path) -> None:
    for script in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
        compile(script, path.name, "exec")
        assert "bpy." not in script or script.startswith("import bpy\n"), "Blender's text editor imports nothing"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    manifest = tomllib.loads((ROOT / "blender_manifest.toml").read_text("utf-8"))
    assert __version__ == project["project"]["version"] == manifest["version"]
    assert INSTALL.split()[-1] == project["project"]["optional-dependencies"]["blender"][0].partition(";")[0]


def test_torch_is_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert [line for line in project["dependencies"] if re.match(r"torch\b", line)] == ["torch==2.13.0"]
