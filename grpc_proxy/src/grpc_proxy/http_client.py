"""HTTP towards upstreams: what an answer is to who reads it, and aiohttp's way to one.

Nothing is retried and no redirect is followed here, and no time is limited but that to connect: a call has its own
budget. A task that is cancelled while it asks closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Mapping
from typing import Protocol, Self

import aiohttp
from yarl import URL

from grpc_proxy.background import Background

_KEPT_SECONDS = 4.0  # that an idle connection is kept: less than servers do, of which uvicorn's 5 s are the shortest
_FAREWELL_SECONDS = 1.0  # for the end of a body whose answer has ended, so that its connection can be used again
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))


class UnreachableError(Exception):
    """No connection came about; its words say why."""


class BrokenOffError(Exception):
    """The connection ended before the answer did, or what came is no HTTP."""


class Response(Protocol):
    """An answer whose headers have come. Each of its calls raises BrokenOffError."""

    status: int
    headers: Mapping[str, str]
    """Found by their names in any case."""
    content_type: str
    """In small letters and without parameters; empty where there is none."""

    async def some(self) -> bytes:
        """What has come of the body since; waits until something has. Empty at the body's end."""
        ...

    def more(self) -> bytes:
        """The same, without waiting: empty where nothing has come."""
        ...

    def close(self) -> None:
        """Give the connection back if the body has ended, or does soon and `finished` was called; else close it."""
        ...

    def finished(self) -> None:
        """All that counts of the body has been read."""
        ...


class Client(Protocol):
    """Asks servers."""

    async def ask(self, method: str, url: URL, headers: Mapping[str, str], body: bytes, connect: float) -> Response:
        """Returns when the headers have come; connecting may take `connect` seconds.

        Raises UnreachableError and BrokenOffError.
        """
        ...


def watch_host(sock: socket.socket) -> None:
    """Notice within 11 s that the other host is gone (no RST comes then): a silent model answers TCP's probes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Clients:
    """The process's HTTP clients, as an async context manager."""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_SECONDS, socket_factory=_socket),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self.general: Client = _Aiohttp(self._session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()


def _socket(address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    watch_host(made)
    return made


class _Aiohttp:
    """aiohttp: TLS, and whatever else foreign servers do."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._farewells = Background()

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

    async def some(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError):
            left = self.more()
            if left:
                return left
            raise BrokenOffError from None

    def more(self) -> bytes:
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
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await response.read()
    finally:
        if response.content.at_eof():
            response.release()
        else:
            response.close()


def reason(error: BaseException) -> str:
    """Why a connection did not come about, in a few words."""
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
