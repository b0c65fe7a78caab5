"""A Flask app as both HTTP hops have it: run inline on the loop, a Call per request, one shape of errors.

    hop = HttpHop("edge", limits, lifecycle)
    @hop.app.get("/things")
    async def things(): …

Flask routes, handles errors and builds responses, in tens of microseconds, and never blocks. A view that has to wait
is a coroutine function; it is awaited inside Flask's request context. A view that streams returns a `Streamed`.

`hop.call()` is a call's life: its id and time budget from the headers, admission, and its cancellation when the client
leaves, its time is up or the server stops.

This is the one module that uses what Flask does not document (written for Flask 3.1, a test names it): it takes
`Flask.full_dispatch_request` apart so that a view's coroutine can be awaited in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import AsyncGenerator, Callable
from io import BytesIO
from types import CoroutineType
from typing import Any

import flask
from werkzeug.exceptions import HTTPException

from lambdalm import call as calls
from lambdalm import logs, tracing
from lambdalm.call import Call
from lambdalm.errors import Code, LlmError, bug, code_of_http_status, http_status
from lambdalm.http import contract
from lambdalm.http.admission import Admitted, Lifecycle
from lambdalm.http.cycle import Cycle, RequestError
from lambdalm.http.limits import Limits
from lambdalm.http.metrics import HttpMetrics
from lambdalm.timings import HopClock
from lambdalm.tracing import Span

_log = logs.get(__name__)


class Streamed(flask.Response):
    """A response whose body comes in pieces: `first`, then those of `rest`, which is closed when the client leaves."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], content_type: str) -> None:
        super().__init__(content_type=content_type)
        self.first = first
        self.rest = rest


