"""A Flask app as both HTTP hops have it: a Call per request, one shape of errors, bodies within limits.

    hop = HttpHop("edge", limits, lifecycle)
    @hop.app.get("/things")
    def things(): …

`hop.call()` is the request's life: id and time budget from its headers, admission, and its cancellation when the client
hangs up. Errors of any kind are answered as `{"error": {"code", "message", "origin", …}, "timings": {…}}`.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Iterator
from typing import cast

import flask
import msgspec
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

from lambdalm import call as calls
from lambdalm import logs, timings, tracing
from lambdalm.call import Call
from lambdalm.errors import ErrorBody, LlmError, bug, code_of_http_status, http_status
from lambdalm.stream import ErrorAnswer
from lambdalm.timings import HopClock
from lambdalm.tracing import Span
from lambdalm.web.hangup import HangupWatcher
from lambdalm.web.limits import Limits
from lambdalm.web.worker import Lifecycle

_log = logs.get(__name__)


class HttpHop:
    """One hop's app and what its requests share. Make it in the process that serves."""

    def __init__(self, name: str, limits: Limits, lifecycle: Lifecycle) -> None:
        self.name = name
        self.limits = limits
        self.lifecycle = lifecycle
        self.app = flask.Flask(name, static_folder=None)
        self._watcher = HangupWatcher()
        self.app.before_request(self._before)
        self.app.register_error_handler(LlmError, self._failed)
        self.app.register_error_handler(HTTPException, self._refused)
        self.app.register_error_handler(Exception, self._broke)

    @contextlib.contextmanager
    def call(self) -> Iterator[Call]:
        """The current request's Call, counted as in flight and cancelled when its client hangs up."""
        headers = flask.request.headers
        limits = self.limits
        budget = calls.budget(headers.get(calls.REQUEST_TIMEOUT), limits.default_timeout, limits.max_timeout)
        call = Call(flask.g.request_id, budget, flask.g.clock)
        call.check()
        sock = cast(socket.socket, flask.request.environ["gunicorn.socket"])
        with (
            _span(call.id) as call.span,
            self.lifecycle.in_flight.admit(call),
            self._watcher.watch(sock, lambda: call.cancel("the client hung up")),
        ):
            yield call

    def body(self) -> bytes:
        """The request's body, which must say that it is JSON; raises an HTTPException.

        Read from the server itself: Werkzeug's stream takes a late body for a client that left, and cuts one without
        a Content-Length at the limit instead of refusing it.
        """
        if flask.request.mimetype != "application/json":
            flask.abort(415, "send the body as JSON, with the header Content-Type: application/json")
        limit = self.limits.body_bytes
        if (flask.request.content_length or 0) > limit:
            flask.abort(413)
        try:
            body: bytes = flask.request.environ["wsgi.input"].read(limit + 1)
        except TimeoutError:
            flask.abort(408, f"the body did not come within {self.limits.body_seconds:g} s")
        except (ParseException, OSError) as error:
            flask.abort(400, f"the body cannot be read: {error}")
        if len(body) > limit:
            flask.abort(413)
        return body

    def answer(self, body: object, clock: HopClock) -> flask.Response:
        """A plain answer, as JSON, with all hops' times in its Server-Timing header."""
        return self._json(msgspec.json.encode(body), 200, clock)

    def _before(self) -> None:
        flask.g.clock = HopClock(self.name)
        flask.g.request_id = ""
        flask.g.request_id = calls.request_id(flask.request.headers.get(calls.REQUEST_ID))

    def _failed(self, error: LlmError) -> flask.Response:
        status = http_status(error.at(self.name), self.name)
        _log.info(
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
        clock: HopClock = flask.g.clock
        body = msgspec.json.encode(ErrorAnswer(ErrorBody.of(error), clock.timings()))
        response = self._json(body, status, clock)
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(math.ceil(error.retry_after))
        return response

    def _json(self, body: bytes, status: int, clock: HopClock) -> flask.Response:
        response = flask.Response(body + b"\n", status, mimetype="application/json")
        response.headers["Server-Timing"] = timings.encode(clock.timings())
        response.headers["X-Request-Id"] = flask.g.request_id
        return response


def _span(request_id: str) -> Span:
    """The current request's part of the trace that its headers name."""
    request = flask.request
    route = str(request.url_rule)
    known = {"http.request.method": request.method, "http.route": route, "lambdalm.request_id": request_id}
    return tracing.span(f"{request.method} {route}", "server", tracing.read(request.headers.get), known)
