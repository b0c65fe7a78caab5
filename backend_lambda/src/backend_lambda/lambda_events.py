"""What AWS Lambda is invoked with, as requests, and answers as what it returns; without I/O.

    event  ─ read ─▶  Request  ─ … ─▶  Reply  ─ write ─▶  result

An API Gateway REST API sends events of version 1.0, an HTTP API and a function URL of version 2.0; what they take back
is the same. Any other event is a direct invocation (`aws lambda invoke`, Step Functions): the event is the body of a
`POST /query`, and its result is the body of the answer.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NamedTuple

import msgspec

from lambdalm.errors import Code, LlmError
from lambdalm.http.contract import JSON, Reply

MAX_RESULT = 6 * 1024 * 1024
"""Bytes of a result as JSON: what Lambda carries of an answer that is not streamed."""


class Request(NamedTuple):
    """What was asked; the names of `headers` are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class _V1(msgspec.Struct):
    httpMethod: str  # noqa: N815  # the name on the wire
    path: str
    headers: dict[str, str] | None = None
    multiValueHeaders: dict[str, list[str]] | None = None  # noqa: N815
    body: str | None = None
    isBase64Encoded: bool = False  # noqa: N815

    def request(self) -> Request:
        headers = {name: ",".join(values) for name, values in (self.multiValueHeaders or {}).items()}
        return _request(self.httpMethod, self.path, headers or self.headers, self.body, self.isBase64Encoded)


class _Http(msgspec.Struct):
    method: str


class _Context(msgspec.Struct):
    http: _Http


class _V2(msgspec.Struct):
    rawPath: str  # noqa: N815
    requestContext: _Context  # noqa: N815
    headers: dict[str, str] | None = None
    body: str | None = None
    isBase64Encoded: bool = False  # noqa: N815

    def request(self) -> Request:
        return _request(self.requestContext.http.method, self.rawPath, self.headers, self.body, self.isBase64Encoded)


def is_http(event: Any) -> bool:
    """Whether an HTTP request is in it; else it is a direct invocation."""
    return isinstance(event, dict) and "requestContext" in event and ("httpMethod" in event or "rawPath" in event)


def read(event: Any) -> Request:
    """The request in an event; raises LlmError(INVALID_ARGUMENT) for an event of an unknown shape."""
    if not is_http(event):
        # An invocation has one result, so its caller could not read a stream.
        body = {**event, "stream": False} if isinstance(event, dict) else event
        return Request("POST", "/query", {"content-type": JSON}, _json(body))
    kind: type[_V1 | _V2] = _V1 if "httpMethod" in event else _V2
    try:
        return msgspec.convert(event, kind).request()
    except msgspec.ValidationError as error:
        raise LlmError(Code.INVALID_ARGUMENT, f"the event is not one of API Gateway's: {error}") from None


def _json(event: Any) -> bytes:
    try:
        return msgspec.json.encode(event)
    except (UnicodeEncodeError, RecursionError) as error:
        raise LlmError(Code.INVALID_ARGUMENT, f"the event cannot be read: {error}") from None


def write(reply: Reply, event: Any) -> Any:
    """The result of an invocation with this event."""
    if not is_http(event):
        return msgspec.json.decode(reply.body)
    return {
        "statusCode": reply.status,
        "headers": reply.headers,
        "body": reply.body.decode(),
        "isBase64Encoded": False,
    }


def size(result: Any) -> int:
    """Bytes of a result as Lambda's runtime sends it, or a few more: not all versions escape what is not ASCII."""
    return len(json.dumps(result))


def last_segment(path: str) -> str:
    """What is asked for: a path may begin with a stage (`/prod/query`) or with a custom domain's base path."""
    return path.rpartition("/")[2]


def _request(method: str, path: str, headers: dict[str, str] | None, body: str | None, is_base64: bool) -> Request:
    found = {name.lower(): value for name, value in (headers or {}).items()}
    return Request(method, path, found, _bytes(body or "", is_base64))


def _bytes(body: str, is_base64: bool) -> bytes:
    try:
        return base64.b64decode(body, validate=True) if is_base64 else body.encode()
    except (binascii.Error, ValueError) as error:
        raise LlmError(Code.INVALID_ARGUMENT, f"the body cannot be read: {error}") from None
