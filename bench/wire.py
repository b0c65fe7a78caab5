"""A cheap HTTP/1.1 client: bytes out, bytes in, parsed as little as each measurement needs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast


class Response(NamedTuple):
    """Status, headers (names in lower case) and the whole body."""

    status: int
    headers: dict[str, str]
    body: bytes


def post(path: str, fields: Mapping[str, Any], id: str = "", close: bool = False) -> bytes:
    """A `POST` of these JSON fields; `id` is its X-Request-Id."""
    body = json.dumps(fields).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *([f"X-Request-Id: {id}"] if id else []),
        *(["Connection: close"] if close else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def query(id: str = "", close: bool = False, **fields: Any) -> bytes:
    """A `POST /query` with these JSON fields; `id` is its X-Request-Id."""
    return post("/query", fields, id, close)


def get(path: str) -> bytes:
    """A `GET`."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer."""
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


class Chunks:
    """Takes the chunks off a chunked body, however the input is cut."""

    def __init__(self) -> None:
        self._held = b""
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The bytes that are whole chunks by now; `ended` says whether the last one has come."""
        self._held += data
        return b"".join(iter(self._chunk, b""))

    def _chunk(self) -> bytes:
        size_line, found, rest = self._held.partition(b"\r\n")
        size = int(size_line, 16) if found else 0
        if self.ended or not found or len(rest) < size + 2:
            return b""
        self._held = rest[size + 2 :]
        self.ended = size == 0
        return rest[:size]


class Connection(asyncio.Protocol):
    """A kept-alive connection: one request after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._response: asyncio.Future[Response] | None = None
        self._head: tuple[int, dict[str, str]] | None = None
        self._chunks: Chunks | None = None
        self._missing = 0
        self._held = b""
        self._body: list[bytes] = []

    @classmethod
    async def open(cls, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def ask(self, request: bytes) -> Response:
        """Send a request and read its whole answer; raises ConnectionError when the connection ends before."""
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionError("the server has closed the connection")
        self._response = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._response

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without inheriting from it

    def data_received(self, data: bytes) -> None:
        self._held += data
        if self._head is None:
            head, found, rest = self._held.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = parse_head(head)
            self._begin_body(self._head[1], rest)
        if self._chunks is None:
            self._end_if(len(self._held) >= self._missing, self._held)
        else:
            self._body.append(self._chunks.feed(self._held))
            self._held = b""
            self._end_if(self._chunks.ended, b"".join(self._body))

    def _begin_body(self, headers: Mapping[str, str], rest: bytes) -> None:
        self._held = rest
        self._body = []
        self._chunks = Chunks() if headers.get("transfer-encoding") == "chunked" else None
        self._missing = int(headers.get("content-length", "0"))

    def _end_if(self, whole: bool, body: bytes) -> None:
        if whole and self._head is not None:
            response, self._head, self._held = Response(*self._head, body), None, b""
            if self._response is not None and not self._response.done():
                self._response.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._response is not None and not self._response.done():
            self._response.set_exception(ConnectionError(f"the connection ended before the answer: {exc}"))


class ChunkedBody:
    """The body of one chunked answer: takes headers and chunks off, however the input is cut.

    Raises ValueError, with the status and the body's beginning, for an answer that is not 200.
    """

    def __init__(self) -> None:
        self._head = b""
        self._chunks: Chunks | None = None

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that are whole chunks by now."""
        if self._chunks is not None:
            return self._chunks.feed(data)
        self._head += data
        head, found, rest = self._head.partition(b"\r\n\r\n")
        if not found:
            return b""
        status, _ = parse_head(head)
        if status != 200:
            raise ValueError(f"HTTP {status}: {rest[:300].decode(errors='replace').strip()}")
        self._chunks = Chunks()
        return self._chunks.feed(rest)
