"""The backend as an AWS Lambda function: `backend_lambda.handler.lambda_handler`.

It answers as the server does (docs/lambda.md has the differences), by the same code, but for what is of a server:
Python functions do not stream. So `stream: true` gets all events of the stream at once, since the gRPC proxy asks for
nothing else; and as nothing has gone out before, a failure in the middle still has its HTTP status.

The config is the package's, or the file that BACKEND_CONFIG names. It is read, and the engine started, at the first
invocation; whatever must not wait is done then, and stays.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from backend_lambda import lambda_events
from backend_lambda.config import Config
from backend_lambda.health import health_of, probe
from backend_lambda.inference import Inference, make_inference
from backend_lambda.lambda_events import MAX_RESULT, Request
from lambdalm import call as calls
from lambdalm import config as configs
from lambdalm import logs, sse
from lambdalm.call import Call
from lambdalm.chat import decode_query
from lambdalm.credentials import bears, no_token
from lambdalm.errors import Code, LlmError, bug, code_of_http_status, http_status
from lambdalm.events import StreamEvent, collect, join, timed
from lambdalm.http import contract
from lambdalm.http.contract import Reply
from lambdalm.models import Models
from lambdalm.stream import encode_event
from lambdalm.timings import HopClock

HOP = "backend"

_MARGIN = 0.5  # seconds of the function's time that are kept for the answer's way out
_FLUSH_SECONDS = 0.2

# stderr and stdout go to CloudWatch, which is made for lines of JSON; the file system is read-only.
_DEFAULTS = {"LOG_FORMAT": "json", "INTERACTION_LOG_FILE": "-"}

_log = logs.get(__name__)


class Context(Protocol):
    """What is used of Lambda's context."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int: ...


class _Function(NamedTuple):
    """What stays from one invocation to the next."""

    config: Config
    token: str | None
    """What a request has to bear, but for health and for a direct invocation, which AWS has let through."""
    inference: Inference


class _Asked(NamedTuple):
    """One invocation."""

    function: _Function
    request: Request
    id: str
    seconds: float
    """That are left of the function's time."""
    clock: HopClock


def lambda_handler(event: Any, context: Context) -> Any:
    """What Lambda calls; it never raises."""
    clock = HopClock(HOP)
    request_id = context.aws_request_id
    try:
        function = _function()
        request = lambda_events.read(event)
        request_id = calls.request_id(request.headers.get(calls.REQUEST_ID, request_id))
        if function.token is not None and lambda_events.is_http(event):
            _admit(request, function.token)
        seconds = max(0.0, context.get_remaining_time_in_millis() / 1000 - _MARGIN)  # less what the start has taken
        reply = _route(_Asked(function, request, request_id, seconds, clock))
    except LlmError as error:
        reply = _failed(error, request_id, clock)
    except Exception as error:  # noqa: BLE001  # the edge: Lambda would answer with the stack
        _log.error("a bug: the handler raised", request_id=request_id, exc_info=error)
        reply = _failed(bug(HOP), request_id, clock)
    result = lambda_events.write(reply, event)
    found = lambda_events.size(result)
    return result if found <= MAX_RESULT else lambda_events.write(_failed(_too_large(found), request_id, clock), event)


@functools.cache
def _function() -> _Function:
    """Raises LlmError where the config or the engine is not as it must be; then the next invocation tries again."""
    file = Path(os.environ.get("BACKEND_CONFIG") or Path(__file__).with_name("config.yaml"))
    logs.configure(HOP, logs.LogConfig(format="json"))  # until the config is there
    try:
        config = configs.load(Config, file, {}, {**_DEFAULTS, **os.environ}).value
        logs.configure(HOP, config.log)
        return _Function(config, config.listen.secret(), make_inference(config))
    except configs.ConfigError as error:
        why = str(error)
    except LlmError as error:
        why = error.message
    _log.error("cannot start", why=why)
    raise LlmError(Code.UNAVAILABLE, "the function cannot start: its log says why", origin=HOP)


def _admit(request: Request, token: str) -> None:
    known = lambda_events.last_segment(request.path) == "health"
    if not known and not bears(request.headers.get("authorization", ""), token):
        raise no_token()


def _route(asked: _Asked) -> Reply:
    method, path = asked.request.method, asked.request.path
    name = lambda_events.last_segment(path)
    if name not in _ROUTES:
        return _refused(404, f"there is no {method} {path} here", asked)
    allowed, answer = _ROUTES[name]
    if method != allowed:
        reply = _refused(405, f"there is no {method} {path} here", asked)
        return reply._replace(headers={**reply.headers, "Allow": allowed})
    return answer(asked)


def _query(asked: _Asked) -> Reply:
    limits, (_, _, headers, body) = asked.function.config.limits, asked.request
    if headers.get("content-type", "").partition(";")[0].strip().lower() != contract.JSON:
        return _refused(415, "send the body as JSON, with the header Content-Type: application/json", asked)
    if len(body) > limits.body_bytes:
        return _refused(413, f"the body is larger than {limits.body_bytes} bytes", asked)
    budget = calls.budget(headers.get(calls.REQUEST_TIMEOUT), limits.default_timeout, limits.max_timeout)
    spent = asked.clock.total_ms() / 1000  # the request's time has run since it came, while the function started, too
    call = Call(asked.id, min(budget, asked.seconds + spent), asked.clock)
    call.deadline -= spent
    query = decode_query(body)
    stream = query.stream or sse.CONTENT_TYPE in headers.get("accept", "")
    try:
        with contextlib.closing(asked.function.inference.stream(query.request(), call)) as events:
            reply = _answered(timed(events, asked.clock), stream, asked)
    finally:
        asked.function.inference.flush(_FLUSH_SECONDS)  # Lambda stops the process when it has the answer
    _log.info("answered", request_id=asked.id, ms=asked.clock.total_ms())
    return reply


def _answered(events: Iterator[StreamEvent], stream: bool, asked: _Asked) -> Reply:
    if not stream:
        return contract.answer(collect(events), asked.id, asked.clock)
    frames = b"".join(encode_event(event) for event in join(events))
    return Reply(
        200, {**contract.headers(sse.CONTENT_TYPE, asked.id, asked.clock), "Cache-Control": "no-store"}, frames
    )


def _health(asked: _Asked) -> Reply:
    provider, slots = asked.function.inference.provider, asked.function.config.provider.slots
    found = health_of(provider, probe(provider), slots)
    return contract.answer(found, asked.id, asked.clock, found.http_status)


def _models(asked: _Asked) -> Reply:
    return contract.answer(Models(list(asked.function.inference.provider.models())), asked.id, asked.clock)


_ROUTES: dict[str, tuple[str, Callable[[_Asked], Reply]]] = {
    "query": ("POST", _query),
    "health": ("GET", _health),
    "models": ("GET", _models),
}


def _failed(error: LlmError, id: str, clock: HopClock) -> Reply:
    status = http_status(error.at(HOP), HOP)
    _log.info("failed", request_id=id, status=status, **error.for_log(), ms=clock.total_ms())
    return contract.failure(error, id, clock)


def _refused(status: int, why: str, asked: _Asked) -> Reply:
    """What HTTP has a status for and the pipeline no code."""
    return contract.failure(LlmError(code_of_http_status(status), why), asked.id, asked.clock, status)


def _too_large(size: int) -> LlmError:
    return LlmError(
        Code.OUT_OF_RANGE,
        f"the answer has {size} bytes and Lambda carries {MAX_RESULT}: ask for fewer max_tokens, or stream it through "
        "Lambda Web Adapter (docs/lambda.md)",
    )