class _App(flask.Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Views may be coroutine functions: `HttpHop` awaits what they give."""
        return func


class HttpHop:
    """One hop's app and what its requests share: an ASGI application. `open_paths` are answered also by a full hop."""

    def __init__(self, name: str, limits: Limits, lifecycle: Lifecycle) -> None:
        self.name = name
        self.limits = limits
        self.lifecycle = lifecycle
        self.metrics = HttpMetrics()
        self.open_paths = {"/metrics"}
        self.app = _App(name, static_folder=None)
        self.app.register_error_handler(LlmError, self._failed)
        self.app.register_error_handler(HTTPException, self._refused)
        self.app.register_error_handler(Exception, self._broke)
        self.app.add_url_rule("/metrics", "metrics", self._metrics)

    def call(self) -> Admitted:
        """The current request's Call, as a context manager; raises LlmError where it is not admitted or is stopped."""
        headers, limits = flask.request.headers, self.limits
        budget = calls.budget(headers.get(calls.REQUEST_TIMEOUT), limits.default_timeout, limits.max_timeout)
        call = Call(flask.g.request_id, budget, flask.g.clock)
        call.deadline -= call.clock.total_ms() / 1000  # its time has run since its headers were whole
        return Admitted(call, _cycle(), self.lifecycle.in_flight, _span(call.id))

    async def body(self) -> bytes:
        """The request's body, which must say that it is JSON; raises an HTTPException, or LlmError."""
        if flask.request.mimetype != contract.JSON:
            flask.abort(415, "send the body as JSON, with the header Content-Type: application/json")
        cycle = _cycle()
        if cycle.length > self.limits.body_bytes and cycle.length != float("inf"):
            flask.abort(413)
        pieces = []
        while True:
            message = await cycle.receive()
            if message["type"] != "http.request":
                raise LlmError(Code.CANCELLED, "the client hung up", origin=self.name)
            pieces.append(message["body"])
            if not message["more_body"]:
                return b"".join(pieces)

    def answer(self, body: object, clock: HopClock, status: int = 200) -> flask.Response:
        """A plain answer, as JSON, with all hops' times in its Server-Timing header."""
        reply = contract.answer(body, flask.g.request_id, clock, status)
        return flask.Response(reply.body, reply.status, reply.headers)

    def no_content(self, clock: HopClock) -> flask.Response:
        """204: what was asked for is done, and there is nothing to say. It has no Content-Length (RFC 9110, 8.6)."""
        response = flask.Response(status=204, headers=contract.headers(contract.JSON, flask.g.request_id, clock))
        del response.headers["Content-Type"]
        return response

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as ASGI has it; `receive` is that of a `Cycle`."""
        cycle: Cycle = receive.__self__
        try:
            route, response = await self._respond(_environ(scope, cycle), cycle)
            if isinstance(response, Streamed):
                await _write_stream(response, cycle)
            else:
                await _write(response, cycle)
            self.metrics.answered(route, response.status_code, cycle.clock.total_ms() / 1000)
        except asyncio.CancelledError:
            if not cycle.transport.is_closing():
                raise

    async def _respond(self, environ: dict[str, Any], cycle: Cycle) -> tuple[str, flask.Response]:
        """`Flask.wsgi_app` and `Flask.full_dispatch_request`, with the view awaited; also gives the route (or "")."""
        app = self.app
        with app.request_context(environ) as context:
            flask.g.clock = cycle.clock
            flask.g.request_id = ""
            try:
                flask.g.request_id = calls.request_id(environ.get("HTTP_X_REQUEST_ID"))
                found = app.preprocess_request()
                if found is None:
                    found = app.dispatch_request()
                if isinstance(found, CoroutineType):
                    found = await found
            except Exception as error:  # noqa: BLE001  # as Flask does
                found = app.handle_user_exception(error)
                error.__traceback__ = error.__context__ = None  # their frames hold the request, which holds the error
            response = app.finalize_request(found)
            rule = context.request.url_rule
            return "" if rule is None else rule.rule, response

    def _metrics(self) -> flask.Response:
        kind, body = self.metrics.exposition()
        return flask.Response(body, content_type=kind)

    def _failed(self, error: LlmError) -> flask.Response:
        error = error.at(self.name)
        status = error.status if isinstance(error, RequestError) else http_status(error, self.name)
        logs.request_line(
            "failed", request_id=flask.g.request_id, status=status, **error.for_log(), ms=flask.g.clock.total_ms()
        )
        return self._error(error, status)

    def _refused(self, refusal: HTTPException) -> flask.Response:
        status = refusal.code or 500
        message = (refusal.description or refusal.name).removesuffix(".")
        if status in (404, 405):
            message = f"there is no {flask.request.method} {flask.request.path} here"
        elif status == 413:
            message = f"the body is larger than {self.limits.body_bytes} bytes"
        response = self._error(LlmError(code_of_http_status(status), message, origin=self.name), status)
        for name, value in refusal.get_headers(flask.request.environ):
            if name == "Allow":
                response.headers[name] = value
        return response

    def _broke(self, error: Exception) -> flask.Response:
        _log.error("a bug: the request's handler raised", request_id=flask.g.request_id, exc_info=error)
        return self._error(bug(self.name), 500)

    def _error(self, error: LlmError, status: int) -> flask.Response:
        reply = contract.failure(error, flask.g.request_id, flask.g.clock, status)
        return flask.Response(reply.body, reply.status, reply.headers)


def _cycle() -> Cycle:
    """The current request's."""
    cycle: Cycle = flask.request.environ["lambdalm.cycle"]
    return cycle


def _span(request_id: str) -> Span:
    """The current request's part of the trace that its headers name."""
    request = flask.request
    route = str(request.url_rule)
    known = {"http.request.method": request.method, "http.route": route, "lambdalm.request_id": request_id}
    return tracing.span(f"{request.method} {route}", "server", tracing.read(request.headers.get), known)


def _environ(scope: Any, cycle: Cycle) -> dict[str, Any]:
    """The request as WSGI has it (PEP 3333), which Flask reads; its body is read through `HttpHop.body` instead."""
    server = scope["server"] or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode().decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": scope["client"][0] if scope["client"] else "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "lambdalm.cycle": cycle,
    }
    for name, value in scope["headers"]:
        key = _wsgi_name(name)
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{text}" if key in environ else text
    environ.pop("", None)
    return environ


@functools.lru_cache(256)
def _wsgi_name(name: bytes) -> str:
    """A header's key in the environ. Empty for a name with an underscore: it would pass for the one with a hyphen."""
    if b"_" in name:
        return ""
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


async def _write(response: flask.Response, cycle: Cycle) -> None:
    await _write_head(response, cycle)
    await cycle.send({"type": "http.response.body", "body": response.get_data()})


async def _write_stream(response: Streamed, cycle: Cycle) -> None:
    async with contextlib.aclosing(response.rest) as rest:
        try:
            await _write_head(response, cycle)
            await cycle.send({"type": "http.response.body", "body": response.first, "more_body": True})
            async for piece in rest:
                await cycle.send({"type": "http.response.body", "body": piece, "more_body": True})
        except asyncio.CancelledError as error:
            # The call was stopped while its reader took nothing: its end is the last piece all the same.
            last = await rest.athrow(error)
            if not cycle.response_started:
                await _write_head(response, cycle)
            if not cycle.disconnected:
                cycle.write_last(last)
        await cycle.send({"type": "http.response.body", "body": b""})


async def _write_head(response: flask.Response, cycle: Cycle) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    await cycle.send({"type": "http.response.start", "status": response.status_code, "headers": headers})
