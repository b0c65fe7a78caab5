"""gunicorn's threaded worker, with what it lacks.

Theory of operation. gunicorn's worker gives a connection to a thread as soon as its first byte has come, and that
thread then waits for the rest of the headers without limit: a few clients that send half a header hold every thread.
Here the worker's own event loop collects the headers, without a thread, and closes those that are not whole by their
deadline or grow too large; only a request with all its headers gets a thread. From then on each `recv` of its body
has what is left of one total deadline as its timeout, and each `send` the timeout for readers that take nothing.

Stopping has three steps: not ready (`Lifecycle.draining`) while the listener is still open; after the pause, no new
connections; after the grace period, the calls still in flight are cancelled, so that each gets a truthful end.

Written against gunicorn 27 (`workers/gthread.py`); `requirements/` pins it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
import threading
import time
from functools import partial
from types import FrameType
from typing import Any

from gunicorn.http import get_parser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from lambdalm import logs
from lambdalm.web.inflight import InFlight
from lambdalm.web.limits import Limits

_log = logs.get(__name__)

_END_OF_HEADERS = b"\r\n\r\n"
_CHUNK = 16 * 1024
_LAST_REQUEST_SECONDS = 1.0  # for headers under way when the worker stops


class Lifecycle:
    """What the worker tells the app of its stopping, and whom it stops. One per server, made before the fork."""

    def __init__(self, limits: Limits) -> None:
        self.draining = threading.Event()
        self.in_flight = InFlight(limits.max_in_flight)


def _limit_sends(sock: socket.socket, seconds: float) -> None:
    """Let a send that cannot send anything for so long raise BlockingIOError.

    A timeout of Python's own would poll before each send, and wait for the GIL once more.
    """
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


class DeadlineUnreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """Reads a request's body with one deadline for all of it."""

    deadline = 0.0

    def chunk(self, size_hint: int | None = None) -> bytes:
        self.sock.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            received: bytes = super().chunk(size_hint)
        finally:
            self.sock.settimeout(None)
        return received


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Subclass it with `limits` and `lifecycle` set: gunicorn makes its workers itself, from a class."""

    limits: Limits
    lifecycle: Lifecycle

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heads: dict[TConn, tuple[float, bytearray]] = {}  # deadline and what has come; oldest first

    def enqueue_req(self, conn: TConn) -> None:
        """Take a new request on `conn`: collect its headers first. Runs in the event loop's thread."""
        if conn.parser is None:
            conn.parser = get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = DeadlineUnreader(conn.sock)
            conn.initialized = True
        conn.sock.setblocking(False)
        head = bytearray(conn.parser.unreader.take_buffered())
        self._heads[conn] = (time.monotonic() + self.limits.header_seconds, head)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_head, conn))
        if not self._dispatch(conn, head):
            self._read_head(conn, conn.sock)

    def _read_head(self, conn: TConn, sock: socket.socket) -> None:
        _, head = self._heads[conn]
        try:
            chunk = sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._drop(conn)
            return
        head += chunk
        self._dispatch(conn, head)

    def _dispatch(self, conn: TConn, head: bytearray) -> bool:
        """Give the request to a thread if its headers are whole; says whether the waiting is over."""
        end = head.find(_END_OF_HEADERS)
        if (end if end >= 0 else len(head)) > self.limits.header_bytes:
            self._drop(conn, b"431 Request Header Fields Too Large")
            return True
        if end < 0:
            return False
        self._forget(conn)
        conn.parser.unreader.unread(bytes(head))
        conn.parser.unreader.deadline = time.monotonic() + self.limits.body_seconds
        super().enqueue_req(conn)
        return True

    def _forget(self, conn: TConn) -> None:
        del self._heads[conn]
        self.poller.unregister(conn.sock)

    def _drop(self, conn: TConn, status: bytes | None = None) -> None:
        self._forget(conn)
        if status is not None:
            with contextlib.suppress(OSError):
                conn.sock.send(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Close the connections whose headers are late. gunicorn calls it at least once a second."""
        now = time.monotonic()
        hurry = 0.0 if self.alive else self.limits.header_seconds - _LAST_REQUEST_SECONDS
        while self._heads:
            conn, (deadline, _) = next(iter(self._heads.items()))
            if deadline - hurry > now:
                break
            self._drop(conn, b"408 Request Timeout")

    def set_accept_enabled(self, enabled: bool) -> None:
        """Also close the listeners when the worker stops: else clients would wait in their backlog, for nothing."""
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:
                listener.close()

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """One request, in its thread; a reader that takes nothing for `write_seconds` is closed."""
        _limit_sends(conn.sock, self.limits.write_seconds)
        try:
            keep: bool = super().handle_request(req, conn)
        except BlockingIOError:
            _log.info("closed a reader that took nothing", seconds=self.limits.write_seconds)
            return False
        return keep

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: not ready, pause, no new connections, grace, cancel."""
        self._leave_if_loading()
        if self.lifecycle.draining.is_set():
            return
        self.lifecycle.draining.set()
        self._later(self.limits.drain_pause, partial(super().handle_exit, sig, frame))
        self._later(self.limits.drain_pause + self.limits.grace, self._stop_calls)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT and SIGQUIT: the same without waiting."""
        self._leave_if_loading()
        self.lifecycle.draining.set()
        threading.Thread(target=self._stop_calls).start()
        super().handle_exit(sig, frame)

    def _leave_if_loading(self) -> None:
        """While the app is being made (a model is loaded or downloaded) there is nothing to wait for."""
        if not self.booted:
            sys.exit(0)

    def _stop_calls(self) -> None:
        self.lifecycle.in_flight.stop_all("the server is shutting down")

    def _later(self, seconds: float, action: Any) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
