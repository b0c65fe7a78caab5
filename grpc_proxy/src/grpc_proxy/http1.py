"""A light HTTP/1.1 client for our own servers over plain HTTP: httptools parses; a request costs a tenth of aiohttp's.

    client = Http1()
    response = await client.ask("POST", URL("http://127.0.0.1:8500/query"), headers, body, connect=5)
    while piece := await response.some(): ...
    response.close()

A connection carries one request at a time and is kept for the next one if its answer has ended in an orderly way. No
request is ever sent twice, since the server may have begun to work for it. Before a kept connection is used, it is
looked at whether the server has closed it in the meantime.

A body ends as its headers say: after `Content-Length` bytes, with its last chunk, or, without either, with the
connection. One that ends in any other way has broken off. A reader that is slow pauses the server.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import cast

import aiohappyeyeballs
import httptools
from multidict import CIMultiDict
from yarl import URL

from grpc_proxy.http_client import (
    FAREWELL_SECONDS,
    KEPT_SECONDS,
    BrokenOffError,
    Gate,
    UnreachableError,
    reason,
    watching_socket,
)

_MAX_AROUND = 64 * 1024  # bytes without any of a body: headers, trailers, what else is around chunks
_BETWEEN = 4  # bytes between a header's name, its value and the next header
_MAX_WAITING = 128 * 1024  # bytes of a body that wait for their reader; above, the server is paused
_NEXT_SECONDS = 0.25  # of silence from one address of a host, before another is tried, too

Address = tuple[str, int]


class Http1:
    """The connections of one event loop."""

    def __init__(self) -> None:
        self._idle: dict[Address, list[_Connection]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def ask(
        self, method: str, url: URL, headers: Mapping[str, str], body: bytes, connect: float
    ) -> Http1Response:
        """Returns when the headers have come; connecting may take `connect` seconds.

        Raises UnreachableError and BrokenOffError. A task that is cancelled meanwhile closes the connection.
        """
        request = _request(method, url, headers, body)
        address = (url.host or "", url.port or 80)
        connection = self._kept(address) or await self._connected(address, connect)
        response = connection.send(request)
        try:
            await response.head()
        except BaseException:
            response.close()
            raise
        return response

    def close(self) -> None:
        """Close the connections that are kept."""
        for connections in self._idle.values():
            for connection in list(connections):
                connection.abort()

    def keep(self, connection: _Connection) -> None:
        """It can be used again."""
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.setdefault(connection.address, []).append(connection)
        if self._sweeping is None:
            self._sweep_later()

    def drop(self, connection: _Connection) -> None:
        """It cannot."""
        kept = self._idle.get(connection.address, [])
        if connection in kept:
            kept.remove(connection)

    def _kept(self, address: Address) -> _Connection | None:
        kept = self._idle.get(address)
        oldest = _oldest()
        while kept:
            connection = kept.pop()
            if connection.idle_since > oldest and connection.is_open():
                return connection
            connection.abort()
        return None

    async def _connected(self, address: Address, seconds: float) -> _Connection:
        try:
            async with asyncio.timeout(seconds):
                return await self._connect(address)
        except TimeoutError:
            raise UnreachableError("no answer in time") from None
        except OSError as error:
            raise UnreachableError(reason(error)) from None

    async def _connect(self, address: Address) -> _Connection:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(*address, type=socket.SOCK_STREAM)
        sock = await aiohappyeyeballs.start_connection(
            found, happy_eyeballs_delay=_NEXT_SECONDS, interleave=1, socket_factory=watching_socket
        )
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return (await loop.create_connection(lambda: _Connection(self, address, sock), sock=sock))[1]
        except BaseException:
            sock.close()
            raise

    def _sweep_later(self) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(KEPT_SECONDS / 2, self._sweep)

    def _sweep(self) -> None:
        """Close those that were not used for long."""
        self._sweeping = None
        oldest = _oldest()
        for kept in self._idle.values():
            for connection in [one for one in kept if one.idle_since <= oldest]:
                connection.abort()
        if any(self._idle.values()):
            self._sweep_later()


def _oldest() -> float:
    """A connection that has been idle since then is not used: its server may be about to close it."""
    return asyncio.get_running_loop().time() - KEPT_SECONDS


class _Connection(asyncio.Protocol):
    """One connection and, on it, one answer at a time. httptools calls its `on_…`."""

    def __init__(self, owner: Http1, address: Address, sock: socket.socket) -> None:
        self.address = address
        self.idle_since = 0.0
        self._owner = owner
        self._sock = sock
        self._transport: asyncio.Transport | None = None
        self._response: Http1Response | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._paused = False
        self._around = 0  # bytes since the last of a body

    def send(self, request: bytes) -> Http1Response:
        """Send a request; its answer is to come."""
        assert self._transport is not None
        self._response = Http1Response(self)
        self._transport.write(request)
        return self._response

    def is_open(self) -> bool:
        """Whether an idle one can be used: nothing has come on it, not even its end."""
        if self._transport is None or self._transport.is_closing():
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def done(self, reusable: bool) -> None:
        """Its answer is read."""
        self._response = None
        transport = self._transport
        # A server that has answered before it had all of the request may never read the rest, nor what is behind it.
        sent = transport is not None and not transport.is_closing() and not transport.get_write_buffer_size()
        if reusable and sent:
            self.resume()
            self._owner.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        self._owner.drop(self)
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # which uvloop's is no subclass of

    def data_received(self, data: bytes) -> None:
        response = self._answering()
        if response is None:
            self._spoil()
            return
        self._around += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break_off(response)
            return
        if response.ended:
            self._around = 0
        elif self._around > _MAX_AROUND:
            self._break_off(response)
            return
        response.came()

    def eof_received(self) -> None:
        self.connection_lost(None)  # a half-closed connection is of no use to a client

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.drop(self)
        if self._response is not None:
            self._response.connection_lost(orderly=exc is None)

    def on_message_begin(self) -> None:
        if self._answering() is None:
            self._spoil()

    def on_header(self, name: bytes, value: bytes) -> None:
        if (response := self._answering()) is not None:
            response.on_header(name, value)

    def on_headers_complete(self) -> None:
        if (response := self._answering()) is not None:
            response.on_headers(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        self._around = 0
        if (response := self._answering()) is not None:
            response.on_body(body)

    def on_message_complete(self) -> None:
        if (response := self._answering()) is not None:
            response.on_end(self._parser.should_keep_alive())

    def _answering(self) -> Http1Response | None:
        """The answer that is still to come, or its rest."""
        return None if self._response is None or self._response.ended else self._response

    def _break_off(self, response: Http1Response) -> None:
        response.break_off()
        self.abort()

    def _spoil(self) -> None:
        """More has come than was asked for: who knows what the next answer would be."""
        if self._response is None:
            self.abort()
        else:
            self._response.reusable = False


class Http1Response:
    """An answer, as `http_client.Response` has it."""

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        self.content_type = ""
        self.ended = False
        """Whether all of its body has come."""
        self.reusable = False
        """Whether its connection is good for another request."""
        self._connection = connection
        self._found: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._framed = False  # whether its headers say where its body ends
        self._pieces: list[bytes] = []
        self._waiting = 0  # bytes of them
        self._waiter: asyncio.Future[None] | None = None
        self._gate: Gate = _at_once  # for what comes next
        self._broken = False
        self._finished = False
        self._closed = False

    @property
    def headers(self) -> Mapping[str, str]:
        """Found by their names in any case."""
        return CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._found)

    async def head(self) -> None:
        """Returns when the headers have come; raises BrokenOffError."""
        while not self.status:
            if self._broken:
                raise BrokenOffError
            await self._next(_at_once)

    async def some(self, gate: Gate | None = None) -> bytes:
        """What has come of the body since; waits until something has and the gate opens. Empty at the body's end."""
        waits = gate is not None
        while (waits or not self._pieces) and not (self.ended or self._broken):
            await self._next(gate or _at_once)
            waits = False
        if not self._pieces and self._broken:
            raise BrokenOffError
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        self._connection.resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finished(self) -> None:
        """All that counts of the body has been read."""
        self._finished = True

    def close(self) -> None:
        """Give the connection back if the body has ended, or does soon and `finished` was called; else close it."""
        if self._closed:
            return
        self._closed = True
        if self.ended or self._broken or not self._finished:
            self._connection.done(self.ended and self.reusable)
        else:
            self._connection.resume()
            asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self._give_up)

    def came(self) -> None:
        """All that came at once has been taken in."""
        if self._waiting > _MAX_WAITING and not self._closed:
            self._connection.pause()
        if self._waiter is None or self._waiter.done():
            return
        if self.ended or self._broken:
            self._waiter.set_result(None)
        else:
            gate, self._gate = self._gate, _stay
            gate(self._waiter)

    def break_off(self) -> None:
        """Nothing more comes, and its end has not come."""
        self._broken = not self.ended
        self.reusable = False
        self.came()

    def connection_lost(self, orderly: bool) -> None:
        """The connection is gone."""
        if self.status and not self._framed and orderly and not self._broken:
            self.ended = True
        self.break_off()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:  # a trailer
            return
        self._found.append((name, value))
        self._header_bytes += len(name) + len(value) + _BETWEEN
        if self._header_bytes > _MAX_AROUND:
            raise BrokenOffError  # to the parser, which ends with it

    def on_headers(self, status: int) -> None:
        if status < 200:  # 100 Continue, 103 Early Hints: the answer itself is to come
            self._found.clear()
            return
        self.status = status
        for name, value in self._found:
            match name.lower():
                case b"content-type":
                    self.content_type = value.partition(b";")[0].strip().lower().decode("latin-1")
                case b"content-length" | b"transfer-encoding":
                    self._framed = True

    def on_body(self, body: bytes) -> None:
        if not self._closed:
            self._pieces.append(body)
            self._waiting += len(body)

    def on_end(self, keep_alive: bool) -> None:
        if not self.status:  # of an informational answer
            return
        self.ended = True
        self.reusable = keep_alive
        if self._closed:
            self._connection.done(keep_alive)

    async def _next(self, gate: Gate) -> None:
        """Returns when more has come, or the end, and the gate has opened."""
        self._gate = gate
        self._waiter = asyncio.get_running_loop().create_future()
        if self._pieces:  # which came while no reader waited
            self.came()
        await self._waiter

    def _give_up(self) -> None:
        if not self.ended:
            self._connection.done(False)


def _at_once(future: asyncio.Future[None]) -> None:
    """A gate that is open."""
    future.set_result(None)


def _stay(future: asyncio.Future[None]) -> None:
    """A gate that has been asked already: it opens for all that comes until then."""


def _request(method: str, url: URL, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"{method} {url.raw_path_qs} HTTP/1.1", f"Host: {url.host_port_subcomponent}", *_lines(headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    if any("\n" in line or "\r" in line for line in lines):
        raise ValueError("a header with a line break in it")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _lines(headers: Mapping[str, str]) -> Iterable[str]:
    return (f"{name}: {value}" for name, value in headers.items())
