# SPDX-License-Identifier: GPL-3.0-or-later
"""Blender in a real window for tests: on an X display of its own, from a Debian root or as installed on this machine.

`KINESPLAT_BLENDER=/path/to/blender` takes an installed Blender (then Xvfb, xdotool and ImageMagick's import must be
installed as well); otherwise the root that `make_root.sh` makes is used, `KINESPLAT_BLENDER_ROOT` says where it lies.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT_ROOT = Path("~/.cache/kinesplat/blender-root")
SIZE = (1280, 1000)  # the sidebar needs the height; each pixel is drawn by the processor
TOOLS = ("Xvfb", "xdotool", "import")


class NoBlenderError(Exception):
    """There is no Blender for window tests; the message says what to do."""


@dataclass(frozen=True)
class Blender:
    """A Blender, and how to get at it."""

    binary: str
    root: Path | None  # the Debian root it lies in; None: on this machine

    def inside(self, work: Path) -> str:
        """The path under which Blender sees the folder `work`."""
        return str(work) if self.root is None else "/job"

    @property
    def shaders(self) -> Path:
        """Where compiled shaders are kept from one run to the next: without, each waits for them anew."""
        return self.root / "var/cache/kinesplat" if self.root else DEFAULT_ROOT.expanduser().parent / "shaders"

    def run(
        self, work: Path, arguments: list[str], *, window: bool, limit: float, environment: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Run Blender in the folder `work`, which also becomes its home; returns exit status and output.

        It ends, with all that it started, after `limit` seconds at the latest.
        """
        inside = self.inside(work)
        shutil.copy(HERE / "on_display.sh", work)
        command = [self.binary, *arguments]
        if window:
            width, height = map(str, SIZE)
            shape = ["--gpu-backend", "opengl", "-p", "0", "0", width, height]
            command = ["bash", f"{inside}/on_display.sh", f"{width}x{height}", self.binary, *shape, *arguments]
        if self.root is not None:
            command = ["bash", str(HERE / "in_root.sh"), str(self.root), str(work), *command]
        for folder in ("home", "run"):
            (work / folder).mkdir(mode=0o700, exist_ok=True)
        shaders = self.shaders
        shaders.mkdir(parents=True, exist_ok=True)
        variables = {
            "HOME": f"{inside}/home",
            "XDG_RUNTIME_DIR": f"{inside}/run",
            "LIBGL_ALWAYS_SOFTWARE": "1",
            "LP_NUM_THREADS": "1",  # that draw: with two, Blender takes a tenth more of the processors
            "MESA_SHADER_CACHE_DIR": f"/{shaders.relative_to(self.root or '/')}",
            "LANG": "C.UTF-8",
            "PATH": os.environ["PATH"] + ":/usr/sbin:/usr/bin:/sbin:/bin",
            "JOB": inside,
            **(environment or {}),
        }
        process = subprocess.Popen(
            command,
            cwd=work,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all of it can be ended together
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            _end(process)
            output, _ = process.communicate()
            output += f"\n(ended after {limit:.0f} s)"
        except BaseException:
            _end(process)
            raise
        return process.returncode, output


def find_blender() -> Blender:
    """The Blender to test in. Raises NoBlenderError."""
    if binary := os.environ.get("KINESPLAT_BLENDER"):
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if shutil.which(binary) is None:
            raise NoBlenderError(f"KINESPLAT_BLENDER is {binary}, which is no program")
        if missing:
            raise NoBlenderError(f"window tests with KINESPLAT_BLENDER need {', '.join(missing)}")
        return Blender(binary, None)
    root = Path(os.environ.get("KINESPLAT_BLENDER_ROOT") or DEFAULT_ROOT).expanduser()
    if not (root / "usr/bin/blender").is_file():
        raise NoBlenderError(f"no Blender in {root}: make it with tests/window/make_root.sh, or set KINESPLAT_BLENDER")
    if os.getuid() != 0:
        raise NoBlenderError(f"the Blender in {root} can only be used by root; set KINESPLAT_BLENDER to another one")
    return Blender("blender", root)


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
