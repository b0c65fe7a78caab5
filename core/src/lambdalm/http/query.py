"""`POST /query`, the one HTTP contract of both HTTP hops: a prompt in, an answer out, whole or as server-sent events.

A hop gives `add_query` the two things in which they differ: how to get a whole answer, and how to open the stream of
events for a request. The headers of a stream go out with its first event or heartbeat, so that a failure before it has
its HTTP status; after it, a failure is one terminal `error` event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import flask
import msgspec

from lambdalm import logs, sse
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, decode_query
from lambdalm.coalesce import Coalescer
from lambdalm.errors import LlmError, bug
from lambdalm.events import Answer, Delta, Finished, StreamContract, StreamEvent
from lambdalm.http.app import HttpHop, Streamed
from lambdalm.stream import encode_error, encode_event
from lambdalm.timings import HopClock

Batches = AsyncGenerator[list[StreamEvent], None]
GetAnswer = Callable[[ChatRequest, Call], Awaitable[Answer]]
OpenStream = Callable[[ChatRequest, Call], Batches]

_log = logs.get(__name__)


def add_query(hop: HttpHop, get_answer: GetAnswer, open_stream: OpenStream, coalescer: Coalescer | None = None) -> None:
    """Serve `POST /query` on this hop. Both functions may raise LlmError, and are cancelled when the client leaves.

    With a `coalescer`, a stream holds its frames back while it says so; what comes meanwhile, the source has to join.
    """

    @hop.app.post("/query")
    async def query() -> flask.Response:
        body = decode_query(await hop.body())
        if not (body.stream or sse.CONTENT_TYPE in flask.request.headers.get("Accept", "")):
            with hop.call() as call:
                answer = await get_answer(body.request(), call)
                logs.request_line("answered", request_id=call.id, model=answer.model, ms=call.clock.total_ms())
                return hop.answer(msgspec.structs.replace(answer, timings=call.clock.timings()), call.clock)
        frames = _frames(hop, body.request(), open_stream, coalescer)
        response = Streamed(await anext(frames), frames, sse.CONTENT_TYPE)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"
        response.headers["X-Request-Id"] = flask.g.request_id
        return response


async def _frames(
    hop: HttpHop, request: ChatRequest, open_stream: OpenStream, coalescer: Coalescer | None
) -> AsyncGenerator[bytes, None]:
    """The stream as bytes. What is raised before the first of them is raised; later it is the last event."""
    clock: HopClock = flask.g.clock
    contract = StreamContract()
    begun = False
    try:
        with hop.call() as call, coalescer.stream() if coalescer is not None else contextlib.nullcontext():
            async with contextlib.aclosing(open_stream(request, call)) as source:
                async for batch in source:
                    events, failure = _accepted(batch, contract, clock)
                    if events:
                        if coalescer is not None and begun:
                            await _hold_back(events, coalescer)
                        begun = True
                        yield b"".join(map(encode_event, events))
                    if failure is not None:
                        raise failure
            contract.close()
            logs.request_line("streamed", request_id=call.id, ms=clock.total_ms())
    except LlmError as error:
        if not begun:
            raise
        logs.request_line("stream failed", request_id=call.id, **error.at(hop.name).for_log(), ms=clock.total_ms())
        yield encode_error(error, clock.timings())
    except Exception as error:
        if not begun:
            raise
        _log.error("a bug: the stream raised", request_id=call.id, exc_info=error)
        yield encode_error(bug(hop.name), clock.timings())


def _accepted(
    batch: list[StreamEvent], contract: StreamContract, clock: HopClock
) -> tuple[list[StreamEvent], LlmError | None]:
    """The batch up to the first event that breaks the contract, with this hop's time in the end; and that failure."""
    events: list[StreamEvent] = []
    try:
        for event in batch:
            events.append(_timed(contract.accept(event), clock))
    except LlmError as failure:
        return events, failure
    return events, None


def _timed(event: StreamEvent, clock: HopClock) -> StreamEvent:
    if isinstance(event, Delta):
        clock.first_delta()
    elif isinstance(event, Finished):
        if event.timings:
            clock.behind = event.timings
        return msgspec.structs.replace(event, timings=clock.timings())
    return event


async def _hold_back(batch: list[StreamEvent], coalescer: Coalescer) -> None:
    deltas = sum(isinstance(event, Delta) for event in batch)
    delay = coalescer.delay(deltas, asyncio.get_running_loop().time()) if deltas else 0.0
    if delay:
        await asyncio.sleep(delay)
