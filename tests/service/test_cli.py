# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands `jobs` and `doctor` as a user types them."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.__main__ import main
from backend.commands import jobs as jobs_command
from backend.commands import submit
from backend.data.object_capture import CapturedObject
from backend.progress import UserError
from backend.service import cli, client, doctor, paths
from backend.service.queue import Queue
from blender_addon.contract.clip import write_clip
from blender_addon.contract.orbit import Orbit, orbit_cameras, write_orbit_json
from tests.contract.clips import random_clip
from tests.service.fake_pipelines import expected_result
from tests.service.running import ROOT, running, wait_for


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("cli") / "home") as service:
        yield service


@pytest.fixture
def orbit(tmp_path):
    folder = tmp_path / "steps=3"
    folder.mkdir()
    write_orbit_json(folder, orbit_cameras(Orbit(frames=8), 64, 64, moving=True))
    for index in range(8):
        Image.fromarray(np.full((64, 64, 4), index, np.uint8)).save(folder / f"frame_{index:03d}.png")
    return folder


@pytest.fixture
def run(service, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        words = [str(word) for word in arguments]
        code = main([*words, "--home", str(service.settings.home)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_from_an_orbit_folder_to_a_clip(run, orbit, tmp_path):
    out = tmp_path / "clip.npz"
    code, said, _ = run("jobs", "submit", "--orbit", orbit, "--static", orbit, "--out", out)
    assert code == 0
    assert str(out) in said
    inputs = [(orbit / f"frame_{index:03d}.png").read_bytes() for index in range(8)]
    assert out.read_bytes() == expected_result({"name": "steps=3"}, inputs)
    job = said.split()[0]
    code, said, _ = run("jobs", "list")
    assert code == 0
    assert job in said
    assert "succeeded" in said
    again = tmp_path / "again.npz"
    assert run("jobs", "fetch", job[:6], "--out", again)[0] == 0
    assert again.read_bytes() == out.read_bytes()
    assert run("jobs", "watch", job)[0] == 0


def test_from_a_folder_of_diffusion4d_to_a_clip(run, service, tmp_path):
    folder, out = tmp_path / "steps=2", tmp_path / "clip.npz"
    folder.mkdir()
    moving, static = ([folder / f"{name}{k}.png" for k in range(8)] for name in ("multi_frame", "multi_static_frame"))
    for value, path in enumerate([*moving, *static]):
        Image.fromarray(np.full((64, 64, 4), value, np.uint8)).save(path)
    code, said, _ = run("jobs", "submit", "--orbit", folder, "--out", out)
    assert code == 0
    assert out.read_bytes() == expected_result({"name": "steps=2"}, [path.read_bytes() for path in moving])
    row = Queue(service.settings.home / "jobs.sqlite3").get(said.split()[0])
    inputs = json.loads(row.request)["inputs"]
    assert inputs["static"]["frames"] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in static]
    assert not any(inputs["static"]["cameras"]["times"])


def test_old_jobs_are_found_however_many_there_are(run, orbit, monkeypatch, capsys):
    jobs = [run("jobs", "submit", "--orbit", orbit)[1].strip() for _ in range(3)]
    monkeypatch.setattr(client, "PAGE", 2)
    assert run("jobs", "watch", jobs[0])[0] == 0
    for limit in (1, 2, 3):
        said = run("jobs", "list", "--limit", limit)[1]
        assert [job for job in jobs if job in said] == jobs[3 - limit :]
    with pytest.raises(SystemExit):
        run("jobs", "list", "--limit", "0")
    assert "must be 1 or more" in capsys.readouterr().err


def test_a_clip_that_cannot_be_written_in_the_end_is_not_lost(run, orbit, tmp_path, monkeypatch):
    def full(*arguments) -> None:
        raise OSError(28, "No space left on device", "x.npz")

    monkeypatch.setattr(client.Client, "fetch", full)
    code, job, error = run("jobs", "submit", "--orbit", orbit, "--out", tmp_path / "x.npz")
    assert code == 1
    assert f"jobs fetch {job.split()[0]} --out" in error
    assert "x.npz cannot be used: No space left" in error


def test_names_that_the_output_has_no_letters_for_break_nothing(service):
    """As where Windows writes a list into a file."""
    client = service.client()
    client.watch(service.submit("steps=1 Füchsin 狐", client)["id"])
    command = [sys.executable, "-m", "backend", "jobs", "list", "--home", str(service.settings.home)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True).stdout
    assert "Füchsin ?" in said.decode("cp1252")


def test_a_video_is_submitted_as_a_request(run, service, tmp_path):
    film, folder = tmp_path / "film.mp4", tmp_path / "pictures"
    film.write_bytes(b"film")
    folder.mkdir()
    for index in range(70):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(folder / f"{index}.png")

    def request_of(*options: object) -> dict:
        code, said, error = run("jobs", "submit", "--video", *options)
        assert code == 0, error
        job = service.client().job(said.split()[0])
        assert (job["kind"], job["detail"]) == ("video", None)
        row = Queue(service.settings.home / "jobs.sqlite3").get(job["id"])
        return json.loads(row.request)

    said = ("--start", "0.5", "--text", "a fox", "--model", "published", "--representation", "nerf", "--frames", 16)
    request = request_of(film, *said)
    assert request["inputs"]["video"] == hashlib.sha256(b"film").hexdigest()
    assert (request["name"], request["inputs"]["start"], request["inputs"]["end"]) == ("film, a fox", 0.5, None)
    settings = request["settings"]
    assert (settings["prompt"], settings["model"], settings["representation"]) == ("a fox", "published", "nerf")
    assert (settings["frames"], settings["fps"], settings["cutout"]) == (16, None, "auto")
    request = request_of(folder, "--fps", "12")
    assert len(request["inputs"]["pictures"]) == 64  # as many as may be sent
    assert request["inputs"]["pictures_fps"] == pytest.approx(12 * 63 / 69)
    for words in (("--orbit", tmp_path, "--frames", "8"), ("--video", film, "--static", tmp_path)):
        with pytest.raises(SystemExit):
            run("jobs", "submit", *words)


def test_a_failed_job_is_a_sentence_and_exit_code_1(run, orbit):
    code, _, error = run("jobs", "submit", "--orbit", orbit, "--name", "user=1", "--watch")
    assert code == 1
    assert error.splitlines()[-1] == "The pictures are empty. Select an object with a surface."


def test_cancel(run, orbit, service):
    _, said, _ = run("jobs", "submit", "--orbit", orbit, "--name", "steps=1000 seconds=0.02")
    job = said.strip()
    wait_for(lambda: service.client().job(job)["state"] == "running")
    results = []
    watching = threading.Thread(target=lambda: results.append(service.client().watch(job)["state"]))
    watching.start()
    code, said, _ = run("jobs", "cancel", job)
    watching.join(10)
    assert (code, said.strip(), results) == (0, f"{job} cancelled", ["cancelled"])


@pytest.mark.parametrize("verb", ["watch", "cancel", "fetch"])
def test_unknown_jobs(run, verb, tmp_path):
    more = ["--out", tmp_path / "x.npz"] if verb == "fetch" else []
    code, _, error = run("jobs", verb, "ffffffffffffffff", *more)
    assert code == 1
    assert "There is no job that begins with" in error


@pytest.mark.parametrize(("option", "value"), [("gaussians", "7"), ("seed", "-1"), ("fps", "nan")])
def test_bad_values_are_refused_before_anything_is_sent(run, orbit, option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        run("jobs", "submit", "--orbit", orbit, f"--{option}", value)
    assert caught.value.code == 2
    assert f"--{option}: must lie between" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("submit", "--orbit", "x"), ("fetch", "ab")])
def test_a_result_that_cannot_be_written_is_refused_before_the_work(run, words, tmp_path, capsys):
    for out, said in ((tmp_path, "is a folder"), (Path(__file__) / "clip.npz", "cannot be written")):
        with pytest.raises(SystemExit):
            run("jobs", *words, "--out", out)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("gigabytes", ["nan", "inf", "-1"])
def test_free_space_is_a_number(gigabytes, tmp_path, capsys):
    assert main(["serve", "--home", str(tmp_path), "--min-free-gb", gigabytes]) == 2
    assert "number of gigabytes" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["submit", "watch"])
