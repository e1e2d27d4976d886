# SPDX-License-Identifier: GPL-3.0-or-later
"""A Ray cluster of two machines, both on this one, each with one place for a job."""

import contextlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass

import psutil
import pytest

from tests.service.running import ROOT

RESOURCE = "fakegpu"
MEMORY = 80 << 20  # bytes of each machine's object store

needs_ray = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'ray==2.60.*'"),
]


@dataclass
class Cluster:
    """What a test needs of it."""

    address: str
    nodes: object  # ray.cluster_utils.Cluster

    def add_machine(self) -> object:
        """One more machine with one place."""
        return self.nodes.add_node(num_cpus=1, object_store_memory=MEMORY, resources={RESOURCE: 1})

    def kill_machine(self, machine: object) -> None:
        """As when its plug is pulled."""
        self.nodes.remove_node(machine, allow_graceful=False)


def actors() -> list[psutil.Process]:
    """The processes of attempts in this cluster, as Ray titles them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayAttempt" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """It starts in about 20 s, so there is one for all tests of a module."""
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-") as short:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "5e" * 32)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", python_path)
        # Where tests share few cores with others: Ray's workers are not to be the last, and a node may answer late.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "20")
        from ray.cluster_utils import Cluster as Nodes

        head = {"num_cpus": 1, "object_store_memory": MEMORY, "resources": {RESOURCE: 1}}
        nodes = Nodes(initialize_head=True, head_node_args={**head, "include_dashboard": False, "temp_dir": short})
        try:
            yield Cluster(nodes.address, nodes)
        finally:
            nodes.shutdown()
