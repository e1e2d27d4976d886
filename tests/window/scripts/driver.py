# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside Blender: acts like a user, with real mouse and keys, one step per timer call.

A script is a generator that yields seconds to wait:

    def steps():
        yield from open_tab("Kinesplat")
        yield from click(*(yield from find_button("bpy.ops.kinesplat.generate(")))
        yield from wait_until(lambda: ..., 60, "the job has ended")

    play(steps())
"""

import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Generator
from pathlib import Path

import bpy
import numpy as np

JOB = Path(os.environ["JOB"])
RESULT: dict = {}  # what the script found out; goes to result.json
TICK = 0.02
COLORED = 30  # of 255, between the largest and the smallest channel of a pixel: more than a theme's grays
FEWEST_COLORED = 500  # pixels of a subject

_last_tick = 0.0
_longest = 0.0


def play(steps: Generator[float, None, None]) -> None:
    """Run the steps, write `result.json`, and end Blender. Errors end it as well and stand in the result."""
    bpy.context.preferences.view.show_splash = False  # it would eat the first click
    RESULT["blender"] = bpy.app.version_string

    def advance() -> float | None:
        try:
            return next(steps)
        except StopIteration:
            RESULT["error"] = ""
        except BaseException:
            RESULT["error"] = traceback.format_exc()
            print(RESULT["error"], flush=True)
            picture("error")
        (JOB / "result.json").write_text(json.dumps(RESULT, indent=1))
        bpy.ops.wm.quit_blender()
        return None

    bpy.app.timers.register(advance, first_interval=1.5, persistent=True)


def note(text: str) -> None:
    """Say in the output where the script stands."""
    print(f"[{time.monotonic():.1f}] {text}", flush=True)


def window() -> bpy.types.Window:
    """Blender's window. (Timers run without one in the context.)"""
    return bpy.context.window_manager.windows[0]


def viewport() -> tuple[bpy.types.Area, bpy.types.Region]:
    """The 3D viewport and its sidebar."""
    area = next(area for area in window().screen.areas if area.type == "VIEW_3D")
    return area, next(region for region in area.regions if region.type == "UI")


def open_tab(name: str, width: int = 380) -> Generator[float, None, None]:
    """Open the viewport's sidebar at a tab."""
    area, _ = viewport()
    area.spaces.active.show_region_ui = True
    yield 0.6
    sidebar = viewport()[1]
    sidebar.active_panel_category = name
    sidebar.tag_redraw()
    yield 0.6
    note(f"sidebar {sidebar.width} x {sidebar.height}, tab {sidebar.active_panel_category}")


def picture(name: str) -> None:
    """Keep a picture of the whole screen. (Blender stands still meanwhile; that is no freeze of its own.)"""
    global _last_tick
    (JOB / "pictures").mkdir(exist_ok=True)
    fast = ["-quality", "11"]  # of PNG: the least compression, in half the time
    subprocess.run(["import", "-window", "root", *fast, str(JOB / "pictures" / f"{name}.png")], check=True)
    _last_tick = time.monotonic()


def wait_for_colors(seconds: float = 300) -> Generator[float, None, None]:
    """Wait until the viewport shows something in color, and the same thing twice.

    EEVEE compiles its shaders in the background, for minutes on a slow computer, and shows an empty scene meanwhile.
    """
    area, sidebar = viewport()
    space = area.spaces.active
    window().scene.eevee.taa_samples = 1  # each further one is another picture, and slow without a graphics card
    window().scene.render.preview_pixel_size = "2"  # a quarter of the work
    space.overlay.show_overlays = space.show_gizmo = False  # outlines and axes have colors as well
    rim = 80  # headers and tools lie over the region
    x, y = area.x + rim, window().height - (area.y + area.height - rim)
    crop = f"{area.width - sidebar.width - 2 * rim}x{area.height - 2 * rim}+{x}+{y}"
    former = b""

    def is_drawn() -> bool:
        nonlocal former
        command = ["import", "-window", "root", "-crop", crop, "-depth", "8", "rgb:-"]
        shown = subprocess.run(command, check=True, capture_output=True).stdout
        pixels = np.frombuffer(shown, np.uint8).reshape(-1, 3).astype(np.int16)
        colored = np.count_nonzero(np.ptp(pixels, axis=1) > COLORED)
        stands_still, former = shown == former, shown
        return stands_still and colored > FEWEST_COLORED

    yield from wait_until(is_drawn, seconds, "the viewport shows colors", area.tag_redraw, every=1.0)
    space.overlay.show_overlays = space.show_gizmo = True
    yield 1.0


def move_mouse(x: int, y: int) -> None:
    """Move the mouse to a place in the window, counted from its lower left corner as Blender does."""
    xdotool("mousemove", x, window().height - y)


def click(x: int, y: int) -> Generator[float, None, None]:
    """A real click with the left mouse button."""
    move_mouse(x, y)
    yield 0.3
    xdotool("click", 1)
    yield 0.4


def press(key: str) -> None:
    """A real key press, such as `ctrl+z`."""
    xdotool("key", key)


def xdotool(*arguments) -> None:
    """Mouse and keys as the X server delivers them."""
    subprocess.run(["xdotool", *map(str, arguments)], check=True)


def find_button(call: str, below: tuple[int, int] | None = None) -> Generator[float, None, tuple[int, int]]:
    """Where in the sidebar the button lies whose Python command begins with `call`.

    Blender does not tell where it draws its buttons, but Ctrl C over one copies its command. `below` is where to begin
    to look; by default it is the top of the sidebar.
    """
    _, sidebar = viewport()
    wm = bpy.context.window_manager
    step = 16  # a button is 20 high
    top = below[1] if below else sidebar.y + sidebar.height - step
    for x in (sidebar.x + sidebar.width * sixths // 6 for sixths in (2, 4, 5)):  # the last: beside a field
        for y in range(top, sidebar.y, -step):
            wm.clipboard = ""
            move_mouse(x, y)
            yield 0.06
            press("ctrl+c")
            yield 0.06
            if wm.clipboard.startswith(call):
                note(f"{call} is at {x}, {y}")
                return x, y
    raise AssertionError(f"no button with {call} in the sidebar")


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
    what: str,
    each: Callable[[], None] = lambda: None,
    every: float = 0.25,
) -> Generator[float, None, None]:
    """Wait for something that Blender does by itself."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        each()
        yield every
    note(what)


def watch_freezes() -> None:
    """From now on, measure how long Blender is not ready for the user; see `longest_freeze`."""
    global _last_tick, _longest
    _last_tick, _longest = time.monotonic(), 0.0
    if not bpy.app.timers.is_registered(_tick):
        bpy.app.timers.register(_tick, first_interval=TICK, persistent=True)


def longest_freeze() -> float:
    """Longest time between two calls of a 20 ms timer since `watch_freezes`, in seconds."""
    return _longest


def _tick() -> float:
    global _last_tick, _longest
    now = time.monotonic()
    _longest = max(_longest, now - _last_tick - TICK)
    _last_tick = now
    return TICK
