"""One client connection: uvicorn's HTTP/1.1 protocol, with the limits that uvicorn lacks.

Theory of operation. uvicorn parses (httptools) and runs the app; what a client may do to the server is decided here, on
the loop, without a thread and without a wait:

- A request's head must be whole within `header_seconds` of its first byte and within `header_bytes`. Then its clock
  starts, and a full hop refuses it at once. Its body is collected here, within `body_seconds` and `body_bytes`, before
  the request counts as in flight.
- Requests are answered one by one. What a client sends ahead waits, bounded; beyond that it is dropped, and the
  connection closes after the current answer.
- After an answer has begun, a broken rest of its request closes the connection: there is never a second answer.
- No connection has a timer of its own: the server calls `overdue` on each, several times a second. A connection that
  waits for its client (idle, or with an incomplete request) gives way when the server has `max_connections`.
- A complaint names its kind and the peer, never the client's bytes.

Written against uvicorn 0.54 (`protocols/http/httptools_impl.py`); `requirements/` pins it and a test names it.
"""

from __future__ import annotations

import asyncio
import math
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from lambdalm import call as calls
from lambdalm.errors import FullError, LlmError
from lambdalm.http import complaints, contract
from lambdalm.http.app import HttpHop
from lambdalm.http.contract import Reply
from lambdalm.http.cycle import Cycle, RequestError
from lambdalm.timings import HopClock

_SLICE = 4096  # bytes for the parser at a time: what is parsed ahead of an answer stays small
_PIECES = 1024  # of a body, however small; of more, each has _PIECE_BYTES on average: a chunk costs more than its bytes
_PIECE_BYTES = 64
_LINGER_SECONDS = 2.0  # for a client to read the answer to a request that it is still sending

_REQUEST_ID = calls.REQUEST_ID.encode()


class Shared:
    """What the connections of one server share. `allows` decides on Host, `max_connections` are open at most."""

    def __init__(self, hop: HttpHop, allows: Callable[[str], bool], max_connections: int) -> None:
        self.hop = hop.name
        self.limits = limits = hop.limits
        self.lifecycle = hop.lifecycle
        self.metrics = hop.metrics
        self.open_paths = hop.open_paths
        self.allows = allows
        self.max_connections = max_connections
        self.waiting: OrderedDict[Connection, None] = OrderedDict()
        """The connections that wait for their client, the one that has waited longest first."""
        self.no_connections = asyncio.Event()
        """Set when the last open connection has closed."""
        self.held = 0
        """Bytes held for all clients: of bodies that are not whole, and sent ahead."""
        self.max_held = 2 * limits.max_in_flight * limits.body_bytes

    def make_room(self) -> None:
        """End the body that has been under way the longest."""
        for connection in self.waiting:
            if connection.holds:
                connection.refuse_body(FullError("too many bodies are being received: come back later", 1))
                break


