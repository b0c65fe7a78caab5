"""One error type for the whole pipeline, and the one table that translates it.

    LlmError
    ├── code          a gRPC canonical status (`Code`)
    ├── message       what happened and what to do; never a key, a header or a stack
    ├── origin        the hop or provider where it happened: "backend", "proxy", "edge", "llamacpp", …
    └── retry_after   seconds until another try makes sense, if that is known

Providers translate their engine's errors into it at once; only the edges translate it out, by `TABLE`:
to an HTTP status and an OpenAI error type here, to a gRPC status in `lambdalm.rpc`.
Codes and their HTTP statuses follow google/rpc/code.proto, except that the status for a cancelled call is
nginx's 499 (as there) and that another hop's INTERNAL is a 502 (see `http_status`).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec


class Code(enum.StrEnum):
    """gRPC canonical status codes, by name."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


class Mapping(NamedTuple):
    """One row of the table: the HTTP status and the OpenAI `error.type` of a code."""

    http: int
    openai: str


TABLE: dict[Code, Mapping] = {
    Code.CANCELLED: Mapping(499, "cancelled"),
    Code.UNKNOWN: Mapping(500, "server_error"),
    Code.INVALID_ARGUMENT: Mapping(400, "invalid_request_error"),
    Code.DEADLINE_EXCEEDED: Mapping(504, "timeout"),
    Code.NOT_FOUND: Mapping(404, "not_found_error"),
    Code.ALREADY_EXISTS: Mapping(409, "conflict"),
    Code.PERMISSION_DENIED: Mapping(403, "permission_error"),
    Code.RESOURCE_EXHAUSTED: Mapping(429, "rate_limit_error"),
    Code.FAILED_PRECONDITION: Mapping(400, "invalid_request_error"),
    Code.ABORTED: Mapping(409, "conflict"),
    Code.OUT_OF_RANGE: Mapping(400, "invalid_request_error"),
    Code.UNIMPLEMENTED: Mapping(501, "not_implemented"),
    Code.INTERNAL: Mapping(500, "server_error"),
    Code.UNAVAILABLE: Mapping(503, "overloaded_error"),
    Code.DATA_LOSS: Mapping(500, "server_error"),
    Code.UNAUTHENTICATED: Mapping(401, "authentication_error"),
}

# The way back, for answers that are not ours (a load balancer's, an API gateway's): the status is all there is.
_FROM_HTTP: dict[int, Code] = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    413: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
    431: Code.INVALID_ARGUMENT,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


STORE = "store"
"""The origin of errors of what keeps sessions and quotas."""

# Characters: as a gRPC status it goes percent-encoded into metadata, which may have 8 KiB in all.
_MAX_MESSAGE = 400


class LlmError(Exception):
    """A failure anywhere in the pipeline, as every hop speaks of it; a message too long for the wire is cut.

    `retry_after` is in seconds. `origin` is the hop or provider where it happened; a hop that raises it
    without one gets its own name filled in by `at`.
    """

    def __init__(
        self, code: Code, message: str, *, retry_after: float | None = None, origin: str | None = None
    ) -> None:
        if len(message) > _MAX_MESSAGE:
            message = f"{message[: _MAX_MESSAGE - 1]}…"
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.origin = origin

    def at(self, origin: str) -> LlmError:
        """Say that it happened at `origin`, unless it already says where; returns itself, to be raised."""
        if self.origin is None:
            self.origin = origin
        return self

    def for_log(self) -> dict[str, str | None]:
        """What a log line says of it."""
        return {"code": self.code.value, "origin": self.origin, "why": self.message}

    def __repr__(self) -> str:
        return f"LlmError({self.code}, {self.message!r}, origin={self.origin!r})"


class FullError(LlmError):
    """A hop works and takes no more requests now; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(Code.RESOURCE_EXHAUSTED, message, retry_after=retry_after)


def bug(hop: str) -> LlmError:
    """What a caller is told when our own code raised something unforeseen; the log has the rest."""
    return LlmError(Code.INTERNAL, f"an internal error: the {hop}'s log has it under this request's id", origin=hop)


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """An LlmError as JSON: the value of `error` in every HTTP error answer and SSE `error` event."""

    code: Code
    message: str
    origin: str | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: LlmError) -> ErrorBody:
        return cls(error.code, error.message, error.origin, error.retry_after)

    def to_error(self) -> LlmError:
        return LlmError(self.code, self.message, retry_after=self.retry_after, origin=self.origin)


def http_status(error: LlmError, here: str) -> int:
    """The HTTP status with which the hop `here` answers `error`.

    An INTERNAL error of this hop is a 500; one that came from behind it is a 502 (bad gateway). Where this hop is full
    or the store has no room it is a 503: a 429 would tell the caller to send less.
    """
    if isinstance(error, FullError) or (error.code is Code.RESOURCE_EXHAUSTED and error.origin == STORE):
        return TABLE[Code.UNAVAILABLE].http
    if error.code is Code.INTERNAL and error.origin not in (None, here):
        return 502
    return TABLE[error.code].http


def code_of_http_status(status: int) -> Code:
    """The code for an HTTP answer that carries no LlmError of ours."""
    if status in _FROM_HTTP:
        return _FROM_HTTP[status]
    return Code.INVALID_ARGUMENT if 400 <= status < 500 else Code.UNAVAILABLE
