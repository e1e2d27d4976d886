# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators with the real backend as a process of its own: start, generate, import, stop."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from blender_addon.contract.frames import read_frames
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
    assert bpy.ops.kinesplat.start_backend() == {"FINISHED"}
    status = bpy.context.window_manager.kinesplat
    assert status.backend_state == "running"
    moving_cube()
    bpy.context.scene.kinesplat.preset = "draft"
    bpy.context.scene.kinesplat.gaussians = 500
    bpy.context.scene.kinesplat.resolution = 64  # after the preset, which sets it as well
    bpy.ops.kinesplat.generate()
    seen = []
    row = tracker.wait_for_job(active_job().uid, 300, lambda: seen.append((active_job().state, active_job().stage)))
    assert row.state == "succeeded", row
    assert any(state == "running" and stage for state, stage in seen)
    assert row.preview is not None
    assert bpy.ops.kinesplat.import_result() == {"FINISHED"}
    splats = bpy.context.active_object
    assert part("blender_addon.splat_object").is_splat_object(splats)
    assert 100 <= len(splats.data.vertices) <= 1000
    assert abs(splats.matrix_world.translation.x - 0.5) < 0.05  # the middle of the way of the box
    assert bpy.ops.kinesplat.stop_backend() == {"FINISHED"}
    assert status.backend_state == "stopped"
    assert "not running" in error_of(bpy.ops.kinesplat.remove_job)


def test_from_a_still_object_to_its_motion(tracker, part) -> None:
    """Through the model that comes with Kinesplat: candidates first, then the clip of one."""
    bpy.ops.kinesplat.start_backend()
    bpy.ops.mesh.primitive_monkey_add(location=(2, 0, 0))
    bpy.context.object.data.materials.append(bpy.data.materials.new("Gray"))
    options = bpy.context.scene.kinesplat
    options.prompt, options.motion, options.steps, options.samples = "it nods", 3.0, 4, 2
    options.preset, options.gaussians, options.resolution, options.preview_frames = "draft", 500, 64, True
    bpy.ops.kinesplat.generate(wait=True)
    first, second = bpy.context.window_manager.kinesplat.jobs
    moving = [read_frames(tracker.tracker().board.rows[job.uid].result) for job in (first, second)]
    assert [frames.seed for frames in moving] == [0, 1]
    assert moving[0].moving.shape == (24, 64, 64, 4)
    assert (moving[0].moving != moving[1].moving).any(), "another seed must give another motion"
    assert bpy.ops.kinesplat.build_job(uid=second.uid, wait=True) == {"FINISHED"}
    assert bpy.ops.kinesplat.import_result() == {"FINISHED"}
    splats = bpy.context.active_object
    assert splats.matrix_world.translation.x == pytest.approx(2, abs=0.1)
    assert 100 <= len(splats.data.vertices) <= 1000


def test_the_backend_is_killed_and_started_again(tracker, part) -> None:
    """The job is the backend's: it goes on."""
    bpy.ops.kinesplat.start_backend()
    moving_cube()
    bpy.context.scene.kinesplat.preset = "draft"
    bpy.context.scene.kinesplat.gaussians = 500
    bpy.context.scene.kinesplat.resolution = 64  # after the preset, which sets it as well
    bpy.ops.kinesplat.generate()
    uid = active_job().uid
    board = tracker.tracker().board
    tracker.wait(lambda: board.rows[uid].state == "running", 60)
    home = part("blender_addon.preferences").connection().home
    local_backend = part("blender_addon.local_backend")
    pid = local_backend.read_server(home).pid
    os.kill(pid, signal.SIGKILL)
    tracker.wait(lambda: board.backend.state == "stopped", 30)
    time.sleep(1.0)
    assert bpy.ops.kinesplat.start_backend() == {"FINISHED"}
    assert tracker.wait_for_job(uid, 300).state == "succeeded"


def test_the_port_is_taken(tracker, part) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        part("blender_addon.preferences").get().port = taken.getsockname()[1]
        said = error_of(bpy.ops.kinesplat.start_backend)
    assert "port" in said.lower()


def test_starting_twice_is_one_backend(tracker, part) -> None:
    bpy.ops.kinesplat.start_backend()
    home = part("blender_addon.preferences").connection().home
    local_backend = part("blender_addon.local_backend")
    first = local_backend.read_server(home)
    again = local_backend.start(part("blender_addon.preferences").installation(), home)
    assert again.pid == first.pid
