# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators with the real backend as a process of its own: start, generate, import, stop."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.blender.test_operators import active_job, error_of, moving_cube

bpy = pytest.importorskip("bpy")
pytestmark = [pytest.mark.blender, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def tracker(extension, part):
    """The job tracker of an extension that knows this checkout as its backend."""
    preferences = part("blender_addon.preferences").get()
    preferences.folder, preferences.python = str(ROOT), sys.executable
    job_tracker = part("blender_addon.job_tracker")
    yield job_tracker
    part("blender_addon.local_backend").stop(part("blender_addon.preferences").connection().home)


def test_start_generate_import_stop(tracker, part) -> None:
    """The job is the backend's: it goes on where that was killed meanwhile, and started again."""
    home = part("blender_addon.preferences").connection().home
    local_backend = part("blender_addon.local_backend")
    assert bpy.ops.kinesplat.start_backend() == {"FINISHED"}
    status = bpy.context.window_manager.kinesplat
    assert status.backend_state == "running"
    first = local_backend.read_server(home)
    again = local_backend.start(part("blender_addon.preferences").installation(), home)
    assert again.pid == first.pid, "starting twice is one backend"
    moving_cube()
    bpy.context.scene.kinesplat.preset = "draft"
    bpy.context.scene.kinesplat.gaussians = 500
    bpy.context.scene.kinesplat.resolution = 64  # after the preset, which sets it as well
    bpy.ops.kinesplat.generate()
    uid = active_job().uid
    board = tracker.tracker().board
    tracker.wait(lambda: board.rows[uid].state == "running", 60)
    os.kill(first.pid, signal.SIGKILL)
    tracker.wait(lambda: board.backend.state == "stopped", 30)
    time.sleep(1.0)
    assert bpy.ops.kinesplat.start_backend() == {"FINISHED"}
    seen = []
    row = tracker.wait_for_job(uid, 300, lambda: seen.append((active_job().state, active_job().stage)))
    assert row.state == "succeeded", row
    assert any(state == "running" and stage for state, stage in seen)
    assert row.preview is not None
    assert bpy.ops.kinesplat.import_result() == {"FINISHED"}
    splats = bpy.context.active_object
    assert part("blender_addon.splat_object").is_splat_object(splats)
    assert 100 <= len(splats.data.vertices) <= 1000
    clip = part("blender_addon.point_cloud").clip_of_object(splats)
    for frame, x in ((0, 0.0), (clip.frame_count - 1, 1.0)):  # it goes the way of the box
        middle = np.median(clip.frame(frame).means, axis=0)
        assert abs((np.array(splats.matrix_world) @ [*middle, 1])[0] - x) < 0.1
    assert bpy.ops.kinesplat.stop_backend() == {"FINISHED"}
    assert status.backend_state == "stopped"
    assert "not running" in error_of(bpy.ops.kinesplat.remove_job)


def test_the_port_is_taken(tracker, part) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        part("blender_addon.preferences").get().port = taken.getsockname()[1]
        said = error_of(bpy.ops.kinesplat.start_backend)
    assert "port" in said.lower()
