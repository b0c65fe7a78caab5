"""`POST /query`, the one HTTP contract of both HTTP hops: a prompt in, an answer out, whole or as server-sent events.

A hop gives `add_query` the one thing in which they differ: how to open the stream of events for a request. A plain
answer is that same stream, collected. The headers of a stream go out with its first event or heartbeat, so that a
failure before it has its HTTP status; after it, a failure is one terminal `error` event.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator

import flask

from lambdalm import logs, sse
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, decode_query
from lambdalm.coalesce import Coalescer
from lambdalm.errors import LlmError, bug
from lambdalm.events import Delta, StreamEvent, checked, collect, timed
from lambdalm.stream import encode_error, encode_event
from lambdalm.web.app import HttpHop

OpenStream = Callable[[ChatRequest, Call], Generator[StreamEvent, None, None]]

_log = logs.get(__name__)


def add_query(hop: HttpHop, open_stream: OpenStream, coalescer: Coalescer | None = None) -> None:
    """Serve `POST /query` on this hop. `open_stream` may raise LlmError, at once or while it is iterated.

    With a `coalescer` a stream pauses after its frames when it says so; what comes meanwhile the source has to join.
    """

    @hop.app.post("/query")
    def query() -> flask.Response:
        with contextlib.ExitStack() as stack:
            call = stack.enter_context(hop.call())
            body = decode_query(hop.body())
            source = open_stream(body.request(), call)
            stack.callback(source.close)
            events = timed(checked(source), call.clock)
            if not (body.stream or sse.CONTENT_TYPE in flask.request.headers.get("Accept", "")):
                answer = collect(events)
                _log.info("answered", request_id=call.id, model=answer.model, ms=call.clock.total_ms())
                return hop.answer(answer, call.clock)
            first = next(events)
            if coalescer is not None:
                events = _paced(events, call, coalescer)
            response = flask.Response(_frames(first, events, call), mimetype=sse.CONTENT_TYPE)
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Accel-Buffering"] = "no"
            response.headers["X-Request-Id"] = call.id
            response.call_on_close(stack.pop_all().close)
            return response


def _paced(source: Iterator[StreamEvent], call: Call, coalescer: Coalescer) -> Iterator[StreamEvent]:
    with coalescer.stream():
        for event in source:
            yield event
            if isinstance(event, Delta):
                pause = coalescer.delay(1, time.monotonic())
                if pause:
                    call.sleep(pause)


def _frames(first: StreamEvent, rest: Iterator[StreamEvent], call: Call) -> Iterator[bytes]:
    hop = call.clock.hop
    try:
        yield encode_event(first)
        for event in rest:
            yield encode_event(event)
        _log.info("streamed", request_id=call.id, ms=call.clock.total_ms())
    except LlmError as error:
        _log.info("stream failed", request_id=call.id, **error.at(hop).for_log(), ms=call.clock.total_ms())
        yield encode_error(error, call.clock.timings())
    except Exception as error:  # noqa: BLE001  # the edge of the process: the client must be told, whatever it was
        _log.error("a bug: the stream raised", request_id=call.id, exc_info=error)
        yield encode_error(bug(hop), call.clock.timings())