def test_who_stops_watching_is_told_that_the_job_goes_on(run, orbit, service, verb, monkeypatch):
    job = run("jobs", "submit", "--orbit", orbit)[1].strip()

    def interrupted(client, job_id: str) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs_command, "watch", interrupted)
    words = ("watch", job) if verb == "watch" else ("submit", "--orbit", orbit, "--watch")
    code, _, error = run("jobs", *words)
    assert code == 130
    assert "The job goes on" in error
    assert "Cancelled" not in error


def test_a_folder_that_is_no_orbit(run, tmp_path):
    code, _, error = run("jobs", "submit", "--orbit", tmp_path)
    assert code == 1
    assert "orbit.json is missing" in error


def test_a_missing_picture(run, orbit):
    (orbit / "frame_003.png").unlink()
    code, _, error = run("jobs", "submit", "--orbit", orbit)
    assert code == 1
    assert "frame_003.png" in error


@pytest.mark.parametrize("words", [("jobs", "list"), ("jobs", "cancel", "ab")])
def test_no_backend(tmp_path, capsys, words):
    assert main([*words, "--home", str(tmp_path)]) == 1
    assert "No backend runs" in capsys.readouterr().err


def test_another_version(service, monkeypatch, capsys):
    from backend.service import client

    monkeypatch.setattr(client, "API_VERSION", 99)
    assert main(["jobs", "list", "--home", str(service.settings.home)]) == 1
    assert "does not fit" in capsys.readouterr().err


