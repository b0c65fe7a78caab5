"""A cheap HTTP/1.1 client: bytes out, bytes in, parsed as little as each measurement needs."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple


class Response(NamedTuple):
    """Status, headers (names in lower case) and the whole body."""

    status: int
    headers: dict[str, str]
    body: bytes


def query(id: str = "", close: bool = False, **fields: Any) -> bytes:
    """A `POST /query` with these JSON fields; `id` is its X-Request-Id."""
    body = json.dumps(fields).encode()
    lines = [
        "POST /query HTTP/1.1",
        "Host: bench",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *([f"X-Request-Id: {id}"] if id else []),
        *(["Connection: close"] if close else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str) -> bytes:
    """A `GET`."""
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer."""
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


class Connection:
    """A kept-alive connection: one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes) -> Response:
        """Send a request and read its whole answer."""
        self._writer.write(request)
        status, headers = parse_head(await self._reader.readuntil(b"\r\n\r\n"))
        if headers.get("transfer-encoding") == "chunked":
            return Response(status, headers, await self._chunks())
        return Response(status, headers, await self._reader.readexactly(int(headers.get("content-length", "0"))))

    async def _chunks(self) -> bytes:
        pieces = []
        while size := int(await self._reader.readline(), 16):
            pieces.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readline()
        return b"".join(pieces)

    def close(self) -> None:
        self._writer.close()


class ChunkedBody:
    """The body of one chunked answer: takes headers and chunks off, however the input is cut.

    Raises ValueError, with the status and the body's beginning, for an answer that is not 200.
    """

    def __init__(self) -> None:
        self._held = b""
        self._in_body = False
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that are whole chunks by now."""
        self._held += data
        if not self._in_body:
            head, found, rest = self._held.partition(b"\r\n\r\n")
            if not found:
                return b""
            status, _ = parse_head(head)
            if status != 200:
                raise ValueError(f"HTTP {status}: {rest[:300].decode(errors='replace').strip()}")
            self._in_body = True
            self._held = rest
        return b"".join(iter(self._chunk, b""))

    def _chunk(self) -> bytes:
        size_line, found, rest = self._held.partition(b"\r\n")
        size = int(size_line, 16) if found else 0
        if self._ended or not found or len(rest) < size + 2:
            return b""
        self._held = rest[size + 2 :]
        self._ended = size == 0
        return rest[:size]
