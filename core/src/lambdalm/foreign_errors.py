"""Error answers of servers that are not ours, read as LlmErrors: OpenAI-style servers, Ollama, FastAPI, API Gateway.

They say it in these ways, and in none of them reliably:

    {"error": {"message", "type", "param", "code"}}   OpenAI, vLLM, llama-server; `code` may be the HTTP status
    {"error": "text"}                                 Ollama
    {"object": "error", "message", "code"}            vLLM before 2025
    {"detail": "text" | [{"loc", "msg"}]}             FastAPI
    {"message": "text"}                               API Gateway and other AWS services

API Gateway's own errors look as if the function behind it had answered: only a header of AWS tells them apart. They are
named as what they are, with what is likely behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lambdalm.errors import Code, LlmError, code_of_http_status

_MAX_WAIT = 3600.0  # seconds

_BY_TYPE = {
    "invalid_request_error": Code.INVALID_ARGUMENT,
    "badrequesterror": Code.INVALID_ARGUMENT,
    "exceed_context_size_error": Code.INVALID_ARGUMENT,
    "authentication_error": Code.UNAUTHENTICATED,
    "permission_error": Code.PERMISSION_DENIED,
    "not_found_error": Code.NOT_FOUND,
    "notfounderror": Code.NOT_FOUND,
    "rate_limit_error": Code.RESOURCE_EXHAUSTED,
    "insufficient_quota": Code.RESOURCE_EXHAUSTED,
    "timeout": Code.DEADLINE_EXCEEDED,
    "overloaded_error": Code.UNAVAILABLE,
    "unavailable_error": Code.UNAVAILABLE,
}


_OF_AWS = {"x-amzn-requestid", "apigw-requestid", "x-amzn-errortype", "x-amz-apigw-id"}
"""Headers that API Gateway and function URLs send, in lower case."""

_GATEWAY_HINTS = {
    403: "is the URL right, its stage and path, too, and does the request carry the key or signature that it wants?",
    429: "its throttling or a usage plan's quota: send less, or have it raised",
    502: "the function failed or timed out, or its answer was malformed: its log knows",
    504: "its integration timeout (29 s for REST APIs, 30 s for HTTP APIs) is shorter than this request takes: ask for "
    "fewer tokens, or use a function URL",
}


def error_answer(
    status: int, body: bytes, who: str, retry_after: float | None = None, headers: Mapping[str, str] = {}
) -> LlmError:
    """What an HTTP answer that is an error says; `who` answered it. A body that says nothing leaves the status.

    With its `headers` an answer of API Gateway's own is told from one of the server behind it.
    """
    answer = _parsed(body)
    said = _said(answer)
    gateway = _is_gateways(answer, headers)
    why = f"{'the API gateway' if gateway else who} answered HTTP {status}" + (f": {said}" if said else "")
    if gateway and status in _GATEWAY_HINTS:
        why += f"; {_GATEWAY_HINTS[status]}"
    return LlmError(code_of_http_status(status), why, retry_after=retry_after)


def seconds_to_wait(header: str | None) -> float | None:
    """What a `Retry-After` says, up to an hour; its other form, a date, is not used by those that we ask."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _MAX_WAIT else None


def error_event(error: Any, who: str) -> LlmError:
    """What an error in the middle of a stream says: the value of its `error`, a text or an object."""
    said = _said({"error": error})
    why = f"{who} failed in the middle of its answer" + (f": {said}" if said else "")
    return LlmError(_code_of(error), why)


def _parsed(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _is_gateways(answer: Any, headers: Mapping[str, str]) -> bool:
    """Whether it is `{"message": …}`, and nothing else, with a header of AWS; REST APIs and function URLs differ in
    the M."""
    if not isinstance(answer, dict) or {str(key).lower() for key in answer} != {"message"}:
        return False
    return not _OF_AWS.isdisjoint(name.lower() for name in headers)


def _said(answer: Any) -> str:
    """The text in it, on one line."""
    if not isinstance(answer, dict):
        return ""
    error = answer.get("error")
    found = error.get("message") if isinstance(error, dict) else error
    found = found or answer.get("message") or answer.get("Message") or _detail(answer.get("detail"))
    return " ".join(found.split()) if isinstance(found, str) else ""


def _detail(detail: Any) -> Any:
    """FastAPI's list of what is wrong, as `field: why`."""
    if not isinstance(detail, list):
        return detail
    rows = [row for row in detail if isinstance(row, dict)]
    return "; ".join(f"{_place(row.get('loc'))}: {row.get('msg')}" for row in rows)


def _place(loc: Any) -> str:
    return ".".join(map(str, loc)) if isinstance(loc, list) else str(loc or "")


def _code_of(error: Any) -> Code:
    if not isinstance(error, dict):
        return Code.INTERNAL
    for status in (error.get("code"), error.get("status_code")):
        if isinstance(status, int) and 400 <= status < 600:
            return code_of_http_status(status)
    return _BY_TYPE.get(str(error.get("type")).lower(), Code.INTERNAL)
