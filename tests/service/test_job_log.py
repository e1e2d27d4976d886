# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of a job: it has an end, and how the job ended still stands in it."""

import logging

from backend.service.job_log import FULL, MAX_BYTES, JobLog


def test_a_full_log_still_tells_how_the_job_ended(tmp_path):
    log = JobLog(tmp_path / "log.txt")
    chatter = logging.getLogger("chatter")
    with log.collecting():
        chatter.setLevel(logging.INFO)
        for number in range(200):
            chatter.info("%d %s", number, "x" * 10_000)
    log.write("Failed (out_of_memory): The GPU has too little memory.")
    log.write("Traceback " + "y" * 30_000)
    log.write("Ended: failed.")
    lines = log.path.read_text().splitlines(keepends=True)
    assert "INFO chatter: 0 xxx" in lines[0]
    assert lines.count(FULL) == 1
    assert [line.split(maxsplit=2)[2][:10] for line in lines[lines.index(FULL) + 1 :]] == [
        "Failed (ou",
        "Traceback ",
        "Ended: fai",
    ]
    assert log.path.stat().st_size < MAX_BYTES


def test_it_does_not_grow_for_ever(tmp_path):
    log = JobLog(tmp_path / "log.txt")
    for number in range(200):
        log.write(f"{number} {'x' * 10_000}")
    assert MAX_BYTES <= log.path.stat().st_size < MAX_BYTES + 20_000
