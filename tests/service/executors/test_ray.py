# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the Ray executor refuses to start, and what it says then."""

import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from backend.__main__ import main
from backend.progress import UserError
from backend.service import paths
from backend.service.blobs import WrongHashError
from backend.service.executors import ray
from backend.service.executors.ray_attempt import RayAttempt
from backend.service.settings import Settings
from tests.service import fake_pipelines
from tests.service.executors.conftest import needs_ray
from tests.service.fake_pipelines import expected_result
from tests.service.running import PIPELINES, ROOT, pictures, request_of, wait_for


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """A computer on which nothing speaks against Ray, as far as can be seen without a cluster."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    return Settings(tmp_path, executor="ray")


def refusal(settings: Settings) -> UserError:
    with pytest.raises(UserError) as caught:
        ray.check(settings)
    assert str(caught.value).endswith(".")
    assert caught.value.hint
    return caught.value


def test_a_fit_computer_is_not_refused(fit):
    ray.check(fit)


@pytest.mark.parametrize("mode", [None, "", "disabled", "k8s"])
def test_without_token_mode_it_is_refused(fit, monkeypatch, mode):
    monkeypatch.delenv("RAY_AUTH_MODE")
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    error = refusal(fit)
    assert error.code == "ray_without_token"
    assert "RAY_AUTH_MODE=token" in error.hint


def test_without_a_token_it_is_refused(fit, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert refusal(fit).code == "ray_without_token"
    (tmp_path / "token").write_text("ab" * 32)
    ray.check(fit)


def test_other_systems_missing_packages_and_folders_are_sentences(fit, monkeypatch, tmp_path):
    assert refusal(Settings(tmp_path, ray_folder=str(tmp_path / "nowhere"))).code == "ray_folder_missing"
    assert refusal(Settings(tmp_path, ray_address="ray://head:10001")).code == "ray_address"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(fit).code == "ray_not_installed"
    monkeypatch.setattr(sys, "platform", "win32")
    assert refusal(fit).code == "ray_needs_linux"


def test_the_command_line_says_it_too_and_starts_nothing(fit, monkeypatch, capsys):
    serve = ["serve", "--home", str(fit.home / "home"), "--ray-resource", "GPU"]
    assert main(serve) == 2
    assert "go with --executor ray" in capsys.readouterr().err
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert main([*serve, "--executor", "ray"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "RAY_AUTH_MODE is not 'token'" in err


# The actor, spoken to as Ray speaks to it


@pytest.fixture
def make_actor(monkeypatch, tmp_path):
    """Makes the actor of a job in this process, with no thread that outlives the test: a later one may have Blender
    render, which crashes where other threads run."""
    monkeypatch.setattr(RayAttempt, "_watch", lambda actor: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    level = logging.getLogger("backend").level

    def make(name: str, **settings: object) -> RayAttempt:
        names = [hashlib.sha256(data).hexdigest() for data in pictures()]
        job = {"id": "0" * 16, "kind": "orbit", "request": request_of(name, names)}
        chosen = {"pipelines": PIPELINES, "min_free": 0, **settings}
        return RayAttempt(Settings(tmp_path / "home", **chosen).to_json(), json.dumps(job))

    yield make
    logging.getLogger("backend").setLevel(level)


def send(actor: RayAttempt) -> None:
    """All that it lacks, in two pieces each."""
    contents = {hashlib.sha256(data).hexdigest(): data for data in pictures()}
    for sha256 in json.loads(actor.prepare())["missing"]:
        assert actor.receive(sha256, contents[sha256][:100], True, False) == ""
        assert actor.receive(sha256, contents[sha256][100:], False, True) == ""


def heard(actor: RayAttempt) -> tuple[list[dict], list[bytes], dict]:
    """What it tells until it has ended: progress, previews, how it ended."""
    news, previews = [], []
    while True:
        text, pictures = actor.poll()
        said = json.loads(text)
        news += said["news"]
        previews += [(shape, data) for shape, data in zip(said["shapes"], pictures, strict=True) if shape]
        if said["end"]:
            return news, previews, said["end"]
        time.sleep(0.02)


def test_an_actor_gets_inputs_works_and_hands_out_its_result(make_actor, tmp_path):
    actor = make_actor("steps=30 seconds=0.04")
    assert len(json.loads(actor.prepare())["missing"]) == len(pictures())
    send(actor)
    assert json.loads(actor.prepare())["missing"] == []
    actor.begin()
    actor.begin()
    news, previews, end = heard(actor)
    assert [item["stage"] for item in news if item["step"] == item["total"]][-2:] == ["Working", "Done"]
    assert previews
    assert all((shape, len(data)) == ([600, 300, 3], 600 * 300 * 3) for shape, data in previews)
    data = b"".join(actor.read(offset, 1000) for offset in range(0, end["size"], 1000))
    assert data == expected_result({"name": "steps=30 seconds=0.04"}, pictures())
    assert end == {"state": "succeeded", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    work = tmp_path / "cache" / "kinesplat" / "ray" / "jobs" / ("0" * 16) / "work"
    assert work.exists()
    actor.forget()
    assert not work.exists()


def test_inputs_that_were_cut_off_or_are_wrong_are_sent_again(make_actor):
    actor = make_actor("steps=1")
    data = pictures()[0]
    sha256 = hashlib.sha256(data).hexdigest()
    actor.receive(sha256, data[:100], True, False)  # and here the server was killed
    send(actor)
    assert json.loads(actor.prepare())["missing"] == []
    with pytest.raises(WrongHashError):
        actor.receive("0" * 64, b"other bytes", True, True)


def test_inputs_without_room_are_a_sentence(make_actor):
    actor = make_actor("steps=1", quota=1000)
    sentence = actor.receive(hashlib.sha256(pictures()[0]).hexdigest(), pictures()[0], True, True)
    for _ in range(3):
        sentence = sentence or actor.receive(hashlib.sha256(b"x" * 900).hexdigest(), b"x" * 900, True, True)
    assert "too little free space" in sentence


def test_who_asks_anew_hears_the_newest_of_what_was_told_before(make_actor, monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr(fake_pipelines, "misbehave", lambda wish, step, run: step == 0 or may_end.wait())
    actor = make_actor("steps=2 seconds=0")
    send(actor)
    actor.begin()
    wait_for(lambda: any(item["step"] == 1 for item in json.loads(actor.poll()[0])["news"]))
    assert json.loads(actor.poll()[0])["news"] == []
    assert json.loads(actor.prepare())["begun"]
    (item,) = json.loads(actor.poll()[0])["news"]
    assert (item["stage"], item["step"]) == ("Working", 1)
    may_end.set()
    assert heard(actor)[2]["state"] == "succeeded"


def test_a_shared_folder_that_a_machine_lacks_is_a_sentence(make_actor, tmp_path):
    actor = make_actor("steps=1", ray_folder=str(tmp_path / "not mounted"))
    send(actor)
    actor.begin()
    end = heard(actor)[2]
    assert (end["state"], end["code"]) == ("failed", "ray_folder_missing")
    assert not (tmp_path / "not mounted").exists()


def test_checkpoints_and_inputs_of_long_ago_go_and_ones_own_stay(make_actor, tmp_path):
    cache = paths.Home(tmp_path / "cache" / "kinesplat" / "ray")
    for name in ("0" * 16, "1" * 16, "2" * 16):
        cache.begin_work(name)
        (cache.work(name) / "state").write_bytes((3).to_bytes(4, "big") + bytes(32))
    for name in ("0" * 16, "1" * 16):
        os.utime(cache.work(name), (1, 1))
    actor = make_actor("steps=4")
    send(actor)
    actor.begin()
    assert heard(actor)[2]["state"] == "succeeded"
    assert (cache.jobs / ("0" * 16) / "trace").read_text() == "3\n"  # it went on from its own
    assert sorted(path.name for path in cache.jobs.iterdir()) == ["0" * 16, "2" * 16]


@pytest.mark.slow
def test_an_actor_that_no_server_asks_about_ends(tmp_path):
    code = """
import sys, time
from backend.service.executors.ray_attempt import RayAttempt
RayAttempt(sys.argv[1], "{}")
time.sleep(60)
"""
    command = [sys.executable, "-c", code, Settings(tmp_path, ray_forsaken=0).to_json()]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    assert subprocess.run(command, cwd=ROOT, env=environment, timeout=30).returncode == 0


@needs_ray[0]
@needs_ray[1]
def test_a_cluster_that_asks_for_no_token_is_refused(tmp_path):
    """The server has a token, but the cluster was started without."""
    code = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    unsecured = {**environment, "RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "120"}
    cluster = subprocess.Popen(
        [sys.executable, "-c", code], env=unsecured, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        address = cluster.stdout.readline().strip()
        assert address, "the cluster did not start"
        serve = [sys.executable, "-m", "backend", "serve", "--home", str(tmp_path / "home"), "--executor", "ray"]
        secured = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
        answer = subprocess.run(
            [*serve, "--ray-address", address], cwd=ROOT, env=secured, capture_output=True, text=True, timeout=120
        )
    finally:
        cluster.communicate("")
    assert answer.returncode == 1
    assert "answers also who does not show its token" in answer.stderr
    assert "Traceback" not in answer.stderr
