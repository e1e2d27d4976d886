# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors as people and programs get them over HTTP: problem+json with a stable code."""

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "The request cannot be read",
    401: "The token is missing or wrong",
    403: "Web pages may not use this backend",
    404: "Not found",
    405: "This call does not exist",
    409: "Not possible in this state",
    410: "No longer there",
    413: "Too large",
    415: "Wrong type of content",
    416: "This part does not exist",
    421: "Wrong host",
    422: "The request is not valid",
    429: "Too much at once",
    500: "The backend stumbled",
    503: "The backend is busy",
    507: "The disk is full",
}
DETAILS = {  # for errors that the frameworks raise by themselves
    400: "The body of the request is not what this call takes.",
    404: "There is nothing at this address.",
    405: "This address does not know that method.",
}


class Problem(HTTPException):
    """An answer that says what went wrong. `extra` becomes members of its own."""

    def __init__(self, status: int, code: str, detail: str, hint: str = "", **extra: object) -> None:
        super().__init__(status, detail)
        self.code = code
        self.hint = hint
        self.extra = extra

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status_code == 401 else None
        content = {
            "type": "about:blank",
            "title": TITLES.get(self.status_code, "Error"),
            "status": self.status_code,
            "code": self.code,
            "detail": self.detail,
            "hint": self.hint,
            **self.extra,
        }
        return JSONResponse(content, self.status_code, headers, MEDIA_TYPE)


def as_problem(error: HTTPException) -> Problem:
    """An error that a framework raised, in our form."""
    if isinstance(error, Problem):
        return error
    status = error.status_code
    return Problem(status, f"http_{status}", DETAILS.get(status, TITLES.get(status, "Error") + "."))


def declared(*statuses: int) -> dict[int, dict]:
    """The error answers of a call, for OpenAPI; those of the guard and of the disk are always among them."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": TITLES[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({400, 401, 403, 413, 415, 421, 422, 500, 503, 507, *statuses})
    }


PROBLEM_SCHEMA = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "hint"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable, for programs."},
        "detail": {"type": "string", "description": "One sentence about what happened."},
        "hint": {"type": "string", "description": "What to do; may be empty."},
    },
}
