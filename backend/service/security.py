# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard in front of the API: only this user's own programs get through, and never a web page.

A page in the user's browser can send calls to 127.0.0.1, and by DNS rebinding read the answers. Hence the list of
hosts, the refusal of everything that browsers mark as theirs, and a token that pages cannot know.
"""

import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.service.problems import Problem

OPEN_PATHS = ("/v1/health",)  # says nothing secret, and lets clients tell who answers before they show the token
BLOB_PREFIX = "/v1/blobs/"


class Guard:
    """Pure ASGI middleware; refuses before any other code sees the call."""

    def __init__(self, app: ASGIApp, *, token: str, port: int, max_json: int, max_blob: int) -> None:
        self.app = app
        self.token = token.encode()
        self.hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost", "[::1]")}
        self.max_json = max_json
        self.max_blob = max_blob

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # WebSockets: there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        limit = self.max_blob if scope["path"].startswith(BLOB_PREFIX) else self.max_json
        try:
            self.check(scope, limit)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, _counted(receive, limit), send)

    def check(self, scope: Scope, limit: int) -> None:
        """Raises Problem where the call may not pass."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)

        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            raise Problem(421, "wrong_host", "This backend answers only under its local address.")
        if b"origin" in headers or b"sec-fetch-site" in headers:
            raise Problem(403, "browser_refused", "This call comes from a web page, and pages may not use the backend.")
        if scope["path"] not in OPEN_PATHS and not self._knows_token(headers.get(b"authorization", [])):
            raise Problem(
                401,
                "unauthorized",
                "The call does not show this backend's token.",
                "The token lies in the file 'token' of the data directory; it is sent as Authorization: Bearer.",
            )

        lengths = headers.get(b"content-length", [])
        has_body = b"transfer-encoding" in headers or any(length != b"0" for length in lengths)
        if any(length.isdigit() and int(length) > limit for length in lengths):
            raise too_large(limit)
        content_type = headers.get(b"content-type", [b""])[0].split(b";")[0].strip().lower()
        if scope["method"] == "POST" and has_body and content_type != b"application/json":
            raise Problem(415, "json_required", "The body must be application/json.")

    def _knows_token(self, values: list[bytes]) -> bool:
        if len(values) != 1:
            return False
        scheme, _, token = values[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token)


def too_large(limit: int) -> Problem:
    """The answer to a body above its limit."""
    return Problem(413, "too_large", f"The body is larger than {limit / 2**20:.0f} MB, which is the limit here.")


def _counted(receive: Receive, limit: int) -> Receive:
    """Count what really comes, since a header can say anything."""
    count = 0

    async def counting() -> Message:
        nonlocal count
        message = await receive()
        if message["type"] == "http.request":
            count += len(message.get("body", b""))
            if count > limit:
                raise too_large(limit)
        return message

    return counting
