"""An HTTP server that a test writes byte by byte: for what no well-behaved server would send, or leave unsent.

    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE, b"event: started\\n")
        peer.reset()

    async with RawServer(play) as server:
        …  # talk to server.url; server.requests has what came

`play` runs once for each request, after all of it has been read; when it returns, the connection closes. `gone` lets
it wait for the other side to hang up. An exception in `play` comes out of the `async with` block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple

OK_SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
"""The head of a stream that ends with its connection."""

OK_SSE_CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
"""The head of a stream in chunks; see `chunk`."""


class Request(NamedTuple):
    """A request that came; the names of its headers are in small letters."""

    target: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """The other side of one connection, and the request that came over it."""

    def __init__(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send these bytes; each piece leaves in a packet of its own, as far as the kernel lets it."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)

    async def next_request(self) -> Request | None:
        """One more request on the same connection, or None when the other side hangs up instead."""
        return await _read_request(self._reader)

    async def gone(self) -> None:
        """Return when the other side has hung up."""
        with contextlib.suppress(ConnectionError):
            await self._reader.read()

    def reset(self) -> None:
        """Break the connection off (RST), as a machine does that has lost it. What was sent may be lost, too."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Play = Callable[[Peer], Awaitable[None]]


class RawServer:
    """Listens on a free port of 127.0.0.1 while inside; `play` may be replaced at any time."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.requests: list[Request] = []
        self.port = 0
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Of its `/query`."""
        return f"http://127.0.0.1:{self.port}/query"

    async def __aenter__(self) -> RawServer:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._failure is not None:
            raise self._failure

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            request = await _read_request(reader)
            if request is not None:
                self.requests.append(request)
                await self.play(Peer(request, reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass  # the other side may leave whenever it likes, and so does the `async with` block
        except Exception as error:  # noqa: BLE001  # a task's edge: it comes out of the `async with` block
            self._failure = error
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    """The request, or None when the other side leaves before it is whole."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except asyncio.IncompleteReadError:
        return None
    return Request(first.split(" ")[1], headers, body)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; an empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(status: str, kind: str, body: bytes) -> bytes:
    """A whole plain answer: `answer("502 Bad Gateway", "text/html", b"…")`."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
