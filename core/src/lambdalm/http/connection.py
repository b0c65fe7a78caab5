"""One client connection: uvicorn's HTTP/1.1 protocol, with the limits that uvicorn lacks.

Theory of operation. `request_reader` reads requests, uvicorn's cycle runs the app; what a client may do to the server
is decided here, on the loop, without a thread and without a wait:

- A request's head must be whole within `header_seconds` of its first byte. Then its clock starts, and a full hop
  refuses it at once. Its body is collected within `body_seconds`, before the request counts as in flight.
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
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from lambdalm import call as calls
from lambdalm.errors import FullError, LlmError
from lambdalm.http import complaints, contract
from lambdalm.http.app import HttpHop
from lambdalm.http.contract import Reply
from lambdalm.http.cycle import Cycle, RequestError
from lambdalm.http.request_reader import RequestReader
from lambdalm.timings import HopClock

_SLICE = 1024  # bytes for the reader at a time: what is read ahead of an answer, or at once, stays small
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
        self._begun = 0
        self.max_held = 2 * limits.max_in_flight * limits.body_bytes

    def refusal(self) -> LlmError | None:
        """The error for one more call; those begun in this turn of the loop, which are not in flight yet, count."""
        refusal = self.lifecycle.in_flight.refusal(self._begun)
        if refusal is None:
            if self._begun == 0:
                asyncio.get_running_loop().call_soon(self._end_turn)
            self._begun += 1
        return refusal

    def _end_turn(self) -> None:
        self._begun = 0

    def make_room(self) -> None:
        """End the body that has been under way the longest."""
        for connection in self.waiting:
            if connection.holds:
                connection.refuse_body(FullError("too many bodies are being received: come back later", 1))
                break


class Connection(HttpToolsProtocol):
    """One connection; uvicorn makes it, with `shared` bound before its own arguments.

    `_current` is the request that is being answered, or was answered last; in `pipeline` are those that come after it.
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
        self.parser = None  # type: ignore[assignment]  # `_reader` has its own
        self._reader = RequestReader(self)
        self._current: Cycle | None = None
        self._ahead = bytearray()  # sent ahead of the current answer, and not read yet
        self._held = 0  # bytes that count as held for this client
        self.deaf = False
        """What else comes is dropped."""
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
        self._reader.close()
        self._current = None

    def eof_received(self) -> None:
        """The client has closed at least its sending half: it has left, also if it does not take what is written."""
        self._left()

    def _left(self) -> None:
        self._stop_listening()
        if self._current is not None and not self._current.response_complete:
            self._current.leave()

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        if self._ahead or self._is_busy:
            self._keep_for_later(data)
        else:
            self._feed(data)

    # Reading, never far ahead of the answers

    @property
    def _is_busy(self) -> bool:
        """Whether a whole request waits for its answer: until then nothing more is read."""
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
        start = 0
        while start < len(data) and not self.deaf:
            if self._is_busy:
                self._keep_for_later(data[start:])
                break
            end = start + max(_SLICE, self._announced)
            self._reader.feed(data[start:end])
            start = end

    @property
    def _announced(self) -> int:
        """Bytes that are still to come of a body whose length is known: they cost little, however many they are."""
        cycle = self._reader.cycle
        if cycle is None or not cycle.more_body or math.isinf(cycle.length):
            return 0
        return int(cycle.length) - cycle.received

    # What the reader tells

    def on_head_begun(self) -> None:
        """The first bytes of a request have come."""
        if not self._is_busy:
            self._expect(self.shared.limits.header_seconds)

    def on_head(self, cycle: Cycle) -> None:
        """A request's head is whole."""
        if self.deaf:  # it came in one piece with a request whose answer is the last
            return
        if self._current is None or self._current.response_complete:
            self._begin(cycle)
        else:
            self.pipeline.appendleft((cycle, self.app))

    def on_body_piece(self, size: int) -> None:
        """Bytes of a body were put into its cycle."""
        self._hold(size)
        if self.shared.held > self.shared.max_held:
            self.shared.make_room()

    def on_whole_request(self, cycle: Cycle) -> None:
        """A request's body is whole, too."""
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
            refusal = self.shared.refusal()
            if refusal is not None:
                self.shared.metrics.refused("in flight")
                complaints.log("refused", peer=self._peer, **refusal.for_log())
                self._refuse(refusal, cycle)
                return
        self._start_asgi_task(cycle, self.app)

    def _refuse(self, refusal: LlmError, cycle: Cycle) -> None:
        """Answer without the app: one request in each turn of the loop, and when the client takes what it is sent."""
        reply = contract.failure(refusal, _request_id(cycle), cycle.clock)
        if self.flow.write_paused:
            self._start_asgi_task(cycle, partial(_answer, reply))
        else:
            self.loop.call_soon(self._write_refusal, cycle, reply)

    def _write_refusal(self, cycle: Cycle, reply: Reply) -> None:
        if not cycle.disconnected:
            with_body = cycle.scope["method"] != "HEAD"
            self._write(reply, closes=not cycle.answer_past_app(), with_body=with_body)
            self.on_response_complete()

    def on_response_complete(self) -> None:
        """The answer is written. The rest of its body is dropped as it comes; then it is the next request's turn."""
        cycle = self._current
        if cycle is None or not cycle.response_complete or self.transport.is_closing():
            return
        if not (cycle.stays and cycle.more_body):
            self._next()

    def _next(self) -> None:
        assert self._current is not None
        limits = self.shared.limits
        if self.deaf or not self._current.stays:
            self._close()
            return
        if self.pipeline:
            self._begin(self.pipeline.pop()[0])  # type: ignore[arg-type]
        else:
            self._expect(limits.header_seconds if self._reader.in_head else limits.idle_seconds)
        if not self._is_busy:
            self._feed(self._take_ahead())

    def shutdown(self) -> None:
        """The server takes no more requests; the one that is being answered is answered."""
        if self._current is None or self._current.response_complete:
            self._close()
        else:
            self._current.stays = False

    def refuse_body(self, refusal: LlmError) -> None:
        """If a body is under way, give it up, and let that be the answer to its request."""
        if self._current is not None and self._current.more_body:
            self.give_up_on_body(refusal)

    # When it cannot go on

    def _stop_listening(self) -> None:
        """Drop what else comes, and close after the current answer. That the client leaves is still noticed."""
        self.deaf = True
        self._take_ahead()
        self.pipeline.clear()
        if self._current is not None:
            self._current.stays = False

    def give_up(self, refusal: RequestError) -> None:
        """What has come is no request: say so, unless an answer to the one before it is under way."""
        self.shared.metrics.refused(str(refusal.status))
        complaints.log("bad_request", peer=self._peer, status=refusal.status, why=refusal.message)
        if self._current is not None and not self._current.response_complete:
            self._stop_listening()
            return
        if self._current is None or not self._current.more_body:
            self._write(contract.failure(refusal, "", HopClock(self.shared.hop), refusal.status), closes=True)
        self._close(lingers=True)

    def give_up_on_body(self, refusal: LlmError) -> None:
        """The rest of the body under way is not read."""
        cycle = self._reader.cycle
        assert cycle is not None
        self._hold(-self._held)
        if cycle.response_complete:
            self._close()
        elif cycle.response_started:
            self._stop_listening()
        else:
            cycle.refuse(refusal)
            self._stop_listening()
            self._expect(None)

    def _close(self, lingers: bool = False) -> None:
        """Close when all is written; a client that is still sending may read its answer before the reset."""
        unfinished = self._current is not None and self._current.more_body
        lingers = lingers or unfinished or self.deaf or bool(self._ahead or self.pipeline)
        self._stop_listening()
        if lingers and not self.transport.is_closing():
            self.transport.write_eof()
            self._expect(_LINGER_SECONDS)
        else:
            self.transport.close()

    def _write(self, reply: Reply, closes: bool, with_body: bool = True) -> None:
        lines = [STATUS_LINE[reply.status]]
        lines += [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        lines += [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in reply.headers.items()]
        lines += [b"connection: close\r\n"] if closes else []
        body = reply.body if with_body else b""
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (b"".join(lines), len(reply.body), body))

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
        if self.deaf:
            self.transport.abort()
        elif self._reader.in_head:
            self.give_up(RequestError(408, f"the headers did not come within {limits.header_seconds:g} s"))
        elif current is not None and current.more_body:
            self.give_up_on_body(RequestError(408, f"the body did not come within {limits.body_seconds:g} s"))
        else:
            self._close()

    def _expect(self, seconds: float | None) -> None:
        """Give the client these seconds for what comes next; with None it is the server's turn."""
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
        """Count `size` bytes more as held for this client, or fewer where it is negative."""
        self._held += size
        self.shared.held += size

    @property
    def _peer(self) -> str:
        return self.client[0] if self.client else "unknown"


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
