"""Asking upstreams by aiohttp: TLS, and whatever else foreign servers do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import aiohttp
from yarl import URL

from grpc_proxy.background import Background
from grpc_proxy.http_client import (
    FAREWELL_SECONDS,
    KEPT_SECONDS,
    BrokenOffError,
    Gate,
    Response,
    UnreachableError,
    reason,
    watching_socket,
)


class Aiohttp:
    """The client of one event loop; make it in that loop."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS, socket_factory=watching_socket),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._farewells = Background()

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, method: str, url: URL, headers: Mapping[str, str], body: bytes, connect: float) -> Response:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        try:
            response = await self._session.request(
                method, url, data=body or None, headers=headers, timeout=timeout, allow_redirects=False
            )
        except (aiohttp.ClientConnectorError, TimeoutError) as error:
            raise UnreachableError("no answer in time" if isinstance(error, TimeoutError) else reason(error)) from None
        except (aiohttp.ClientError, OSError):
            raise BrokenOffError from None
        return _AiohttpResponse(response, self._farewells)


class _AiohttpResponse:
    def __init__(self, response: aiohttp.ClientResponse, farewells: Background) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.content_type = response.content_type if "Content-Type" in response.headers else ""
        self._response = response
        self._farewells = farewells
        self._finished = False
        _wake_when_closed(response)

    async def some(self, gate: Gate | None = None) -> bytes:
        try:
            came = await self._response.content.readany()
        except (aiohttp.ClientError, OSError):
            left = self._more()
            if left:
                return left
            raise BrokenOffError from None
        if gate is None or self._response.content.at_eof():
            return came
        opens = asyncio.get_running_loop().create_future()
        gate(opens)
        await opens
        return came + self._more()

    def _more(self) -> bytes:
        """What has come, also before the connection broke: aiohttp has it, and no public way to it."""
        content = self._response.content
        return content._read_nowait(-1) if isinstance(content, aiohttp.StreamReader) else b""

    def finished(self) -> None:
        self._finished = True

    def close(self) -> None:
        if self._response.content.at_eof():
            self._response.release()
        elif self._finished:
            self._farewells.start(_end(self._response))
        else:
            self._response.close()


async def _end(response: aiohttp.ClientResponse) -> None:
    try:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await response.read()
    finally:
        if response.content.at_eof():
            response.release()
        else:
            response.close()


def _wake_when_closed(response: aiohttp.ClientResponse) -> None:
    """Let a reader know at once that the connection has closed; aiohttp does not where the body's framing is broken."""

    def closed(future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            future.exception()  # retrieved, or asyncio warns that it never was
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(aiohttp.ServerDisconnectedError())

    protocol = response.connection.protocol if response.connection is not None else None
    future = protocol.closed if protocol is not None else None
    if future is not None:
        future.add_done_callback(closed)
