"""Serving an app: uvicorn on one uvloop, with our connections, our drain and our watch over the loop.

Stopping has three steps: not ready (`Lifecycle.draining`) while the listener is still open; after the pause no new
connections, and idle ones are closed; after the grace period the calls still in flight are cancelled and bodies under
way refused, so that each request gets a truthful end. SIGINT does the same without waiting. What then cannot be closed,
because one of its threads cannot be woken, does not hold the process: it ends with status 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager
from email.utils import formatdate
from functools import partial
from typing import Any

import uvicorn
import uvloop

from lambdalm import logs, ports, prometheus
from lambdalm.descriptors import raise_limit
from lambdalm.http.admission import Lifecycle, shutting_down
from lambdalm.http.app import HttpHop
from lambdalm.http.connection import Connection, Shared
from lambdalm.http.hosts import allow_list
from lambdalm.http.limits import Limits
from lambdalm.listen import Listen
from lambdalm.runtime import settle
from lambdalm.workers import Worker
from lambdalm.workers import run as run_workers

_BACKLOG = 2048
_ACCEPTED_AT_ONCE = 200  # connections in a turn of the loop
_SEND_BUFFER = 128 * 1024  # bytes that the kernel holds for a reader; Linux doubles it
_SPARE_DESCRIPTORS = 128  # for files, the store, the next hop
# Between measurements of the loop's lag. To wake an idle process costs more than a frame, so a quiet one measures less.
_TICK_SECONDS = 0.05
_IDLE_TICK_SECONDS = 0.25
_FEW_CONNECTIONS = 8
_LAST_WORDS_SECONDS = 2.0  # for the ends of cancelled calls to be written
_CLOSING_SECONDS = 10.0  # for the hop to close what it has opened: a health check takes 3 s, a last line of a log 5 s

OpenHop = Callable[[Lifecycle], AbstractAsyncContextManager[HttpHop]]
"""Makes the hop's app on the loop, and closes what it has opened."""

_log = logs.get(__name__)


def serve(open_hop: OpenHop, listen: Listen, limits: Limits, workers: int = 1) -> None:
    """Serve until SIGTERM or Ctrl-C, with several `workers` in processes of their own that share the port.

    Raises OSError when the address cannot be had, LlmError when workers keep dying, and what opening the hop raises.
    """

    def work(worker: Worker) -> None:
        descriptors = raise_limit()
        most = min(limits.max_connections, max(1, descriptors - _SPARE_DESCRIPTORS))
        with contextlib.closing(_bound(listen, workers > 1)) as sock:
            if workers == 1:
                _start_listening(sock)
            uvloop.run(_serve(open_hop, sock, listen, limits, most, worker))

    with prometheus.shared(workers) as ended:
        run_workers(workers, [listen], work, ended)


def _bound(listen: Listen, shared: bool) -> socket.socket:
    """The server's socket, which does not listen yet; several processes may have a `shared` port."""
    sock = socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listen.host, listen.port))
    except OSError as error:
        sock.close()
        raise ports.refused(listen, error) from None
    # The connections inherit these. A reader that takes nothing is noticed before megabytes are written for it.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    # A client whose machine has vanished is noticed within 15 s.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def _start_listening(sock: socket.socket) -> None:
    """Take connections from now on.

    The only process of a server does so at once, so that clients wait while it loads. One of several does when it has
    loaded: the kernel spreads connections over those that listen, and the others can answer at once.
    """
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.listen(_BACKLOG)
        host, port = sock.getsockname()[:2]
        _log.info("listening", address=f"{host}:{port}")


