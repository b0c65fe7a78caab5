"""HTTP for fakes, with its bytes in hand: answers in chunks, cut where one likes, and an eye on the client meanwhile.

Engines that are fakes look for their client while they stall, as real ones do: `FakeServer.hung_up` tells a test that
cancelling has reached them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, NoReturn, Self


class ClientLeftError(Exception):
    """The client has left."""


class Reply(NamedTuple):
    """An answer in one piece."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Asked(NamedTuple):
    """A request as it came; the names of `headers` are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Exchange:
    """One request and what is sent for it."""

    def __init__(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        self.asked = asked
        self._handler = handler

    def reply(self, answer: Reply, cut_after: int | None = None) -> None:
        """Send a whole answer; with `cut_after` the connection closes after so many bytes of it."""
        self._begin(answer.status, answer.content_type, [*answer.headers, ("Content-Length", str(len(answer.body)))])
        if self.asked.method != "HEAD":
            self._handler.wfile.write(answer.body[:cut_after])
        if cut_after is not None:
            self.cut()

    def begin(self, content_type: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Start an answer that comes in chunks."""
        self._begin(200, content_type, [*headers, ("Transfer-Encoding", "chunked")])

    def send(self, data: bytes) -> None:
        """One chunk."""
        if data:
            self._handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """The answer's regular end."""
        self._handler.wfile.write(b"0\r\n\r\n")

    def cut(self) -> NoReturn:
        """The connection just closes."""
        raise ConnectionAbortedError

    def pause(self, seconds: float | None) -> None:
        """Wait (None: for ever); raises ClientLeftError when the client leaves."""
        if select.select((self._handler.connection,), (), (), seconds)[0]:
            raise ClientLeftError

    def _begin(self, status: int, content_type: str, headers: list[tuple[str, str]]) -> None:
        self._handler.send_response(status)
        for name, value in [("Content-Type", content_type), *headers]:
            self._handler.send_header(name, value)
        self._handler.end_headers()


class FakeServer(ABC):
    """A server on a port of 127.0.0.1 (0 takes a free one); a subclass says what it answers."""

    def __init__(self, port: int = 0) -> None:
        self.asked: list[Asked] = []
        """All requests so far."""
        self.stalling = threading.Semaphore(0)
        """Released by each answer that has fallen silent."""
        self.hung_up = threading.Semaphore(0)
        """Released by each client that has left in the middle."""
        self.answered = threading.Semaphore(0)
        """Released by each answer that has been sent to its end."""
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()

    def serve_forever(self) -> None:
        self._server.serve_forever()

    @abstractmethod
    def answer(self, exchange: Exchange) -> None:
        """Answer one request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nothing to report."""


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_exchange(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            fake.asked.append(asked)
            try:
                fake.answer(Exchange(self, asked))
                fake.answered.release()
            except (ClientLeftError, BrokenPipeError, ConnectionResetError):
                fake.hung_up.release()
                self.close_connection = True
            except ConnectionAbortedError:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = handle_one_exchange  # noqa: N815  # the names of http.server

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