def test_a_wrong_token(service, tmp_path, capsys):
    home = paths.Home(tmp_path / "home")
    paths.prepare(home)
    shutil.copy(paths.Home(service.settings.home).server, home.server)
    paths.ensure_token(home)
    assert main(["jobs", "list", "--home", str(home.folder)]) == 1
    assert "does not show this backend's token" in capsys.readouterr().err


def test_a_port_file_that_a_crash_left_over(service, tmp_path, capsys):
    """Another backend has got the port since: it must not be shown the token."""
    home = paths.Home(tmp_path / "home")
    paths.prepare(home)
    server = json.loads(paths.Home(service.settings.home).server.read_text())
    paths.write_server(home, {**server, "started": 5.0})
    assert main(["jobs", "list", "--home", str(home.folder)]) == 1
    assert "No backend runs" in capsys.readouterr().err


def test_doctor_of_the_service(service, capsys, monkeypatch):
    heavy = {"torch", "splatting kernels", "GPU", "packages"}
    monkeypatch.setattr(doctor, "CHECKS", {name: check for name, check in doctor.CHECKS.items() if name not in heavy})
    assert main(["doctor", "--home", str(service.settings.home)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Everything that is needed works." in said
    assert service.client().url in said
    assert main(["doctor", "--json", "--home", str(service.settings.home)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["faults"] == 0
    assert {"subject": "disk space", "verdict": "ok"}.items() <= next(
        check for check in found["checks"] if check["subject"] == "disk space"
    ).items()


def test_doctor_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    def broken(home):
        raise ImportError("torch is not here")

    monkeypatch.setattr(doctor, "CHECKS", {"torch": broken, "data directory": doctor.check_home})
    (tmp_path / "jobs.sqlite3").write_bytes(b"letter " * 1000)
    assert main(["doctor", "--home", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "torch is not here" in said
    assert "is damaged" in said
    assert "2 of 2 checks failed." in said


@pytest.mark.slow
def test_doctor_with_everything(tmp_path, capsys):
    code = main(["doctor", "--home", str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    missing = [name for name in doctor.required_packages() if not doctor.installed(name)]
    assert code == (1 if missing else 0), said
    assert "the CPU kernels draw and differentiate" in said


def test_ctrl_c_before_a_command_has_begun_is_a_sentence(monkeypatch, capsys):
    def interrupted(commands) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "add_commands", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err.startswith("Cancelled.")


def test_a_backend_that_starts_anew_is_waited_for(run, orbit, service):
    """Its API dies under a watching command; then all of it, and comes back at another port."""
    job = run("jobs", "submit", "--orbit", orbit, "--name", "steps=100 seconds=0.02")[1].strip()
    wait_for(lambda: service.client().job(job)["state"] == "running")
    said, client, watcher = [], service.client(), service.client()
    watching = threading.Thread(target=lambda: said.append(watcher.watch(job)["state"]))
    watching.start()
    service.children()["api"].kill()
    assert client.job(job)["state"] == "running"
    service.stop(signal.SIGKILL)
    service.start()
    watching.join(60)
    assert said == ["succeeded"]


def test_who_waits_for_a_backend_finds_it_again_before_asking(run, orbit, service, monkeypatch):
    """Without the token, which a search that fails forgets, the answer would be that the token is wrong."""
    job = run("jobs", "submit", "--orbit", orbit)[1].strip()
    watcher, calls = service.client(), []
    asked = watcher.job

    def lost_once(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            del watcher.session.headers["Authorization"]
            raise UserError(client.NOT_RUNNING, "The backend does not answer.", "")
        return asked(*args, **options)

    monkeypatch.setattr(watcher, "job", lost_once)
    assert watcher.watch(job)["state"] == "succeeded"
    monkeypatch.setattr(client, "API_VERSION", 99)
    watcher.url = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match="version"):  # at once: waiting does not help
        watcher.jobs()


def test_json_is_what_the_http_api_says(run, orbit, service, capsys):
    code, said, _ = run("jobs", "submit", "--orbit", orbit, "--watch", "--json")
    job = json.loads(said)
    assert (code, job["state"], job["name"]) == (0, "succeeded", "steps=3")
    assert job == service.client().job(job["id"])
    assert json.loads(run("jobs", "watch", job["id"], "--json")[1]) == job
    listed = json.loads(run("jobs", "list", "--json", "--state", "succeeded", "--limit", 1000)[1])
    assert job in listed
    assert {job["state"] for job in listed} == {"succeeded"}
    assert json.loads(run("jobs", "list", "--json", "--state", "cancelling")[1]) == []
    code, said, error = run("jobs", "submit", "--orbit", orbit, "--name", "user=1", "--watch", "--json")
    assert (code, json.loads(said)["error"]["message"]) == (1, "The pictures are empty.")
    assert "The pictures are empty." in error


def test_a_job_is_done_again_read_and_removed(run, orbit, service):
    job = run("jobs", "submit", "--orbit", orbit, "--name", "user=1", "--watch")[1].split()[0]
    assert run("jobs", "retry", job)[:2] == (0, f"{job} queued\n")
    assert run("jobs", "watch", job)[0] == 1
    assert "The pictures are empty." in run("jobs", "log", job)[1]
    done = run("jobs", "submit", "--orbit", orbit, "--watch")[1].split()[0]
    code, _, error = run("jobs", "retry", done)
    assert code == 1
    assert error
    assert run("jobs", "delete", job, "0000000000000000")[0] == 1
    assert run("jobs", "delete", job, done, job)[:2] == (0, f"{job} deleted\n{done} deleted\n")
    assert run("jobs", "log", job)[0] == 1
    service.client().delete(done)  # as when the answer to a first call got lost


def test_whatever_is_generated_is_submitted_as_a_request(run, service, tmp_path, monkeypatch):
    picture = tmp_path / "dog.png"
    Image.fromarray(np.full((8, 8, 4), 200, np.uint8)).save(picture)

    def captured(file: Path, folder: Path, preset: str) -> CapturedObject:
        (folder / "static").mkdir()
        write_orbit_json(folder / "static", orbit_cameras(Orbit(frames=24), 64, 64, moving=False))
        for index in range(24):
            Image.fromarray(np.full((64, 64, 4), index, np.uint8)).save(folder / "static" / f"frame_{index:03d}.png")
        (folder / "surface.npz").write_bytes(b"surface")
        return CapturedObject(folder / "static", folder / "surface.npz", np.diag([2.0, 2.0, 2.0, 1.0]).tolist())

    def request_of(*options: object) -> dict:
        code, said, error = run("jobs", "submit", *options)
        assert code == 0, error
        return json.loads(Queue(service.settings.home / "jobs.sqlite3").get(said.split()[0]).request)

    monkeypatch.setattr(submit, "capture", captured)
    request = request_of("--text", "a  dog walks", "--motion", 5, "--invent", "--fps", 12, "--preset", "draft")
    assert (request["kind"], request["name"]) == ("text", "a dog walks")
    settings = request["settings"]
    assert (settings["prompt"], settings["motion"], settings["known_motions"]) == ("a dog walks", 5.0, False)
    assert (settings["fps"], settings["gaussians"], settings["steps"]) == (12.0, 2000, 12)
    request = request_of("--image", picture, "--text", "a dog", "--model", "published")
    assert (request["kind"], request["name"], request["settings"]["steps"]) == ("image", "dog, a dog", 50)
    assert request["inputs"]["image"] == hashlib.sha256(picture.read_bytes()).hexdigest()
    request = request_of("--object", tmp_path / "fox.glb")
    assert (request["kind"], request["name"], request["inputs"]["to_object"][0][0]) == ("object", "fox", 2.0)
    assert len(request["inputs"]["static"]["frames"]) == 24
    assert request["inputs"]["surface"] == hashlib.sha256(b"surface").hexdigest()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a subject"),
        (("--text", "a dog", "--frames", 8), "--frames goes with --video"),
        (("--video", "x.mp4", "--motion", 2), "goes without --motion"),
        (("--text", "a dog", "--out", "dog.glb"), "does not end in .npz"),
    ],
)
def test_options_of_a_submission_that_do_not_go_together(run, words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        run("jobs", "submit", *words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_script_of_the_document_gets_a_clip(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/http_api.md").read_text("utf-8"), re.DOTALL)
    with running(tmp_path / "home", pipelines="tests.service.fake_pipelines:ANYTHING"):
        environment = {**os.environ, "KINESPLAT_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", script]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    assert b'"prompt": "a dog walks"' in (tmp_path / "dog.npz").read_bytes()


def test_what_a_clip_says_against_itself_is_told(tmp_path, capsys):
    clip = random_clip(provenance={"warnings": ["Words that are not known: xyzzy."]})
    write_clip(tmp_path / "clip.npz", clip)
    jobs_command.tell_warnings(tmp_path / "clip.npz")
    assert capsys.readouterr().err == "Words that are not known: xyzzy.\n"
    (tmp_path / "clip.npz").write_bytes(b"PK")
    jobs_command.tell_warnings(tmp_path / "clip.npz")
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="streams are closed otherwise there")
def test_a_backend_without_standard_streams(tmp_path):
    """As some launchers of services start it."""
    arguments = [sys.executable, "-m", "backend", "serve", "--home", str(tmp_path / "home")]
    code = f"import os; [os.close(number) for number in range(3)]; os.execv({sys.executable!r}, {arguments!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        try:
            home = paths.Home(tmp_path / "home")
            wait_for(lambda: home.server.exists() or process.poll() is not None, 30)
            assert client.Client(home.folder).jobs() == []
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_a_reader_that_has_enough_is_no_failure(run, orbit, monkeypatch):
    run("jobs", "submit", "--orbit", orbit)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        code, _, error = run("jobs", "list")
    assert (code, error) == (141, "")


@pytest.mark.skipif(sys.platform == "win32", reason="streams are closed otherwise there")
def test_standard_streams_that_were_opened_are_those_of_children_too():
    code = """if True:
        import os
        from backend.__main__ import open_streams
        [os.close(number) for number in range(3)]
        open_streams()
        os._exit(not all(map(os.get_inheritable, range(3))))"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
