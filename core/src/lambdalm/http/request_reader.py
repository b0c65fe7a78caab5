"""Requests, read from the bytes of one client: httptools' parser, with the limits that it lacks.

Each request becomes a `Cycle` when its head is whole; its body is collected in there. A head has at most
`header_bytes`. A body has at most `body_bytes`, in pieces that are not too small, and chunk extensions and trailers
are bounded like a head. What was read, and what cannot be read, the reader tells its connection, which answers.
"""

from __future__ import annotations

import math
import urllib.parse
from typing import TYPE_CHECKING, Any

import httptools

from lambdalm.http.cycle import Cycle, RequestError

if TYPE_CHECKING:
    from lambdalm.http.connection import Connection

_PIECES = 256  # of a body, however small; of more, each has _PIECE_BYTES on average: a chunk costs more than its bytes
_PIECE_BYTES = 64


class RequestReader:
    """Reads the requests of one connection, one after the other.

    `cycle` is the request that it reads, or has read last; `in_head` says that the head of the next has begun.
    """

    def __init__(self, connection: Connection) -> None:
        self.cycle: Cycle | None = None
        self.in_head = False
        self._connection = connection
        self._limits = connection.shared.limits
        self._parser: Any = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # what follows a last request is dropped
        self._framing = 0  # bytes since the last whole head, or byte of a body: heads, trailers, chunk extensions
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_100 = False

    def feed(self, piece: bytes) -> None:
        """Read these bytes, which come next."""
        self._framing += len(piece)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_body_despite_upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._not_http(error)
        else:
            if self._framing > self._limits.header_bytes:
                self._give_up(self._too_long())

    def close(self) -> None:
        """Nothing more comes; parser, reader, request and connection refer to each other no more."""
        self._parser = self.cycle = None
        del self._connection

    def _read_body_despite_upgrade(self, rest: bytes) -> None:
        """The parser stops after a head with `Upgrade`; no answer here accepts it, so its body is read all the same."""
        assert self.cycle is not None
        if not self.cycle.more_body:
            return
        body = (
            b"Transfer-Encoding: chunked"
            if math.isinf(self.cycle.length)
            else b"Content-Length: %d" % self.cycle.length
        )
        self._parser = httptools.HttpRequestParser(_BodyOnly(self))
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % body)
        if rest:
            self.feed(rest)

    # What cannot be read

    def _not_http(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, RequestError):
            self._connection.give_up(cause)
        elif self._reads_head:
            self._connection.give_up(RequestError(400, "the request is not HTTP/1.1"))
        else:
            self._give_up(RequestError(400, "the body cannot be read: its chunks are broken"))

    def _give_up(self, refusal: RequestError) -> None:
        if self._reads_head:
            self._connection.give_up(refusal)
        else:
            self._connection.give_up_on_body(refusal)

    @property
    def _reads_head(self) -> bool:
        return self.in_head or self.cycle is None or not self.cycle.more_body

    def _too_long(self) -> RequestError:
        return RequestError(431, f"the headers are larger than {self._limits.header_bytes} bytes")

    # What the parser tells

    def on_message_begin(self) -> None:
        self.in_head = True
        self._url = b""
        self._headers = []
        self._expects_100 = False
        self._connection.on_head_begun()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:  # trailers are no headers
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_100 = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.in_head = False
        self._framing = 0
        if sum(len(name) + len(value) + 4 for name, value in self._headers) > self._limits.header_bytes:
            raise self._too_long()
        scope = self._scope()
        modern = scope["http_version"] != "1.0"
        stays = modern and self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self.cycle = Cycle(self._connection, scope, self._body_length(), stays, self._expects_100 and modern)
        self._connection.on_head(self.cycle)

    def _scope(self) -> dict[str, Any]:
        """The request as ASGI has it; raises RequestError where it names no host of this server."""
        connection, version = self._connection, self._parser.get_http_version()
        target = httptools.parse_url(self._url)
        hosts = [value for name, value in self._headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise RequestError(400, "Host: send this header once")
        named = [host.decode("latin-1") for host in hosts]
        if target.host:
            host = target.host.decode()
            named.append(f"[{host}]" if ":" in host else host)
        if not all(map(connection.shared.allows, named)):
            raise RequestError(421, "Host: this server does not answer to this name; limits.allowed_hosts adds names")
        path = (target.path or b"/").decode("ascii")
        return {
            "type": "http",
            "http_version": version,
            "server": connection.server,
            "client": connection.client,
            "scheme": connection.scheme,
            "method": self._parser.get_method().decode("ascii"),
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "query_string": target.query or b"",
            "headers": self._headers,
        }

    def _body_length(self) -> float:
        for name, value in self._headers:
            if name == b"content-length":
                return int(value)
            if name == b"transfer-encoding":
                return math.inf
        return 0

    def on_body(self, body: bytes) -> None:
        cycle, connection, most = self.cycle, self._connection, self._limits.body_bytes
        self._framing = 0
        if cycle is None or cycle.refusal is not None or connection.deaf:
            return
        cycle.received += len(body)
        cycle.pieces += 1
        if cycle.received > most:
            connection.give_up_on_body(RequestError(413, f"the body is larger than {most} bytes"))
        elif cycle.pieces > _PIECES + cycle.received // _PIECE_BYTES:
            connection.give_up_on_body(RequestError(400, "the body comes in too many too small pieces"))
        elif not cycle.response_complete:
            cycle.body += body
            connection.on_body_piece(len(body))

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if cycle is None or (cycle.length and not cycle.received and self._parser.should_upgrade()):
            return
        cycle.more_body = False
        cycle.message_event.set()
        self._connection.on_whole_request(cycle)


class _BodyOnly:
    """What a parser that reads only one body tells the reader; what follows the body is dropped."""

    def __init__(self, reader: RequestReader) -> None:
        self._reader = reader
        self._whole = False

    def on_body(self, body: bytes) -> None:
        if not self._whole:
            self._reader.on_body(body)

    def on_message_complete(self) -> None:
        if not self._whole:
            self._whole = True
            self._reader.on_message_complete()
