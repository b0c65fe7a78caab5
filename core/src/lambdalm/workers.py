"""Several worker processes that serve the same ports, and the parent that starts them and starts them anew.

Theory of operation. A Python process keeps one core busy. With `workers` above 1 the command becomes a parent: it holds
the ports (see `ports`), runs its own command once for each worker, with a private environment variable that tells the
child which it is, and serves nothing itself. Nothing forks: gRPC does not survive that. The workers bind the ports with
SO_REUSEPORT, so that the kernel gives each connection to one of them.

SIGTERM and SIGINT are passed on as SIGTERM. A worker that ends by itself is started anew, after a pause that grows when
it did not live long; when one keeps dying young, all are stopped. A worker's standard input is a pipe from its parent,
and nothing is ever written to it: its end means that the parent is gone, and the worker stops, too, even after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from grpc_proxy import ports
from lambdalm import logs
from lambdalm.errors import Code, LlmError
from lambdalm.listen import Listen

_WORKER = "LAMBDALM_GRPC_WORKER"
_YOUNG_SECONDS = 10.0  # with its start in it, which takes one or two
_MOST_YOUNG_DEATHS = 5
_PAUSE = 0.1
_STDIN = 0

_log = logs.get(__name__)


def run(
    count: int, listens: Sequence[Listen], serve: Callable[[int], None], ended: Callable[[int], None] = lambda pid: None
) -> None:
    """Call `serve` in this process when it is the only one or a worker, else run `count` workers until they end.

    `serve` gets the worker's number, from 0; with a count above 1 it must bind all of `listens` with SO_REUSEPORT.
    `ended` is told, in the parent, the process id of each worker that has ended.
    Raises OSError where a port cannot be had, and LlmError when the workers keep dying or do not stop as they should.
    """
    number = os.environ.get(_WORKER)
    if number is not None:
        _stop_with_parent()
        serve(int(number))
    elif count == 1:
        serve(0)
    else:
        with contextlib.ExitStack() as held:
            for listen in listens:
                for sock in ports.hold(listen):
                    held.enter_context(sock)
            asyncio.run(_Workers(ended).run(count))


def _stop_with_parent() -> None:
    def wait() -> None:
        os.read(_STDIN, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


class Deaths:
    """Decides what to do when a worker has ended by itself."""

    def __init__(self) -> None:
        self._young = 0

    def pause(self, lived: float) -> float | None:
        """Seconds until it is started anew after it has lived for so many; None: it makes no sense any more."""
        self._young = self._young + 1 if lived < _YOUNG_SECONDS else 0
        return None if self._young >= _MOST_YOUNG_DEATHS else _PAUSE * (2**self._young - 1)


class _Workers:
    """The children, in the parent."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._stopping = asyncio.Event()
        self._running: set[asyncio.subprocess.Process] = set()
        self._why: str | None = None

    async def run(self, count: int) -> None:
        """Returns when a signal has stopped them all; raises LlmError when something else has, or one failed to."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        _log.info("starting workers", workers=count)
        await asyncio.gather(*(self._keep(number) for number in range(count)))
        if self._why is not None:
            raise LlmError(Code.INTERNAL, self._why)

    async def _keep(self, number: int) -> None:
        """Run this worker over and over."""
        deaths = Deaths()
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await self._run_once(number)
            if self._stopping.is_set():
                self._check_stopped(number, status)
                return
            pause = deaths.pause(time.monotonic() - began)
            if pause is None:
                self._give_up(f"worker {number} keeps ending as soon as it is started: its log says why")
                return
            _log.warning("a worker has ended: it is started anew", worker=number, status=status, pause_seconds=pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _run_once(self, number: int) -> int:
        """The status with which it has ended."""
        child = await asyncio.create_subprocess_exec(
            *_own_command(), env={**os.environ, _WORKER: str(number)}, stdin=asyncio.subprocess.PIPE
        )
        self._running.add(child)
        if self._stopping.is_set():  # while it was being made
            child.terminate()
        try:
            return await child.wait()
        finally:
            self._running.discard(child)
            self._ended(child.pid)

    def _stop(self) -> None:
        self._stopping.set()
        for child in self._running:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                child.terminate()

    def _give_up(self, why: str) -> None:
        self._why = self._why or why
        self._stop()

    def _check_stopped(self, number: int, status: int) -> None:
        """One that had not come far enough to handle SIGTERM is ended by it."""
        if status not in (0, -signal.SIGTERM):
            self._why = self._why or f"worker {number} did not stop as it should: its status is {status}"


def _own_command() -> list[str]:
    """This program as it was called."""
    return [sys.executable, *sys.orig_argv[1:]]
