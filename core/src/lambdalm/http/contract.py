"""The HTTP contract of every hop, without a server: a plain answer and an error as status, headers and body.

A plain answer is JSON. An error is `{"error": {"code", "message", "origin", …}, "timings": {…}}`. Both carry the
request's id and all hops' times (`X-Request-Id`, `Server-Timing`). The servers and the Lambda handler share it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from lambdalm import timings
from lambdalm.errors import ErrorBody, LlmError, http_status
from lambdalm.stream import ErrorAnswer
from lambdalm.timings import HopClock

JSON = "application/json"

_encode = msgspec.json.Encoder().encode


class Reply(NamedTuple):
    """A whole answer; `body` is UTF-8."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer(body: object, request_id: str, clock: HopClock, status: int = 200) -> Reply:
    """`body` as JSON."""
    return Reply(status, headers(JSON, request_id, clock), _encode(body) + b"\n")


def failure(error: LlmError, request_id: str, clock: HopClock, status: int | None = None) -> Reply:
    """An error at this hop; without a `status` it has the one of its code."""
    error = error.at(clock.hop)
    status = http_status(error, clock.hop) if status is None else status
    reply = answer(ErrorAnswer(ErrorBody.of(error), clock.timings()), request_id, clock, status)
    if status == 401:
        reply.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        reply.headers["Retry-After"] = str(math.ceil(error.retry_after))
    return reply


def headers(content_type: str, request_id: str, clock: HopClock) -> dict[str, str]:
    """What every answer carries."""
    return {
        "Content-Type": content_type,
        "X-Request-Id": request_id,
        "Server-Timing": timings.encode(clock.timings()),
    }