async def _serve(
    open_hop: OpenHop, sock: socket.socket, listen: Listen, limits: Limits, most: int, worker: Worker
) -> None:
    stop = _Stop()
    lifecycle = Lifecycle(limits, worker.number)
    opening = asyncio.ensure_future(_opened(open_hop, lifecycle))
    await asyncio.wait({opening, asyncio.ensure_future(stop.asked.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():  # stopped while a model is being loaded or downloaded: there is nothing to wait for
        opening.cancel()
        await _closed(opening)
        raise SystemExit(0)
    stack, hop = opening.result()
    try:
        shared = Shared(hop, allow_list(listen.host, limits.allowed_hosts), most)
        worker.beat()
        _start_listening(sock)
        await _Server(hop, shared, stop).serve(sockets=[sock])
    finally:
        closing = asyncio.ensure_future(stack.aclose())
        await _closed(closing)
        closing.result()


async def _opened(open_hop: OpenHop, lifecycle: Lifecycle) -> tuple[contextlib.AsyncExitStack, HttpHop]:
    async with contextlib.AsyncExitStack() as stack:
        hop = await stack.enter_async_context(open_hop(lifecycle))
        return stack.pop_all(), hop


async def _closed(closing: asyncio.Future[Any]) -> None:
    """Wait until the hop has closed what it had opened; end the process where that takes too long."""
    await asyncio.wait({closing}, timeout=_CLOSING_SECONDS)
    if not closing.done():
        _log.error("close_timed_out", seconds=_CLOSING_SECONDS, why="a thread of this process cannot be woken")
        os._exit(1)


class _Stop:
    """SIGTERM and SIGINT. `asked` is set by the first signal, `hurry` by SIGINT."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.asked.set)
        loop.add_signal_handler(signal.SIGINT, self._at_once)

    def _at_once(self) -> None:
        self.asked.set()
        self.hurry.set()

    async def pause(self, seconds: float) -> None:
        """Sleep, unless there is a hurry."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.hurry.wait(), seconds)


class _Server(uvicorn.Server):
    """uvicorn's server, stopped by `stop` instead of by signals, with which uvicorn would end the process."""

    def __init__(self, hop: HttpHop, shared: Shared, stop: _Stop) -> None:
        super().__init__(
            uvicorn.Config(
                hop,
                http=partial(Connection, shared),  # type: ignore[arg-type]  # called as a class is
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
            )
        )
        self._shared = shared
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._sweep_at = 0.0
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # what it does is in our own lines

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to `stop`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; from then on `_accept` helps."""
        assert sockets is not None
        await super().startup(sockets)
        self._listener = sockets[0].dup()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        """Accept what libuv leaves waiting: it takes one connection in a turn, and a busy loop has few turns."""
        with contextlib.suppress(OSError):
            for _ in range(_ACCEPTED_AT_ONCE):
                accepted, _ = self._listener.accept()
                task = self._loop.create_task(self._connect(accepted))
                self.server_state.tasks.add(task)
                task.add_done_callback(self.server_state.tasks.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        def connection() -> Connection:
            return Connection(self._shared, self.config, self.server_state, self.lifespan.state, self._loop)

        await self._loop.connect_accepted_socket(connection, accepted)

    def _stop_accepting(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for server in self.servers:
            server.close()

    async def main_loop(self) -> None:
        """Until it is asked to stop, and has drained."""
        settle()
        self._tick(self._loop.time())
        try:
            await self._stop.asked.wait()
            await self._drain()
        finally:
            self._next_tick.cancel()

    def _tick(self, due: float) -> None:
        """Measure the loop's lag, end what clients are late with, set the Date header."""
        now = self._loop.time()
        self._shared.metrics.lagged(now - due, now)
        few = len(self.server_state.connections) < _FEW_CONNECTIONS
        due = now + (_IDLE_TICK_SECONDS if few else _TICK_SECONDS)
        self._next_tick = self._loop.call_at(due, self._tick, due)
        if now >= self._sweep_at:
            self._sweep_at = now + _IDLE_TICK_SECONDS
            self.server_state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        for connection in list(self.server_state.connections):
            connection.overdue(now)  # type: ignore[union-attr]
        self._shared.metrics.now(len(self.server_state.connections), len(self._shared.lifecycle.in_flight))

    async def _drain(self) -> None:
        limits, lifecycle = self._shared.limits, self._shared.lifecycle
        lifecycle.draining.set()
        _log.info("stopping", drain_pause=limits.drain_pause, grace=limits.grace)
        await self._stop.pause(limits.drain_pause)
        self._stop_accepting()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._all_closed(limits.grace, self._stop.hurry)
        lifecycle.in_flight.stop_all()
        for connection in list(self.server_state.connections):
            connection.refuse_body(shutting_down())  # type: ignore[union-attr]
        await self._all_closed(_LAST_WORDS_SECONDS)

    async def _all_closed(self, seconds: float, or_else: asyncio.Event | None = None) -> None:
        """Wait until no connection is left, or for the other event, but not longer than this."""
        if not self.server_state.connections:
            return
        events = [self._shared.no_connections, *([or_else] if or_else is not None else [])]
        waits = {asyncio.ensure_future(event.wait()) for event in events}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """All is drained: cut what readers that take nothing have left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.sleep(0)