class Connection(HttpToolsProtocol):
    """One connection; uvicorn makes it, with `shared` bound before its own arguments.

    `cycle` is the request that the parser is in, or was in last; `_current` the one that is being answered.
    """

    def __init__(
        self,
        shared: Shared,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.shared = shared
        self.cycle: Cycle | None = None  # type: ignore[assignment]
        self._current: Cycle | None = None
        self._ahead = bytearray()  # sent ahead of the current answer, and not parsed yet
        self._held = 0  # bytes that count as held for this client
        self._in_head = False
        self._framing = 0  # bytes since the last whole head, or byte of a body: heads, trailers, chunk extensions
        self._deaf = False  # what else comes is dropped
        self._deadline = math.inf  # for the client, on the loop's clock
        self._unsent = (0, 0.0)  # bytes that wait to be written, and since when they have not become fewer

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.shared.no_connections.clear()
        self._expect(self.shared.limits.header_seconds)
        if len(self.connections) > self.shared.max_connections:
            self.shared.metrics.refused("connections")
            self.shared.waiting.popitem(last=False)[0].transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        if not self.connections:
            self.shared.no_connections.set()
        self.shared.waiting.pop(self, None)
        self._left()
        self._hold(-self._held)
        self.flow.resume_writing()
        self.parser = None  # type: ignore[assignment]

    def eof_received(self) -> None:
        """The client has closed at least its sending half: it has left, also if it does not take what is written."""
        self._left()

    def _left(self) -> None:
        self._stop_listening()
        if self._current is not None and not self._current.response_complete:
            self._current.leave()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._ahead or self._is_busy:
            self._keep_for_later(data)
        else:
            self._feed(data)

    # Parsing, never far ahead of the answers

    @property
    def _is_busy(self) -> bool:
        """Whether a whole request waits for its answer: until then nothing more is parsed."""
        current = self._current
        return current is not None and not current.more_body and not current.response_complete

    def _keep_for_later(self, data: bytes) -> None:
        self._ahead += data
        self._hold(len(data))
        most = self.shared.limits.header_bytes + self.shared.limits.body_bytes
        if len(self._ahead) > most or self.shared.held > self.shared.max_held:
            self._stop_listening()

    def _take_ahead(self) -> bytes:
        ahead = bytes(self._ahead)
        self._ahead.clear()
        self._hold(-len(ahead))
        return ahead

    def _feed(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE):
            if self._is_busy:
                self._keep_for_later(data[start:])
                return
            self._parse(data[start : start + _SLICE])
            if self._deaf:
                return

    def _parse(self, piece: bytes) -> None:
        self._framing += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_body_despite_upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._not_http(error)
        else:
            if self._framing > self.shared.limits.header_bytes:
                give_up = self._give_up if self._reads_head else self._give_up_on_body
                give_up(self._too_long())

    @property
    def _reads_head(self) -> bool:
        return self._in_head or self.cycle is None or not self.cycle.more_body

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
        self.parser = httptools.HttpRequestParser(_BodyOnly(self))
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % body)
        if rest:
            self._parse(rest)

    def _not_http(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, RequestError):
            self._give_up(cause)
        elif self._reads_head:
            self._give_up(RequestError(400, "the request is not HTTP/1.1"))
        else:
            self._give_up_on_body(RequestError(400, "the body cannot be read: its chunks are broken"))

    def _too_long(self) -> RequestError:
        return RequestError(431, f"the headers are larger than {self.shared.limits.header_bytes} bytes")

    # What the parser tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if not self._is_busy:
            self._expect(self.shared.limits.header_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are no headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._framing = 0
        if sum(len(name) + len(value) + 4 for name, value in self.headers) > self.shared.limits.header_bytes:
            raise self._too_long()
        self._describe()
        stays = self.parser.should_keep_alive() and not self.parser.should_upgrade()
        self.cycle = cycle = Cycle(self, self.scope, stays and self.scope["http_version"] != "1.0", self._body_length())
        self.scope["lambdalm.cycle"] = cycle  # type: ignore[typeddict-unknown-key]
        if self._current is None or self._current.response_complete:
            self._begin(cycle)
        else:
            self.pipeline.appendleft((cycle, self.app))

    def _describe(self) -> None:
        """Complete the scope; raises RequestError for a request that names no host of this server."""
        version = self.parser.get_http_version()
        target = httptools.parse_url(self.url)
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise RequestError(400, "Host: send this header once")
        named = [host.decode("latin-1") for host in hosts]
        if target.host:
            host = target.host.decode()
            named.append(f"[{host}]" if ":" in host else host)
        if not all(map(self.shared.allows, named)):
            raise RequestError(421, "Host: this server does not answer to this name; limits.allowed_hosts adds names")
        path = (target.path or b"/").decode("ascii")
        self.scope["http_version"] = version
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["raw_path"] = path.encode()
        self.scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        self.scope["query_string"] = target.query or b""

    def _body_length(self) -> float:
        for name, value in self.headers:
            if name == b"content-length":
                return int(value)
            if name == b"transfer-encoding":
                return math.inf
        return 0

    def on_body(self, body: bytes) -> None:
        cycle, shared = self.cycle, self.shared
        self._framing = 0
        if cycle is None or cycle.refusal is not None or self._deaf:
            return
        cycle.received += len(body)
        cycle.pieces += 1
        if cycle.received > shared.limits.body_bytes:
            self._give_up_on_body(RequestError(413, f"the body is larger than {shared.limits.body_bytes} bytes"))
        elif cycle.pieces > _PIECES + cycle.received // _PIECE_BYTES:
            self._give_up_on_body(RequestError(400, "the body comes in too many too small pieces"))
        elif not cycle.response_complete:
            cycle.body += body
            self._hold(len(body))
            if shared.held > shared.max_held:
                shared.make_room()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if cycle is None or (cycle.length and not cycle.received and self.parser.should_upgrade()):
            return
        cycle.more_body = False
        cycle.message_event.set()
        self._hold(-self._held)
        if cycle.response_complete:
            self._next()
        elif cycle is self._current:
            self._expect(None)

    # One request after the other

    def _begin(self, cycle: Cycle) -> None:
        """The head of the request whose turn it is is whole: refuse it, or run the app for it."""
        self._current = cycle
        self._expect(self.shared.limits.body_seconds if cycle.more_body else None)
        if cycle.scope["path"] not in self.shared.open_paths:
            refusal = self.shared.lifecycle.in_flight.refusal()
            if refusal is not None:
                self.shared.metrics.refused("in flight")
                complaints.log("refused", peer=self._peer, **refusal.for_log())
                self._refuse(refusal, cycle)
                return
        self._start_asgi_task(cycle, self.app)

    def _refuse(self, refusal: LlmError, cycle: Cycle) -> None:
        """Answer without the app: at once, unless the client does not take what it has been sent."""
        reply = contract.failure(refusal, _request_id(cycle), cycle.clock)
        if self.flow.write_paused or cycle.scope["method"] == "HEAD":
            self._start_asgi_task(cycle, partial(_answer, reply))
            return
        self._write(reply, closes=cycle.answer_past_app())
        if cycle.closes or not cycle.more_body:  # else the end of the body leads to the next request
            self.loop.call_soon(self.on_response_complete)

    def on_response_complete(self) -> None:
        """The answer is written. The rest of its body is dropped as it comes; then it is the next request's turn."""
        cycle = self._current
        if cycle is None or not cycle.response_complete or self.transport.is_closing():
            return
        if cycle.closes or not cycle.more_body:
            self._next()

    def _next(self) -> None:
        assert self._current is not None
        limits = self.shared.limits
        if self._current.closes or self._deaf:
            self._close()
            return
        if self.pipeline:
            self._begin(self.pipeline.pop()[0])  # type: ignore[arg-type]
        else:
            self._expect(limits.header_seconds if self._in_head else limits.idle_seconds)
        if not self._is_busy:
            self._feed(self._take_ahead())

    def shutdown(self) -> None:
        """The server takes no more requests; the one that is being answered is answered."""
        if self._current is None or self._current.response_complete:
            self._close()
        else:
            self._current.keep_alive = False

    def refuse_body(self, refusal: LlmError) -> None:
        """If a body is under way, give it up, and let that be the answer to its request."""
        if self._current is not None and self._current.more_body:
            self._give_up_on_body(refusal)

    # When it cannot go on

    def _stop_listening(self) -> None:
        """Drop what else comes, and close after the current answer. That the client leaves is still noticed."""
        self._deaf = True
        self._take_ahead()
        self.pipeline.clear()
        if self._current is not None:
            self._current.keep_alive = False

    def _give_up(self, refusal: RequestError) -> None:
        """What has come is no request: say so, unless an answer to the one before it is under way."""
        self.shared.metrics.refused(str(refusal.status))
        complaints.log("bad_request", peer=self._peer, status=refusal.status, why=refusal.message)
        if self._current is not None and not self._current.response_complete:
            self._stop_listening()
            return
        if self._current is None or not self._current.more_body:
            self._write(contract.failure(refusal, "", HopClock(self.shared.hop), refusal.status), closes=True)
        self._close(lingers=True)

    def _give_up_on_body(self, refusal: LlmError) -> None:
        """The rest of the body under way is not read."""
        cycle = self.cycle
        assert cycle is not None
        self._hold(-self._held)
        if cycle.response_complete:
            self._close()
        elif cycle.response_started:
            self._stop_listening()
        else:
            cycle.refuse(refusal)

    def _close(self, lingers: bool = False) -> None:
        """Close when all is written; a client that is still sending may read its answer before the reset."""
        unfinished = self._current is not None and self._current.more_body
        lingers = lingers or unfinished or self._deaf or bool(self._ahead or self.pipeline)
        self._stop_listening()
        if lingers and not self.transport.is_closing():
            self.transport.write_eof()
            self._expect(_LINGER_SECONDS)
        else:
            self.transport.close()

    def _write(self, reply: Reply, closes: bool) -> None:
        lines = [STATUS_LINE[reply.status]]
        lines += [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in reply.headers.items()]
        lines += [b"Connection: close\r\n"] if closes else []
        self.transport.write(b"%bContent-Length: %d\r\n\r\n%b" % (b"".join(lines), len(reply.body), reply.body))

    # Deadlines

    def overdue(self, now: float) -> None:
        """End what the client is late with; `now` is the loop's time."""
        if self._takes_nothing(now):
            complaints.log("reader_stalled", peer=self._peer, seconds=self.shared.limits.write_seconds)
            self.transport.abort()
        elif now >= self._deadline:
            self._deadline = math.inf
            self._late()

    def _takes_nothing(self, now: float) -> bool:
        size, (before, since) = self.transport.get_write_buffer_size(), self._unsent
        if before == 0 or size < before:
            since = now
        self._unsent = (size, since)
        return size > 0 and now - since >= self.shared.limits.write_seconds

    def _late(self) -> None:
        limits, current = self.shared.limits, self._current
        if self._deaf:
            self.transport.abort()
        elif self._in_head:
            self._give_up(RequestError(408, f"the headers did not come within {limits.header_seconds:g} s"))
        elif current is not None and current.more_body:
            self._give_up_on_body(RequestError(408, f"the body did not come within {limits.body_seconds:g} s"))
        else:
            self._close()

    def _expect(self, seconds: float | None) -> None:
        """The client has so many seconds for what comes next; with None it is the server's turn."""
        waiting = self.shared.waiting
        if seconds is None:
            self._deadline = math.inf
            waiting.pop(self, None)
        else:
            self._deadline = self.loop.time() + seconds
            waiting[self] = None
            waiting.move_to_end(self)

    # Memory

    @property
    def holds(self) -> bool:
        """Whether bytes are held for this client."""
        return self._held > 0

    def _hold(self, size: int) -> None:
        """So many bytes more, or fewer, are held for this client."""
        self._held += size
        self.shared.held += size

    @property
    def _peer(self) -> str:
        return self.client[0] if self.client else "unknown"


class _BodyOnly:
    """What a parser that reads only one body tells its connection; what follows the body is dropped."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._whole = False

    def on_body(self, body: bytes) -> None:
        if not self._whole:
            self._connection.on_body(body)

    def on_message_complete(self) -> None:
        if not self._whole:
            self._whole = True
            self._connection.on_message_complete()


async def _answer(reply: Reply, scope: Any, receive: Any, send: Any) -> None:
    """An ASGI app that has one answer. A refusal is one too: its reader must take it before the next is written."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in reply.headers.items()]
    headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _request_id(cycle: Cycle) -> str:
    """The id that the request's own header gives it, or a new one."""
    given = next((value.decode("latin-1") for name, value in cycle.scope["headers"] if name == _REQUEST_ID), None)
    try:
        return calls.request_id(given)
    except LlmError:
        return ""
