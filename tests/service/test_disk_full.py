# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that is really full, under the whole service: nothing is lost, and it goes on by itself afterwards."""

import os
import subprocess
import sys

import pytest

from backend.service import paths
from backend.service.client import CallError
from backend.service.queue import Queue
from tests.service.fake_pipelines import expected_result
from tests.service.running import pictures, running, wait_for


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "home"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs Linux and root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder) -> None:
    """Use the disk's last byte."""
    with open(folder / "ballast", "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            while True:
                try:
                    if file.write(b"x" * size) < size:
                        break
                except OSError:
                    break


@pytest.mark.slow
def test_the_disk_fills_up_and_gets_space_again(small_disk, tmp_path):
    with running(small_disk) as service:
        client = service.client()
        before = client.watch(service.submit("steps=2", client)["id"])
        assert before["state"] == "succeeded"
        name = "steps=60 seconds=0.05"
        job = service.submit(name, client)
        wait_for(lambda: client.job(job["id"])["step"] > 5)
        fill(small_disk)

        with pytest.raises(CallError) as caught:
            service.submit("steps=1", client, seed=5)  # needs room for its pictures
        assert (caught.value.status, caught.value.code) == (507, "disk_full")
        refused = 0
        for index in range(60):  # needs room for its row, as soon as the log of the database must grow
            try:
                service.submit("steps=1 " + "x" * 150, client, key=f"key-{index}")
            except CallError as error:
                assert (error.status, error.code) == (507, "disk_full")
                refused += 1
                if refused == 3:
                    break
        assert refused, "the disk was not full"
        assert client.job(before["id"])["state"] == "succeeded"  # reading works
        client.fetch(before["id"], tmp_path / "clip.npz")
        assert sorted(service.children()) == ["api", "worker"]

        (small_disk / "ballast").unlink()
        done = client.watch(job["id"])
        assert (done["state"], done["error"]["code"]) == ("failed", "disk_full")
        client.retry(job["id"])
        assert client.watch(job["id"])["state"] == "succeeded"
        client.fetch(job["id"], tmp_path / "clip.npz")
        assert (tmp_path / "clip.npz").read_bytes() == expected_result({"name": name}, pictures())
        for row in client.jobs():
            assert client.watch(row["id"])["state"] == "succeeded"
        service.stop()
        home = paths.Home(service.settings.home)
        queue = Queue(home.database)
        assert queue.problems() == []
        queue.close()
