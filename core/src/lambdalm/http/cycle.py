"""One request on a connection and its answer: uvicorn's cycle, with a clock, refusals of a body, and the hang-up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from lambdalm.errors import LlmError, code_of_http_status
from lambdalm.timings import HopClock

if TYPE_CHECKING:
    from lambdalm.http.connection import Connection

_MOST_TO_DISCARD = 1024 * 1024  # bytes of a body that its answer did not wait for: a longer one closes the connection


class RequestError(LlmError):
    """A request that cannot be read, with the status that HTTP has for it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(code_of_http_status(status), message)
        self.status = status


class Cycle(RequestResponseCycle):
    """One request and its answer. `clock` starts when the head is whole; `on_leave` is called when the client leaves.

    `length` is the announced size of the body in bytes, infinite for a chunked one. `expects_100` says that the client
    waits for "100 Continue" before it sends its body.
    """

    def __init__(self, connection: Connection, scope: Any, length: float, stays: bool, expects_100: bool) -> None:
        super().__init__(
            scope=scope,
            transport=connection.transport,
            flow=connection.flow,
            logger=connection.logger,
            access_logger=connection.access_logger,
            access_log=False,
            default_headers=connection.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expects_100,
            keep_alive=stays,
            on_response=connection.on_response_complete,
        )
        self.clock = HopClock(connection.shared.hop)
        self.length = length
        self.received = 0
        """Bytes of the body so far, which have come in `pieces`."""
        self.pieces = 0
        self._most_to_discard = min(_MOST_TO_DISCARD, connection.shared.limits.body_bytes)
        self.on_leave: Callable[[], None] | None = None
        self.refusal: LlmError | None = None
        self.stays = stays
        """Whether the connection stays open after the answer."""
        self._until_close = False  # HTTP/1.0 has no chunks: the end of the connection ends a stream

    def refuse(self, refusal: LlmError) -> None:
        """The body is given up: raise `refusal` where it is awaited. The connection closes after the answer."""
        self.refusal = refusal
        self.stays = False
        self.body.clear()
        self.message_event.set()

    def leave(self) -> None:
        """The client has left."""
        self.disconnected = True
        self.message_event.set()
        if self.on_leave is not None:
            self.on_leave()

    async def receive(self) -> Any:
        """As ASGI has it; raises the refusal of a body that is late, too large or broken."""
        message = await super().receive()
        if self.refusal is not None and not self.disconnected:
            raise self.refusal
        return message

    async def send(self, message: Any) -> None:
        """As ASGI has it. The connection, not uvicorn, closes after the answer: the body may still be under way."""
        if self.disconnected:
            return
        if not self.response_started:
            self._start(message["headers"])
        elif self._until_close:
            self.expected_content_length = len(message["body"])
        await super().send(message)
        self.keep_alive = True

    def _start(self, headers: list[tuple[bytes, bytes]]) -> None:
        if self.more_body and (self.length > self._most_to_discard or self.waiting_for_100_continue):
            self.stays = False  # one that waits for "100 Continue" may send its next request instead of a body
        if self.scope["http_version"] == "1.0" and all(name.lower() != b"content-length" for name, _ in headers):
            self._until_close = True
            self.chunked_encoding = False
        self.keep_alive = self.stays  # for the head; then it is not uvicorn that closes

    def answer_past_app(self) -> bool:
        """The whole answer is written by the connection; says whether that stays open after it."""
        self._start([(b"content-length", b"")])
        self.response_started = self.response_complete = True
        return self.stays

    def write_last(self, piece: bytes) -> None:
        """One more piece of a stream's body, also when its reader takes nothing now."""
        self.transport.write(piece if self._until_close else b"%x\r\n%b\r\n" % (len(piece), piece))
