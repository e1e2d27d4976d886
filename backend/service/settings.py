# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parts of the service must agree on, handed from the supervisor to its processes as JSON."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

GIGABYTE = 1 << 30
LOCAL, RAY = EXECUTORS = ("local", "ray")  # who runs the attempts at jobs
GPU = "GPU"  # what Ray calls a GPU
PIPELINES = "backend.service.worker:PIPELINES"


@dataclass(frozen=True)
class Settings:
    """One running service. Times in seconds, sizes in bytes."""

    home: Path
    port: int = 0  # 0: any free one
    device: str = "auto"  # one of `progress.DEVICES`, for all jobs
    pipelines: str = PIPELINES  # module:name of a dict from request kind to pipeline
    min_free: int = GIGABYTE  # with less free disk space nothing is accepted and no job begins
    quota: int = 200 * GIGABYTE  # of all blobs together
    max_blob: int = 512 << 20
    max_json: int = 2 << 20
    max_queued: int = 10_000
    crash_limit: int = 3  # crashes in a row without headway
    lease: float = 15.0  # how long a worker may be silent
    cancel_grace: float = 10.0  # from the wish to cancel until the worker is told to end
    kill_grace: float = 5.0  # from there until it is killed
    stall_limit: float = 600.0  # with no progress the worker is killed
    blob_age: float = 3600.0  # blobs that no job names are kept this long
    work_age: float = 3 * 86400.0  # checkpoints of failed and cancelled jobs are kept this long

    executor: str = LOCAL
    ray_address: str = "auto"  # HOST:PORT of the cluster's head; "auto": of the cluster that this computer is part of
    ray_resource: str = GPU  # one of which each job takes
    ray_folder: str = ""  # checkpoints, under this path on all machines; empty: each machine keeps its own
    ray_placing: float = 600.0  # for which an attempt waits for its process on a GPU that was free
    ray_forsaken: float = 3600.0  # an attempt that no server has asked about for so long gives up its GPU

    def to_json(self) -> str:
        """For the command line of a child process."""
        return json.dumps({**asdict(self), "home": str(self.home)})

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The same settings in the child process."""
        settings = cls(**json.loads(text))
        return replace(settings, home=Path(settings.home))
