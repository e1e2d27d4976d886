# SPDX-License-Identifier: GPL-3.0-or-later
"""A video as a job of the service: what is told while the losses fall, a killed worker, the clip."""

import numpy as np
import pytest

from blender_addon.contract.clip import read_clip
from blender_addon.contract.requests import video_request
from tests.service.running import running, wait_for
from tests.video.films import write_video

FITTING, ITERATIONS = "Following the video model", 60


@pytest.mark.slow
def test_a_video_job_goes_on_after_its_worker_was_killed(tmp_path):
    film = write_video(tmp_path / "film.webm", "libvpx-vp9", "yuva420p", alpha=True)
    with running(tmp_path / "home", pipelines="tests.service.video_pipelines:PIPELINES", device="cpu") as service:
        client = service.client()
        asked = video_request("Box", np.eye(4).tolist(), video=client.upload(film), gaussians=500)
        job = client.submit(asked, "key", "tests")
        assert job["detail"] is None

        def fitting() -> dict | None:
            now = client.job(job["id"])
            assert now["state"] in ("queued", "running"), now
            return now if now["stage"] == FITTING and now["step"] >= 10 else None

        seen = wait_for(fitting, 120, lambda: service.log(job["id"]))
        assert seen["detail"].startswith("distillation ")
        assert ", anchor " in seen["detail"]
        service.children()["worker"].kill()
        done = client.watch(job["id"])
        assert (done["state"], done["attempt"], done["detail"]) == ("succeeded", 2, None)
        client.fetch(job["id"], tmp_path / "clip.npz")
        log = service.log(job["id"])
    second = log[log.index("Attempt 2") :]
    assert "Reading the video" not in second  # what was kept is not made again
    assert f"{ITERATIONS} of {ITERATIONS}: distillation" in second
    assert "1 of 60: distillation" in log[: log.index("Attempt 2")]
    assert " 1 of 60:" not in second
    clip = read_clip(tmp_path / "clip.npz")
    assert clip.frame_count == 8
    assert len(clip.provenance["fit"]["losses"]["iteration"]) == ITERATIONS
