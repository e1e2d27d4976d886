# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP API, version 1 (docs/http_api.md): thin calls on the queue and the blobs. Imports no torch.

Calls that may wait for the database's write lock are plain functions, which FastAPI runs in threads.
"""

import asyncio
import errno
import json
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from backend import __version__
from backend.pipelines.known_prompts import known_prompts
from backend.service import paths, processes
from backend.service.blobs import BlobStore, DamagedError, StoreFullError, TooLargeError, WrongHashError
from backend.service.problems import PROBLEM_SCHEMA, Problem, as_problem, declared
from backend.service.queue import (
    ACTIVE_STATES,
    BlobsMissingError,
    IdempotencyConflictError,
    Job,
    Queue,
    QueueFullError,
)
from backend.service.schema import BlobModel, CapabilitiesModel, HealthModel, JobModel, JobsModel, SubmitModel
from backend.service.security import Guard, too_large
from backend.service.settings import Settings
from blender_addon.contract import requests as contract

LOOK_SECONDS = 0.1  # between two looks at a job that somebody waits for
LOG_BYTES = 256 << 10  # of one answer
WRITE_BYTES = 1 << 20  # of an upload, gathered before they go to the disk
SHUTDOWN_EXIT = 64  # exit code by which this process asks the supervisor to end everything

log = logging.getLogger(__name__)

JobId = Annotated[str, Path(pattern=f"^{contract.JOB_ID}$", description="A job's id.")]
Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="sha256 of the content.")]


def create_app(
    settings: Settings,
    *,
    token: str,
    port: int,
    pid: int | None = None,
    started: float = 0.0,
    shut_down: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application over one data directory. `pid` and `started` are the supervisor's; `shut_down` ends all."""
    home = paths.Home(settings.home)
    queue = Queue(home.database)
    blobs = BlobStore.limited(home.blobs, settings)
    app = FastAPI(title="Kinesplat", version=__version__, openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, token=token, port=port, max_json=settings.max_json, max_blob=settings.max_blob)
    _add_error_handlers(app, home)
    _describe_problems(app)

    def known(job: Job | None) -> Job:
        if job is None:
            raise Problem(404, "job_unknown", "There is no job with this id: it was deleted, or never existed.")
        return job

    def shown(job: Job | None) -> JobModel:
        job = known(job)
        return JobModel.of(job, queue.ahead(job))

    # Who is here

    @app.get("/v1/health", responses=declared())
    async def health() -> HealthModel:
        """Who answers. The one call that needs no token."""
        return HealthModel(
            product="kinesplat",
            version=__version__,
            api_version=contract.API_VERSION,
            pid=os.getpid() if pid is None else pid,
            started=started,
        )

    @app.get("/v1/capabilities", responses=declared())
    def capabilities() -> CapabilitiesModel:
        """What can be asked for, and on what it runs."""
        return CapabilitiesModel(
            version=__version__,
            api_version=contract.API_VERSION,
            kinds=list(contract.KINDS),
            pipelines=contract.PIPELINES,
            presets=list(contract.PRESETS),
            gaussians_by_preset=contract.GAUSSIANS_BY_PRESET,
            bounds={name: asdict(bound) for name, bound in contract.BOUNDS.items()},
            device=queue.fact("device"),
            limits={"blob_bytes": settings.max_blob, "json_bytes": settings.max_json},
            free_bytes=paths.free_bytes(home.folder),
            prompts=list(known_prompts()),
        )

    @app.post("/v1/shutdown", status_code=202, responses=declared())
    async def shutdown() -> dict[str, str]:
        """End the backend in good order; a running job goes on at the next start."""
        shut_down()
        return {"state": "ending"}

    # Blobs

    @app.head("/v1/blobs/{sha256}", responses=declared(404), response_class=Response)
    def find_blob(sha256: Sha256) -> Response:
        """Whether this content is here, undamaged."""
        if blobs.missing([sha256]):
            raise Problem(404, "blob_unknown", "This content is not here.")
        return Response(headers={"ETag": f'"{sha256}"'})

    @app.put(
        "/v1/blobs/{sha256}",
        status_code=201,
        responses={**declared(), 200: {"model": BlobModel, "description": "It was here already."}},
        openapi_extra={"requestBody": {"content": {"application/octet-stream": {"schema": {
            "type": "string", "format": "binary"}}}}},
    )  # fmt: skip
    async def put_blob(sha256: Sha256, request: Request, response: Response) -> BlobModel:
        """Send content under the sha256 of its bytes."""
        length = request.headers.get("content-length", "")
        declared_size = int(length) if length.isdigit() else 0
        try:
            with await run_in_threadpool(_enter, blobs.incoming(declared_size)) as blob:
                gathered = bytearray()
                async for chunk in request.stream():
                    gathered += chunk
                    if len(gathered) >= WRITE_BYTES:
                        await run_in_threadpool(blob.write, bytes(gathered))
                        gathered.clear()
                await run_in_threadpool(blob.write, bytes(gathered))
                is_new = await run_in_threadpool(blob.keep, sha256)
        except WrongHashError as error:
            raise Problem(
                422, "wrong_hash", "The bytes that arrived are not those of this sha256.", "Send them again."
            ) from error
        except TooLargeError as error:
            raise too_large(settings.max_blob) from error
        except ClientDisconnect as error:
            raise Problem(400, "cut_off", "The connection ended in the middle.", "Send it again.") from error
        response.status_code = 201 if is_new else 200
        return BlobModel(sha256=sha256, size=blob.size)

    # Jobs

    @app.post(
        "/v1/jobs",
        status_code=201,
        responses={**declared(409, 429), 200: {"model": JobModel, "description": "This key was accepted before."}},
    )
    def submit(
        body: SubmitModel,
        response: Response,
        idempotency_key: Annotated[str, Header(pattern="^[A-Za-z0-9._-]{1,128}$")],
    ) -> JobModel:
        """Queue a request. The same key with the same request gives the same job again."""
        if paths.free_bytes(home.folder) < settings.min_free:
            raise StoreFullError
        try:
            job, is_new = queue.create(
                body.request.model_dump(),
                idempotency_key,
                body.client or "",
                missing=blobs.missing,
                max_queued=settings.max_queued,
            )
        except IdempotencyConflictError as error:
            raise Problem(
                409, "idempotency_conflict", "This Idempotency-Key was used for another request.", "Use a new key."
            ) from error
        except BlobsMissingError as error:
            count = len(error.missing)
            raise Problem(
                422,
                "blobs_missing",
                f"{count} of the files that the request names {'is' if count == 1 else 'are'} not here.",
                "Upload them, then send the same call again.",
                missing=error.missing,
            ) from error
        except QueueFullError as error:
            raise Problem(
                429, "queue_full", f"{settings.max_queued} jobs wait already.", "Wait, or cancel some."
            ) from error
        response.status_code = 201 if is_new else 200
        return shown(job)

    @app.get("/v1/jobs", responses=declared(404))
    def list_jobs(
        state: Annotated[list[str], Query(description="States, or `active`.")] = [],  # noqa: B006 - FastAPI's form
        client: Annotated[str | None, Query(max_length=128)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
        before: Annotated[
            str | None, Query(max_length=64, description="Only jobs older than the one of this id.")
        ] = None,
    ) -> JobsModel:
        """Jobs, newest first."""
        states = [name for item in state for name in (ACTIVE_STATES if item == "active" else [item])]
        if unknown := set(states) - set(contract.JOB_STATES):
            raise Problem(422, "invalid_request", f"There is no state {min(unknown)!r}.")
        jobs = queue.jobs(states, client, limit, known(queue.get(before)).seq if before else None)
        waiting = any(job.state == "queued" for job in jobs)
        before = {seq: index for index, seq in enumerate(queue.queued())} if waiting else {}
        return JobsModel(jobs=[JobModel.of(job, before.get(job.seq, 0)) for job in jobs])

    @app.get("/v1/jobs/{job_id}", responses=declared(404))
    async def get_job(
        job_id: JobId,
        request: Request,
        after_rev: Annotated[int | None, Query(ge=0, le=2**53)] = None,
        wait: Annotated[float, Query(ge=0, le=20, allow_inf_nan=False)] = 0.0,
    ) -> JobModel:
        """One job; with `after_rev` it is waited for a while until it changes."""
        deadline = time.monotonic() + wait
        while True:
            job = known(queue.get(job_id))
            has_news = after_rev is None or job.rev > after_rev
            if has_news or job.is_final or time.monotonic() >= deadline or await request.is_disconnected():
                return shown(job)
            await asyncio.sleep(LOOK_SECONDS)

    @app.get(
        "/v1/jobs/{job_id}/preview",
        responses={**declared(404), 200: {"content": {"image/jpeg": {}}}, 304: {"description": "No newer picture."}},
        response_class=Response,
    )
    def preview(job_id: JobId, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        """The newest preview picture."""
        job = known(queue.get(job_id))
        etag = f'"{job.preview_rev}"'
        if if_none_match == etag:
            return Response(status_code=304, headers={"ETag": etag})
        try:
            picture = home.preview(job_id).read_bytes()
        except FileNotFoundError as error:
            raise Problem(404, "no_preview", "This job has no preview picture yet.") from error
        return Response(picture, media_type="image/jpeg", headers={"ETag": etag, "Cache-Control": "no-cache"})

    @app.get(
        "/v1/jobs/{job_id}/log",
        responses={**declared(404), 200: {"content": {"text/plain": {}}}},
        response_class=PlainTextResponse,
    )
    def job_log(job_id: JobId, offset: Annotated[int, Query(ge=0, le=2**31)] = 0) -> Response:
        """The job's log from byte `offset` on, whole lines."""
        known(queue.get(job_id))
        data = b""
        try:
            with open(home.log(job_id), "rb") as file:
                file.seek(offset)
                data = file.read(LOG_BYTES)
        except FileNotFoundError:
            pass  # nothing was said yet
        if len(data) == LOG_BYTES and b"\n" in data:
            data = data[: data.rindex(b"\n") + 1]
        return PlainTextResponse(data, headers={"X-Next-Offset": str(offset + len(data))})

    @app.post("/v1/jobs/{job_id}/cancel", responses=declared(404))
    def cancel(job_id: JobId) -> JobModel:
        """Cancel a job. Repeating does no harm."""
        return shown(queue.cancel(job_id))

    @app.post("/v1/jobs/{job_id}/retry", responses=declared(404, 409))
    def retry(job_id: JobId) -> JobModel:
        """Queue a failed or cancelled job again; it goes on from its checkpoints."""
        job = known(queue.get(job_id))
        lost = job.state == "succeeded" and not blobs.has(job.result_sha256)
        if job.state == "succeeded" and not lost:
            raise Problem(409, "already_succeeded", "This job has its result already.")
        return shown(queue.retry(job_id, also_succeeded=lost))

    @app.get(
        "/v1/jobs/{job_id}/result",
        responses={
            **declared(404, 409, 410, 416),
            200: {"content": {"application/octet-stream": {}}},
            206: {"description": "A part of it."},
        },
        response_class=Response,
    )
    def result(job_id: JobId) -> Response:
        """The clip or the frames. Its bytes are held against their sha256 before they are sent."""
        job = known(queue.get(job_id))
        if job.state != "succeeded":
            raise Problem(409, "not_finished", f"There is no result: the job is {job.state}.")
        try:
            path = blobs.verified(job.result_sha256)
        except DamagedError as error:
            raise Problem(
                410, "result_damaged", "The result was lost or damaged on the disk.", "Retry the job to make it again."
            ) from error
        name = re.sub(r"[^\w .-]", "_", job.name).strip(" .") or "clip"
        return FileResponse(
            path,
            media_type="application/octet-stream",
            filename=f"{name}.npz",
            headers={"ETag": f'"{job.result_sha256}"'},
        )

    @app.delete("/v1/jobs/{job_id}", status_code=204, responses=declared(404, 409), response_class=Response)
    def delete(job_id: JobId) -> Response:
        """Remove a job that has ended, and its result."""
        known(queue.get(job_id))
        if not queue.delete(job_id) and queue.get(job_id):
            raise Problem(409, "job_active", "This job has not ended yet.", "Cancel it first.")
        home.forget(job_id)
        return Response(status_code=204)

    return app


def _enter(context):
    """Enter a context manager whose beginning may block; it is left by the `with` of the caller."""
    entered = context.__enter__()

    class Entered:
        def __enter__(self):
            return entered

        def __exit__(self, *error: object):
            return context.__exit__(*error)

    return Entered()


def _add_error_handlers(app: FastAPI, home: paths.Home) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return as_problem(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [
            {
                "field": _field(item["loc"]),
                "message": item["msg"].removeprefix("Value error, "),
            }
            for item in error.errors()
        ]
        first = errors[0]
        if "JSON" in first["message"] or not first["field"]:
            detail = f"The body cannot be read: {first['message']}."
        else:
            detail = f"{first['field']}: {first['message']}."
        return Problem(422, "invalid_request", detail.replace("..", "."), errors=errors[:20]).response()

    @app.exception_handler(StoreFullError)
    async def store_full(request: Request, error: StoreFullError) -> Response:
        return _full(home).response()

    @app.exception_handler(OSError)
    async def system_error(request: Request, error: OSError) -> Response:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _full(home).response()
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return _stumbled().response()

    @app.exception_handler(sqlite3.OperationalError)
    async def database_error(request: Request, error: sqlite3.OperationalError) -> Response:
        primary = (error.sqlite_errorcode or 0) & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Problem(503, "busy", "The job list is busy.", "Try again.").response()
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            return _full(home).response()
        return _stumbled().response()

    @app.exception_handler(Exception)
    async def stumbled(request: Request, error: Exception) -> Response:
        return _stumbled().response()  # uvicorn logs the traceback


def _field(location: tuple) -> str:
    """`request.settings.seed` out of pydantic's location, which also names the kind of request that it went by."""
    parts = [str(part) for part in location if part != "body"]
    if parts[:1] == ["request"] and parts[1:2] and parts[1] in contract.KINDS:
        del parts[1]
    return ".".join(parts)


def _full(home: paths.Home) -> Problem:
    sentence = paths.disk_full(home.folder)
    return Problem(507, sentence.code, str(sentence), sentence.hint)


def _stumbled() -> Problem:
    return Problem(
        500, "internal_error", "The backend made a mistake.", "The file logs/api.log in its data directory says more."
    )


def _describe_problems(app: FastAPI) -> None:
    """Put the form of our errors into the OpenAPI document."""
    plain = app.openapi

    def with_problems() -> dict:
        document = plain()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = PROBLEM_SCHEMA
        return document

    app.openapi = with_problems


class AnnouncingServer(uvicorn.Server):
    """Tells the supervisor when calls are answered."""

    async def startup(self, sockets: list | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        processes.say_ready()


def main(settings_json: str, launch_json: str) -> int:
    """The API's process, started by the supervisor; returns its exit code."""
    settings, launch = Settings.from_json(settings_json), json.loads(launch_json)
    listener = processes.receive_socket(launch)
    exit_code = 0

    def end() -> None:
        server.should_exit = True

    def shut_down() -> None:
        nonlocal exit_code
        exit_code = SHUTDOWN_EXIT
        end()

    app = create_app(
        settings,
        token=paths.ensure_token(paths.Home(settings.home)),
        port=listener.getsockname()[1],
        pid=launch["parent"],
        started=launch["started"],
        shut_down=shut_down,
    )
    server = AnnouncingServer(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=512,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=32 << 10,
        )
    )
    processes.follow_parent(launch["parent"], end)
    server.run(sockets=[listener])
    return exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
