# SPDX-License-Identifier: GPL-3.0-or-later
"""The running API against its own OpenAPI document, with calls that schemathesis makes up."""

import importlib.util
import subprocess
import sys

import pytest

from tests.service.running import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis"),
]

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "ignored_auth,negative_data_rejection"
)


def test_no_call_is_answered_otherwise_than_declared(tmp_path):
    with running(tmp_path / "home") as service:
        client = service.client()
        client.watch(service.submit("steps=1", client)["id"])
        token = client.session.headers["Authorization"]
        answer = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{client.url}/openapi.json",
                "--url", client.url.removesuffix("/v1"), "-H", f"Authorization: {token}",
                "--exclude-path", "/v1/shutdown", "--checks", CHECKS, "-n", "20", "--seed", "1",
                "--generation-database", "none", "--no-color",
            ],
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stdout[-5000:] + answer.stderr[-1000:]
        assert "Operations:       13 selected" in answer.stdout
        assert "Traceback" not in (service.settings.home / "logs" / "api.log").read_text()
        assert client.jobs(limit=1) is not None
