"""The upstream over HTTP, as the proxy sees it: asked for a stream, or for a whole answer where it can be stopped in
the middle of one, and cancelled by closing the connection.

Nothing is retried here. What the upstream says of a failure is passed on as it is; what it leaves unsaid (nothing
listens, the connection breaks, the answer cannot be read) becomes an LlmError whose origin the dialect names. What goes
out and what comes back, `dialects.py` knows; here is the conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec
from yarl import URL

from grpc_proxy.auth import make_auth
from grpc_proxy.clients import Clients
from grpc_proxy.config import UpstreamConfig
from grpc_proxy.dialects import Failure, Look, Reader, Refusal
from grpc_proxy.http_client import BrokenOffError, Gate, Response, UnreachableError
from lambdalm import sse, tracing
from lambdalm.call import REQUEST_ID, REQUEST_TIMEOUT, Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, Collector, Delta, StreamEvent
from lambdalm.foreign_errors import seconds_to_wait
from lambdalm.models import ModelInfo
from lambdalm.tracing import Span

_MAX_ERROR_BYTES = 64 * 1024
_MAX_WHOLE = 16 * 1024 * 1024  # bytes of an answer in one piece
_ERROR_SECONDS = 1.0  # for the body of a refusal: what is not here then is done without

Saw = Callable[[list[StreamEvent]], None]
"""Takes what has come of an answer; an empty batch says only that it has begun."""


class Upstream:
    """One upstream. `http` are the process's clients, `name` what traces call it; raises LlmError where its token
    cannot be read."""

    def __init__(self, http: Clients, config: UpstreamConfig, name: str = "main") -> None:
        self._dialect = config.speak()
        self._auth = make_auth(config.auth)
        self._model = config.model
        self._check_timeout = config.check_timeout
        self._connect = config.connect_seconds
        self._url = URL(self._dialect.ask_url)
        self._http = http.asks(self._url, ours=self._dialect.whole is not None)
        # A balancer, which cuts what is silent for a minute, is likelier behind TLS.
        self._whole = self._dialect.whole if self._url.scheme == "http" else None
        self._known: dict[str, str | int] = {  # what every span says
            "lambdalm.upstream": name,
            "http.request.method": "POST",
            "server.address": self._url.host or "",
            "server.port": self._url.port or 0,
        }

    @property
    def origin(self) -> str:
        """Where errors happened that the upstream does not speak of itself."""
        return self._dialect.origin

    def stream(self, request: ChatRequest, call: Call, gate: Gate | None = None) -> Incoming:
        """The events of one answer as they come; nothing is asked before the first `next`."""
        return Incoming(self, self._named(request), call, gate, stream=True)

    async def answer(self, request: ChatRequest, call: Call, saw: Saw) -> Answer:
        """One whole answer; `saw` takes its batches, an empty one when it comes in one piece. Raises LlmError.

        A task that is cancelled meanwhile closes the connection, which stops the generation.
        """
        incoming = Incoming(self, self._named(request), call, None, stream=self._whole is None)
        try:
            return await incoming.whole(saw)
        finally:
            incoming.close()

    async def look(self) -> Look:
        """Whether the upstream says that it can answer; never raises, and never spends model time."""
        try:
            async with self._get(URL(self._dialect.health_url)) as response:
                return self._dialect.look(response.status, await _body(response, _MAX_WHOLE))
        except LlmError as error:
            return Look(error.message)

    async def models(self) -> list[ModelInfo]:
        """The models that the upstream offers, the configured one first; raises LlmError."""
        async with self._get(URL(self._dialect.models_url)) as response:
            if response.status != 200:
                failure = await self.failure(response)
                raise failure.error
            found = self._dialect.models(await _body(response, _MAX_WHOLE))
        return sorted(found, key=lambda model: model.id != self._model)

    def span(self, request: ChatRequest, call: Call) -> Span:
        """One attempt at an answer, the next of this call."""
        call.attempts += 1
        known = {**self._known, "lambdalm.attempt": call.attempts}
        if request.model is not None:
            known["gen_ai.request.model"] = request.model
        return tracing.span("POST", "client", call.span.trace, known)

    async def ask(self, request: ChatRequest, call: Call, span: Span, stream: bool) -> Response:
        """The answer whose headers have come; raises LlmError, also for one other than 200."""
        body = self._dialect.encode(request, stream)
        asked = {
            "Content-Type": "application/json",
            "Accept": f"{sse.CONTENT_TYPE}, application/json" if stream else "application/json",
            REQUEST_ID: call.id,
            REQUEST_TIMEOUT: f"{call.passed_on():.6f}",
        }
        headers = await self._auth.headers("POST", self._dialect.ask_url, asked, body)
        if span.trace.parent:  # not signed, since a forwarder may change it
            headers = {**headers, **dict(span.trace.headers())}
        response = await self._http.ask("POST", self._url, headers, body, self._connect)
        span.set({"http.response.status_code": response.status})
        return response

    def reader(self, response: Response, request: ChatRequest, call: Call) -> Reader:
        """For a 200 answer to this request; raises LlmError for what it cannot be."""
        return self._dialect.reader(response.content_type, call.id, request.model)

    def decode(self, response: Response) -> Callable[[bytes], Answer] | None:
        """What reads this answer where it comes in one piece, as it was asked for."""
        return self._whole if response.content_type == "application/json" else None

    async def failure(self, response: Response) -> Failure:
        """What an answer other than 200 says."""
        body = b""
        # What is not here soon is done without: the status says most of it.
        with contextlib.suppress(TimeoutError, BrokenOffError):
            async with asyncio.timeout(_ERROR_SECONDS):
                while len(body) < _MAX_ERROR_BYTES and (piece := await response.some()):
                    body += piece
        wait = seconds_to_wait(response.headers.get("Retry-After"))
        return self._dialect.failure(Refusal(response.status, response.headers, body, wait))

    def as_ours(self, error: UnreachableError | BrokenOffError | LlmError) -> LlmError:
        """The LlmError that it is to the caller, without secrets."""
        if isinstance(error, UnreachableError):
            why = f"{self._dialect.place} cannot be reached: {error}"
            found = LlmError(Code.UNAVAILABLE, why, retry_after=1)
        else:
            found = error if isinstance(error, LlmError) else self._dialect.broke_off()
        return self._auth.hidden(found).at(self.origin)

    def _named(self, request: ChatRequest) -> ChatRequest:
        if request.model is None and self._model is not None:
            return msgspec.structs.replace(request, model=self._model)
        return request

    @contextlib.asynccontextmanager
    async def _get(self, url: URL) -> AsyncIterator[Response]:
        """A look at the upstream, which is over in a few seconds; raises LlmError."""
        try:
            async with asyncio.timeout(self._check_timeout):
                headers = await self._auth.headers("GET", str(url), {}, b"")
                response = await self._http.ask("GET", url, headers, b"", self._connect)
                try:
                    yield response
                finally:
                    response.close()
        except TimeoutError:
            raise self.as_ours(UnreachableError("no answer in time")) from None
        except (UnreachableError, BrokenOffError, LlmError) as error:
            raise self.as_ours(error) from None


class Incoming:
    """One answer on its way: its events by `next`, or all of it by `whole`. Close it, which stops what generates it."""

    def __init__(
        self, upstream: Upstream, request: ChatRequest, call: Call, gate: Gate | None, *, stream: bool
    ) -> None:
        self._upstream = upstream
        self._request = request
        self._call = call
        self._gate = gate
        self._stream = stream
        self._span = upstream.span(request, call)
        self._response: Response | None = None
        self._reader: Reader | None = None
        self._failure: LlmError | None = None  # in which it ends, after what has come before
        self._ended = False
        self._said = False  # whether a delta has come
        call.clock.slot_taken()  # from here on it is the upstream's time, also if it says nothing of it

    async def next(self) -> list[StreamEvent]:
        """The events that have come since, one at least; the last is `Finished`. Raises LlmError."""
        try:
            batch: list[StreamEvent] = []
            while not batch:
                batch = await self._next()
        except (UnreachableError, BrokenOffError, LlmError) as error:
            raise self._failed(error) from None
        return batch

    async def whole(self, saw: Saw) -> Answer:
        """All of it; raises LlmError."""
        try:
            response = await self._open()
            decode = self._upstream.decode(response)
            if decode is None:
                return await self._collected(saw)
            saw([])
            answer = decode(await _body(response, _MAX_WHOLE))
        except (UnreachableError, BrokenOffError, LlmError) as error:
            raise self._failed(error) from None
        self._call.clock.behind = answer.timings
        self._ended = True
        return answer

    def close(self) -> None:
        """Stop: the connection is closed, unless the answer has ended."""
        if self._response is not None:
            self._response.close()
        if not self._ended:
            self._span.failed(asyncio.CancelledError())
        self._span.end()

    async def _next(self) -> list[StreamEvent]:
        if self._failure is not None:
            raise self._failure
        response = self._response or await self._open()
        gate = self._gate if self._said else None  # the first delta does not wait
        batch = self._read(await response.some(gate))
        self._said = self._said or any(isinstance(event, Delta) for event in batch)
        return batch

    async def _open(self) -> Response:
        response = await self._upstream.ask(self._request, self._call, self._span, self._stream)
        self._response = response
        if response.status != 200:
            failure = await self._upstream.failure(response)
            self._call.clock.behind = failure.timings
            raise failure.error
        return response

    async def _collected(self, saw: Saw) -> Answer:
        collector = Collector()
        while not self._ended:
            batch = await self._next()
            if batch:
                saw(batch)
            for event in batch:
                collector.add(event)
        return collector.answer()

    def _read(self, chunk: bytes) -> list[StreamEvent]:
        """The events that a chunk completes; an empty chunk is the body's end."""
        events: list[StreamEvent] = []
        if self._reader is None:
            assert self._response is not None
            self._reader = self._upstream.reader(self._response, self._request, self._call)
        reader = self._reader
        try:
            events.extend((reader.feed(chunk) if chunk else reader.close()) or ())
        except LlmError as error:
            self._failure = error
        if reader.finished or self._failure is not None:
            self._call.clock.behind = reader.timings or self._call.clock.behind
        if reader.finished and self._failure is None and self._response is not None:
            self._ended = True
            self._response.finished()
        return events

    def _failed(self, error: UnreachableError | BrokenOffError | LlmError) -> LlmError:
        ours = self._upstream.as_ours(error)
        if not self._ended:
            self._ended = True
            self._span.failed(ours)
        return ours


async def _body(response: Response, limit: int) -> bytes:
    """All of a body; raises `LlmError(INTERNAL)` above `limit` bytes."""
    pieces, size = [], 0
    while piece := await response.some():
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise LlmError(Code.INTERNAL, f"an answer of more than {limit >> 20} MiB")
    return b"".join(pieces)
