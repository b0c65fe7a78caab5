"""The upstream over HTTP, as the proxy sees it: always asked for a stream, and cancelled by closing the connection.

Nothing is retried here. What the upstream says of a failure is passed on as it is; what it leaves unsaid (nothing
listens, the connection breaks, the answer makes no sense) becomes an LlmError whose origin the dialect names. What goes
out and what comes back, `dialects.py` knows; here is all of the I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator

import aiohttp
import msgspec
from yarl import URL

from grpc_proxy.auth import make_auth
from grpc_proxy.config import UpstreamConfig
from grpc_proxy.dialects import Failure, Look, Reader, Refusal
from lambdalm import sse, tracing
from lambdalm.call import REQUEST_ID, REQUEST_TIMEOUT, Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Heartbeat, StreamEvent
from lambdalm.foreign_errors import seconds_to_wait
from lambdalm.models import ModelInfo
from lambdalm.tracing import Span, Trace

_MAX_ERROR_BYTES = 64 * 1024
_FAREWELL_SECONDS = 1.0


class Upstream:
    """One upstream. `session` is the process's aiohttp session, `name` what traces call it; raises LlmError where its
    token cannot be read."""

    def __init__(
        self, session: aiohttp.ClientSession, config: UpstreamConfig, heartbeat_seconds: float, name: str = "main"
    ) -> None:
        self._session = session
        self._dialect = config.speak()
        self._auth = make_auth(config.auth)
        self._model = config.model
        self._heartbeat = heartbeat_seconds
        self._check_timeout = config.check_timeout
        url = URL(self._dialect.ask_url)
        self._known: dict[str, str | int] = {  # what every span says
            "lambdalm.upstream": name,
            "http.request.method": "POST",
            "server.address": url.host or "",
            "server.port": url.port or 0,
        }
        self._connecting = aiohttp.ClientTimeout(total=None, sock_connect=config.connect_seconds)

    @property
    def origin(self) -> str:
        """Where errors happened that the upstream does not speak of itself."""
        return self._dialect.origin

    async def stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
        """The events of one answer, in the batches in which they come; raises LlmError.

        After so long without any there is a batch of one Heartbeat. Closing the generator closes the connection,
        which stops the generation.
        """
        if request.model is None and self._model is not None:
            request = msgspec.structs.replace(request, model=self._model)
        call.clock.slot_taken()  # from here on it is the upstream's time, also if it tells nothing of it
        with self._span(request, call) as span:
            opening = asyncio.create_task(self._open(request, call, span.trace))
            try:
                while not (await asyncio.wait({opening}, timeout=self._heartbeat))[0]:
                    yield [Heartbeat()]
                response = opening.result()
                span.set({"http.response.status_code": response.status})
                if response.status != 200:
                    failure = await self._failure(response)
                    call.clock.behind = failure.timings
                    raise failure.error
                async for batch in self._batches(response, request, call):
                    yield batch
            except (aiohttp.ClientError, OSError, LlmError) as error:
                raise self._as_ours(error) from None
            finally:
                await _close(opening)

    async def look(self) -> Look:
        """Whether the upstream says that it can answer; never raises, and never spends model time."""
        try:
            async with self._get(URL(self._dialect.health_url)) as response:
                return self._dialect.look(response.status, await response.read())
        except LlmError as error:
            return Look(error.message)

    async def models(self) -> list[ModelInfo]:
        """The models that the upstream offers, the configured one first; raises LlmError."""
        async with self._get(URL(self._dialect.models_url)) as response:
            if response.status != 200:
                failure = await self._failure(response)
                raise failure.error
            found = self._dialect.models(await response.read())
        return sorted(found, key=lambda model: model.id != self._model)

    def _span(self, request: ChatRequest, call: Call) -> Span:
        """One attempt at an answer, the next of this call."""
        call.attempts += 1
        known = {**self._known, "lambdalm.attempt": call.attempts}
        if request.model is not None:
            known["gen_ai.request.model"] = request.model
        return tracing.span("POST", "client", call.span.trace, known)

    async def _open(self, request: ChatRequest, call: Call, trace: Trace) -> aiohttp.ClientResponse:
        url, body = URL(self._dialect.ask_url), self._dialect.encode(request)
        asked = {
            "Content-Type": "application/json",
            "Accept": f"{sse.CONTENT_TYPE}, application/json",
            REQUEST_ID: call.id,
            REQUEST_TIMEOUT: f"{call.passed_on():.6f}",
        }
        headers = await self._auth.headers("POST", str(url), asked, body)
        headers = {**headers, **dict(trace.headers())}  # not signed, since whoever forwards the request may change them
        return await self._session.post(
            url, data=body, headers=headers, timeout=self._connecting, allow_redirects=False
        )

    @contextlib.asynccontextmanager
    async def _get(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """A look at the upstream, which is over in a few seconds; raises LlmError."""
        try:
            async with asyncio.timeout(self._check_timeout):
                headers = await self._auth.headers("GET", str(url), {}, b"")
                async with self._session.get(
                    url, headers=headers, timeout=self._connecting, allow_redirects=False
                ) as response:
                    yield response
        except (aiohttp.ClientError, OSError, LlmError) as error:
            raise self._as_ours(error) from None

    async def _batches(
        self, response: aiohttp.ClientResponse, request: ChatRequest, call: Call
    ) -> AsyncGenerator[list[StreamEvent], None]:
        content_type = response.content_type if "Content-Type" in response.headers else ""
        reader = self._dialect.reader(content_type, call.id, request.model)
        _wake_when_closed(response)
        try:
            while not reader.finished:
                try:
                    async with asyncio.timeout(self._heartbeat):
                        chunk = await response.content.readany()
                except TimeoutError:
                    yield [Heartbeat()]
                    continue
                except (aiohttp.ClientError, OSError):
                    chunk = _left_unread(response)
                    if not chunk:
                        raise
                batch, failure = _read(reader, chunk)
                if batch:
                    yield batch
                if failure is not None:
                    raise failure
            # To the body's very end, so that the connection can be used again; the answer is whole without it.
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await response.read()
        finally:
            if reader.timings:
                call.clock.behind = reader.timings

    async def _failure(self, response: aiohttp.ClientResponse) -> Failure:
        body = b""
        # What is not here soon is done without: the status says most of it.
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while len(body) < _MAX_ERROR_BYTES and (piece := await response.content.readany()):
                    body += piece
        wait = seconds_to_wait(response.headers.get("Retry-After"))
        return self._dialect.failure(Refusal(response.status, response.headers, body, wait))

    def _as_ours(self, error: aiohttp.ClientError | OSError | LlmError) -> LlmError:
        """The LlmError that it is to the caller, without secrets."""
        if not isinstance(error, LlmError):
            error = self._unreachable(error)
        return self._auth.hidden(error).at(self.origin)

    def _unreachable(self, error: aiohttp.ClientError | OSError) -> LlmError:
        if not isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
            return self._dialect.broke_off()
        why = "no answer in time" if isinstance(error, TimeoutError) else _reason(error)
        return LlmError(Code.UNAVAILABLE, f"{self._dialect.place} cannot be reached: {why}", retry_after=1)


def _reason(error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason}"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__


def _read(reader: Reader, chunk: bytes) -> tuple[list[StreamEvent], LlmError | None]:
    """The events that a chunk completes, and the failure that they end in; an empty chunk is the body's end."""
    events: list[StreamEvent] = []
    try:
        events.extend((reader.feed(chunk) if chunk else reader.close()) or ())
    except LlmError as error:
        return events, error
    return events, None


def _left_unread(response: aiohttp.ClientResponse) -> bytes:
    """What came before the connection broke: aiohttp has it, and no public way to it."""
    content = response.content
    return content._read_nowait(-1) if isinstance(content, aiohttp.StreamReader) else b""


def _wake_when_closed(response: aiohttp.ClientResponse) -> None:
    """Let a reader know at once that the connection has closed; aiohttp does not where the body's framing is broken."""

    def closed(future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            future.exception()  # looked at, so that nobody complains that it was not
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(aiohttp.ServerDisconnectedError())

    protocol = response.connection.protocol if response.connection is not None else None
    future = protocol.closed if protocol is not None else None
    if future is not None:
        future.add_done_callback(closed)


async def _close(opening: asyncio.Task[aiohttp.ClientResponse]) -> None:
    """Give the connection back if its answer has been read to the end; else close it, whether or not one has come."""
    if opening.done() and not opening.cancelled() and opening.exception() is None:
        response = opening.result()
        if response.content.at_eof():
            response.release()
        else:
            response.close()
    else:
        opening.cancel()
