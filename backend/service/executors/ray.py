# SPDX-License-Identifier: GPL-3.0-or-later
"""The Ray executor: jobs run on any free GPU of a cluster. Imports Ray only where a cluster is spoken to.

Ray lets whoever reaches it run any code. So nothing here starts unless the cluster asks everybody for its token.
"""

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from backend.progress import UserError
from backend.service import paths, processes
from backend.service.processes import Child, Kept, exit_text
from backend.service.queue import Queue
from backend.service.settings import GPU, Settings

UNREACHABLE_EXIT = 69  # exit codes of the dispatcher: no cluster answers
OPEN_EXIT = 77  # the cluster answers also who does not show its token
PROBE_SECONDS = 60.0
AUTH_HINT = (
    "Make a token with 'ray get-auth-token --generate', put the same one on all machines, and set RAY_AUTH_MODE=token "
    "for every 'ray start' and for this server: see docs/several_machines.md."
)

log = logging.getLogger(__name__)


class RayExecutor:
    """Keeps the dispatcher, which gives jobs to the cluster. Attempts outlive both of them."""

    def __init__(self, settings: Settings, queue: Queue, announce: Callable[[str], None]) -> None:
        """Raises UserError where Ray cannot be used here, or not safely."""
        check(settings)
        self.settings = settings
        self.log_path = paths.Home(settings.home).logs / "ray.log"
        self.process = Kept(lambda: Child("backend.service.executors.ray_dispatcher", settings, self.log_path))
        self._announce = announce
        self._is_reachable = True
        queue.set_fact("device", None)  # of an earlier, local worker
        queue.set_fact("ray_address", settings.ray_address)  # for the local executor, should it come after this one

    def put_back(self) -> None:
        """Nothing: actors go on without us, and the next dispatcher finds them."""

    def tick(self) -> None:
        """Keep the dispatcher. Raises UserError where the cluster is open to everybody."""
        if self.process.child and self.process.child.ready.is_set():
            self._is_reachable = True
        code = self.process.reap()
        if code is None:
            return
        if code == OPEN_EXIT:
            raise open_error()
        log.log(logging.INFO if code == 0 else logging.WARNING, "The dispatcher ended (%s)", exit_text(code))
        if code == UNREACHABLE_EXIT and self._is_reachable:
            self._is_reachable = False
            self._announce(f"No Ray cluster answers at {self.settings.ray_address} yet; {self.log_path} says more.")


def check(settings: Settings) -> None:
    """What can be known without asking the cluster.

    Raises:
        UserError: Ray is not here, has no token, or the settings do not fit.
    """
    if sys.platform != "linux":
        raise UserError(
            "ray_needs_linux",
            "Several machines work together on Linux only.",
            "Run this server on a Linux machine of the cluster, and reach it from here through an SSH tunnel.",
        )
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "ray_not_installed",
            "Ray is not installed in this environment.",
            f"Install it: {sys.executable} -m pip install 'ray==2.60.*'",
        )
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise UserError(
            "ray_without_token",
            "Ray would let anybody who reaches this network run programs on the cluster: RAY_AUTH_MODE is not 'token'.",
            AUTH_HINT,
        )
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not os.environ.get("RAY_AUTH_TOKEN") and not token_file.is_file():
        raise UserError("ray_without_token", f"Ray's token is missing: there is no {token_file}.", AUTH_HINT)
    if "://" in settings.ray_address:
        raise UserError(
            "ray_address",
            f"{settings.ray_address} is no address of a cluster that this computer is part of.",
            "Leave --ray-address out, or give HOST:PORT as 'ray start' does.",
        )
    if settings.ray_folder and not Path(settings.ray_folder).is_dir():
        raise UserError(
            "ray_folder_missing",
            f"The folder {settings.ray_folder} for checkpoints is not there.",
            "Give one that all machines of the cluster have mounted under this path, or leave --ray-folder out.",
        )


def connect(settings: Settings, namespace: str) -> str:
    """Become part of the cluster; returns the address of its head. Names of actors are ours alone in `namespace`.

    Raises:
        UserError: no cluster answers, or it refuses us.
    """
    import ray

    try:
        context = ray.init(
            settings.ray_address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING
        )
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and errors of its own here
        raise UserError(
            "ray_unreachable",
            f"No Ray cluster answers at {settings.ray_address}: {str(error).strip() or type(error).__name__}",
            "Run 'ray start' on this machine, with the same token, Python and version of Ray as on the others.",
        ) from error
    return context.address_info["gcs_address"]


def is_open(address: str) -> bool:
    """Whether the cluster also answers who shows no token. Takes a few seconds."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    answer = subprocess.run(command, env=environment, capture_output=True, timeout=PROBE_SECONDS)
    return answer.returncode == 0


def open_error() -> UserError:
    """Why such a cluster is not used."""
    return UserError("ray_without_token", "This Ray cluster answers also who does not show its token.", AUTH_HINT)


def end_actor(name: str) -> None:
    """End an actor and free its GPU; it may be dead already."""
    import ray

    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        ray.kill(ray.get_actor(name))


def namespace_of(queue: Queue) -> str:
    """The name under which this queue's actors are known in the cluster."""
    name = queue.fact("ray_namespace")
    if name is None:
        name = f"kinesplat-{secrets.token_hex(8)}"
        queue.set_fact("ray_namespace", name)
    return name


def share_of(resource: str) -> dict:
    """What an actor asks Ray for, so that it gets one `resource`."""
    return {"num_gpus": 1} if resource == GPU else {"resources": {resource: 1}}


def machines(settings: Settings) -> list[tuple[str, int, str]]:
    """Each machine of the cluster: its name, how many jobs it can run at once, the version of Kinesplat there.

    The version is empty where Kinesplat cannot be loaded.

    Raises:
        UserError: the cluster cannot be reached, or answers everybody.
    """
    check(settings)
    if is_open(connect(settings, "kinesplat-doctor")):
        raise open_error()
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def version() -> str:
        try:
            from backend import __version__
            from backend.service.executors import ray_attempt  # noqa: F401 - with all that it needs
        except ImportError:
            return ""
        return __version__

    try:
        found = []
        for node in ray.nodes():
            if node["Alive"]:
                where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                found.append((node, ray.remote(version).options(num_cpus=0, scheduling_strategy=where).remote()))
        return [
            (
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
                int(node["Resources"].get(settings.ray_resource, 0)),
                ray.get(answer, timeout=PROBE_SECONDS),
            )
            for node, answer in found
        ]
    finally:
        ray.shutdown()


def main(settings_json: str, launch_json: str) -> int:
    """End all attempts that a cluster still makes for a server that now works on its own; a process of its own.

    Otherwise each would keep its GPU for `ray_forsaken` seconds, and what it found out would be thrown away.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings, launch = Settings.from_json(settings_json), json.loads(launch_json)
    processes.follow_parent(launch["parent"], lambda: os._exit(0))  # the next server may use the cluster again
    queue = Queue(paths.Home(settings.home).database)
    processes.say_ready()
    try:
        check(settings)
        connect(settings, namespace_of(queue))
    except UserError as error:
        minutes = round(settings.ray_forsaken / 60)
        log.warning("Attempts in the Ray cluster end by themselves within %d minutes: %s", minutes, error)
        return UNREACHABLE_EXIT
    import ray

    for name in ray.util.list_named_actors():
        log.info("%s works for nobody: it is ended", name)
        end_actor(name)
    queue.set_fact("ray_address", None)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
