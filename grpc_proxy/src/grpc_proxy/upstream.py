"""An LLM backend over HTTP, as the proxy sees it: always asked for a stream, and cancelled by closing the connection.

Nothing is retried here. What the backend says of a failure is passed on as it is; what it leaves unsaid (nothing
listens, the connection breaks, the answer makes no sense) becomes an LlmError with origin "backend".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncGenerator

import aiohttp
import msgspec

from grpc_proxy.config import UpstreamConfig
from lambdalm import sse
from lambdalm.call import REQUEST_ID, REQUEST_TIMEOUT, Call
from lambdalm.chat import ChatRequest, encode_query
from lambdalm.errors import Code, LlmError, code_of_http_status
from lambdalm.events import Heartbeat, StreamEvent
from lambdalm.stream import ErrorAnswer, EventReader

BACKEND = "backend"
_MAX_ERROR_BYTES = 64 * 1024
_FAREWELL_SECONDS = 1.0


class Model(msgspec.Struct, frozen=True):
    """One row of the backend's `/models`."""

    id: str
    provider: str
    context_window: int | None = None


class _Models(msgspec.Struct, frozen=True):
    models: list[Model]


class Upstream:
    """One backend. `session` is the process's aiohttp session."""

    def __init__(self, session: aiohttp.ClientSession, config: UpstreamConfig, heartbeat_seconds: float) -> None:
        self._session = session
        self._url = config.url
        self._base = config.url.removesuffix("/query")
        self._heartbeat = heartbeat_seconds
        self._check = aiohttp.ClientTimeout(total=max(config.check_seconds, 1))

    async def stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
        """The events of one answer, in the batches in which they come; raises LlmError.

        After so long without any there is a batch of one Heartbeat. Closing the generator closes the connection,
        which stops the generation.
        """
        opening = asyncio.create_task(self._open(request, call))
        try:
            while not (await asyncio.wait({opening}, timeout=self._heartbeat))[0]:
                yield [Heartbeat()]
            response = opening.result()
            await _refuse_failure(response, call)
            async for batch in self._batches(response, call):
                yield batch
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from None
        finally:
            await _close(opening)

    async def healthy(self) -> str | None:
        """None when the backend says that it can answer; else why it cannot."""
        try:
            async with self._session.get(f"{self._base}/health", timeout=self._check) as response:
                await response.read()
                return None if response.status == 200 else f"its /health answers HTTP {response.status}"
        except (aiohttp.ClientError, OSError) as error:
            return self._unreachable(error).message

    async def models(self) -> list[Model]:
        """The models that the backend offers; raises LlmError."""
        try:
            async with self._session.get(f"{self._base}/models", timeout=self._check) as response:
                if response.status != 200:
                    raise await _failure(response)
                return msgspec.json.decode(await response.read(), type=_Models).models
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from None
        except msgspec.MsgspecError as error:
            raise LlmError(Code.INTERNAL, f"the backend's /models makes no sense: {error}", origin=BACKEND) from None

    async def _open(self, request: ChatRequest, call: Call) -> aiohttp.ClientResponse:
        return await self._session.post(
            self._url,
            data=encode_query(request, stream=True),
            headers={
                "Content-Type": "application/json",
                "Accept": sse.CONTENT_TYPE,
                REQUEST_ID: call.id,
                REQUEST_TIMEOUT: f"{call.passed_on():.6f}",
            },
            allow_redirects=False,
        )

    async def _batches(self, response: aiohttp.ClientResponse, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
        reader = EventReader()
        _wake_when_closed(response)
        try:
            while not reader.finished:
                try:
                    async with asyncio.timeout(self._heartbeat):
                        chunk = await response.content.readany()
                except TimeoutError:
                    yield [Heartbeat()]
                    continue
                if not chunk:
                    reader.close()
                batch: list[StreamEvent] = []
                failure = None
                try:
                    batch.extend(reader.feed(chunk))
                except LlmError as error:
                    failure = error
                if batch:
                    yield batch
                if failure is not None:
                    raise failure
            # To the body's very end, so that the connection can be used again; the answer is whole without it.
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await response.read()
        except LlmError as error:
            raise error.at(BACKEND) from None
        finally:
            if reader.timings:
                call.clock.behind = reader.timings

    def _unreachable(self, error: aiohttp.ClientError | OSError) -> LlmError:
        if not isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
            return LlmError(Code.UNAVAILABLE, _BROKE_OFF, origin=BACKEND)
        why = "no answer in time" if isinstance(error, TimeoutError) else _reason(error)
        return LlmError(
            Code.UNAVAILABLE, f"the LLM backend at {self._base} cannot be reached: {why}", retry_after=1, origin=BACKEND
        )


_BROKE_OFF = "the connection to the LLM backend broke off: the answer is incomplete"


def _reason(error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason}"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__


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


async def _refuse_failure(response: aiohttp.ClientResponse, call: Call) -> None:
    """Raises the LlmError that the answer is, unless it is the start of a stream."""
    if response.status != 200:
        failure = await _failure(response, call)
        raise failure
    if response.content_type != sse.CONTENT_TYPE:
        raise LlmError(
            Code.INTERNAL, f"the backend answered {response.content_type} instead of an event stream", origin=BACKEND
        )


async def _failure(response: aiohttp.ClientResponse, call: Call | None = None) -> LlmError:
    body = b""
    while len(body) < _MAX_ERROR_BYTES and (piece := await response.content.readany()):
        body += piece
    try:
        answer = msgspec.json.decode(body, type=ErrorAnswer)
    except (msgspec.MsgspecError, RecursionError):
        return LlmError(
            code_of_http_status(response.status), f"the backend answered HTTP {response.status}", origin=BACKEND
        )
    if call is not None:
        call.clock.behind = answer.timings
    return answer.error.to_error().at(BACKEND)


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
