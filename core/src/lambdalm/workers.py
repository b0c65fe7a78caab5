"""Several worker processes that serve the same ports, and the parent that starts and replaces them.

Theory of operation. A Python process keeps one core busy. With `workers` above 1 the command becomes a parent: it holds
the ports (see `ports`), runs its own command once for each worker, with a private environment variable that tells the
child which it is, and serves nothing itself. Nothing forks: gRPC does not survive that. The workers bind the ports with
SO_REUSEPORT, so that the kernel gives each connection to one of them.

SIGTERM and SIGINT are passed on. A worker that ends by itself is replaced, after a pause that grows when it did not
live long; when one keeps dying young, all are stopped. Where the system cannot start one now, it is tried again.

A worker's standard input is a socket from its parent. Its end means that the parent is gone, and the worker ends, too
(see `parent`). Over the same socket the worker's event loop sends a byte each second. One that has sent some and then
none for 5 s hangs: it is killed and replaced. Silence is counted in ticks of the parent, so that time in which the
parent itself was stopped or starved is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence

from lambdalm import logs, parent, ports
from lambdalm.errors import Code, LlmError
from lambdalm.listen import Listen

_WORKER = "LAMBDALM_WORKER"
_YOUNG_SECONDS = 10.0  # with its start in it, which takes one or two
_MOST_YOUNG_DEATHS = 5
_PAUSE = 0.1
_RETRY_SECONDS = 1.0
_BEAT_SECONDS = 1.0
_TICK_SECONDS = 0.5
_HUNG_TICKS = 10
_STDIN = 0

_log = logs.get(__name__)


class Worker:
    """This process: one of several workers, or the only one, which has number 0 and no parent to speak to."""

    def __init__(self, number: int = 0, line: socket.socket | None = None) -> None:
        self.number = number
        self._line = line

    def beat(self) -> None:
        """Tell the parent, from now on each second, that the running event loop runs.

        Call it once, in that loop, when all is loaded: before its first beat a worker is never taken for hung.
        """
        if self._line is None:
            return
        with contextlib.suppress(OSError):  # the parent is stopped and reads nothing, or it is gone
            self._line.send(b".", socket.MSG_DONTWAIT)
        asyncio.get_running_loop().call_later(_BEAT_SECONDS, self.beat)


def run(
    count: int,
    listens: Sequence[Listen],
    serve: Callable[[Worker], None],
    ended: Callable[[int], None] = lambda pid: None,
) -> None:
    """Call `serve` in this process when it is the only one or a worker, else run `count` workers until they end.

    With a count above 1 `serve` must bind all of `listens` with SO_REUSEPORT, and call its worker's `beat` when it has
    loaded. `ended` gets, in the parent, the process id of each worker that has ended.
    Raises OSError where a port cannot be had, and LlmError when the workers keep dying or do not stop as they should.
    """
    number = os.environ.pop(_WORKER, None)
    if number is not None:
        parent.end_with_it()
        serve(Worker(int(number), socket.socket(fileno=os.dup(_STDIN))))
    elif count == 1:
        serve(Worker())
    else:
        with contextlib.ExitStack() as held:
            for listen in listens:
                for sock in ports.hold(listen):
                    held.enter_context(sock)
            asyncio.run(_Workers(ended).run(count))


class Deaths:
    """Decides what to do when a worker has ended by itself."""

    def __init__(self) -> None:
        self._young = 0

    def pause(self, lived: float) -> float | None:
        """Seconds to wait before a worker is replaced that has `lived` these seconds; None: give up."""
        self._young = self._young + 1 if lived < _YOUNG_SECONDS else 0
        return None if self._young >= _MOST_YOUNG_DEATHS else _PAUSE * (2**self._young - 1)


class Pulse:
    """Decides whether a worker hangs: one that has beaten and then not for `most` ticks of its parent."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._silent: int | None = None  # ticks; None while it loads

    def beat(self) -> None:
        self._silent = 0

    def hangs(self) -> bool:
        """Called at each tick."""
        if self._silent is None:
            return False
        self._silent += 1
        return self._silent > self._most


class _Child:
    """A worker's process, as its parent sees it."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, line: socket.socket) -> None:
        self.number = number
        self.process = process
        self.pulse = Pulse(_HUNG_TICKS)
        self._line = line

    def listen(self) -> None:
        """Something has come from it."""
        with contextlib.suppress(OSError):
            if self._line.recv(4096):
                self.pulse.beat()
                return
        asyncio.get_running_loop().remove_reader(self._line)  # it ends

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            self.process.send_signal(number)


class _Workers:
    """The children, in the parent."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._stopping = asyncio.Event()
        self._signal = signal.SIGTERM  # that stops them
        self._running: set[_Child] = set()
        self._why: str | None = None

    async def run(self, count: int) -> None:
        """Returns when a signal has stopped them all; raises LlmError when something else has, or one failed to."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        _log.info("starting_workers", workers=count)
        watch = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._keep(number) for number in range(count)))
        watch.cancel()
        if self._why is not None:
            raise LlmError(Code.INTERNAL, self._why)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            for child in self._running:
                if child.pulse.hangs():
                    _log.error("worker_hung", worker=child.number, pid=child.process.pid)
                    child.signal(signal.SIGKILL)

    async def _keep(self, number: int) -> None:
        """Run this worker over and over."""
        deaths = Deaths()
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                status = await self._run_once(number)
            except OSError as error:  # no memory or no descriptors: the other workers go on, and some may come free
                _log.error("worker_not_started", worker=number, why=str(error), pause_seconds=_RETRY_SECONDS)
                await self._pause(_RETRY_SECONDS)
                continue
            if self._stopping.is_set():
                self._check_stopped(number, status)
                return
            pause = deaths.pause(time.monotonic() - began)
            if pause is None:
                self._give_up(f"worker {number} keeps ending as soon as it is started: its log says why")
                return
            _log.warning("worker_ended", worker=number, status=status, pause_seconds=pause)
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless the workers are to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _run_once(self, number: int) -> int:
        """The status with which it has ended."""
        ours, its = socket.socketpair()
        with ours:
            with its:
                environ = {**os.environ, **parent.HELD, _WORKER: str(number)}
                process = await asyncio.create_subprocess_exec(*_own_command(), env=environ, stdin=its.fileno())
            child = _Child(number, process, ours)
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.add_reader(ours, child.listen)
            self._running.add(child)
            if self._stopping.is_set():  # while it was being made
                child.signal(self._signal)
            try:
                return await process.wait()
            finally:
                loop.remove_reader(ours)
                self._running.discard(child)
                self._ended(process.pid)

    def _stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._signal = number
        self._stopping.set()
        for child in self._running:
            child.signal(number)

    def _give_up(self, why: str) -> None:
        self._why = self._why or why
        self._stop()

    def _check_stopped(self, number: int, status: int) -> None:
        """One that had not come far enough to handle SIGTERM is ended by it; SIGINT leaves it no time to stop well."""
        if self._signal is not signal.SIGINT and status not in (0, -signal.SIGTERM):
            self._why = self._why or f"worker {number} did not stop as it should: its status is {status}"


def _own_command() -> list[str]:
    """This program as it was called."""
    return [sys.executable, *sys.orig_argv[1:]]
