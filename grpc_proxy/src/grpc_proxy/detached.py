"""Detached runs: answers that are finished though their caller has left, which is the disconnect policy `drain`.

What makes such an answer runs in a task of its own and relays its batches to the caller's task. When that one is gone,
the run is detached: its batches are dropped, and the answer comes to its end all the same, in its session, where the
caller finds it on return.

A detached run counts as a call in progress, and present callers come first. Each owner has a maximum of them
(`limits.max_detached_per_owner`); one more is stopped when its caller leaves. When the server or an upstream is full
and a caller comes, the oldest is stopped. Either way the text so far is kept in its turn, as cancelled or failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection
from typing import NamedTuple

from grpc_proxy.background import Background
from grpc_proxy.exchange import Exchange
from lambdalm import logs
from lambdalm.call import Call
from lambdalm.errors import Code, LlmError
from lambdalm.events import StreamEvent

_AHEAD = 16  # batches

_log = logs.get(__name__)

Batches = AsyncGenerator[list[StreamEvent], None]


class _End(NamedTuple):
    error: Exception | None


class _Pipe:
    """From the task that makes the batches to the one that sends them, while there is one."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[list[StreamEvent] | _End] = asyncio.Queue(_AHEAD)
        self.read = True

    async def put(self, item: list[StreamEvent] | _End) -> None:
        if self.read:
            await self._queue.put(item)

    async def get(self) -> list[StreamEvent] | _End:
        return await self._queue.get()

    def break_off(self, error: LlmError) -> None:
        """Nothing more comes but this."""
        self._clear()
        self._queue.put_nowait(_End(error))

    def shut(self) -> None:
        """The reader is gone; a writer that waits for room goes on."""
        self.read = False
        self._clear()

    def _clear(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()


class DetachedRuns:
    """All answers that are made in this way; its length is how many of them are detached. For one event loop."""

    def __init__(self, most_per_owner: int) -> None:
        self._most_per_owner = most_per_owner
        self._running = Background()
        self._detached: dict[asyncio.Task[None], Exchange] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._detached)

    async def relay(self, batches: Batches, exchange: Exchange) -> Batches:
        """The same batches; when this generator is closed or cancelled, they are made to their end nevertheless."""
        pipe, end = _Pipe(), None
        run = self._running.start(self._make(batches, exchange.call, pipe))
        try:
            while not isinstance(item := await pipe.get(), _End):
                yield item
            end = item
        finally:
            pipe.shut()
            if end is None and not run.done():
                self._detach(run, exchange)
        if end.error is not None:
            raise end.error

    def make_room(self, upstreams: Collection[str] | None = None) -> bool:
        """Stop the oldest run, of those that hold up one of these upstreams if any are named; whether there was one."""
        for run, exchange in self._detached.items():
            if upstreams is None or exchange.upstream is None or exchange.upstream in upstreams:
                exchange.call.cancel("it made room for callers who are there", Code.RESOURCE_EXHAUSTED)
                self._stop(run, exchange, "callers who are there need its place")
                return True
        return False

    def is_detached(self, call: Call) -> bool:
        """Whether this call's caller has left it to run on."""
        return any(exchange.call is call for exchange in self._detached.values())

    async def finish(self, seconds: float) -> None:
        """Wait for running ones for at most `seconds`, then stop them."""
        await self._running.stop(seconds)

    def _detach(self, run: asyncio.Task[None], exchange: Exchange) -> None:
        owner = _owner(exchange)
        if sum(_owner(other) == owner for other in self._detached.values()) >= self._most_per_owner:
            self._stop(run, exchange, f"its owner has {self._most_per_owner} of them, which is the limit")
            return
        self._detached[run] = exchange
        run.add_done_callback(lambda _: self._detached.pop(run, None))

    def _stop(self, run: asyncio.Task[None], exchange: Exchange, why: str) -> None:
        """Its place is free at once: it ends in a moment, and does nothing until then but to keep its turn."""
        self._detached.pop(run, None)
        run.cancel()
        _log.info("detached_run_stopped", request_id=exchange.call.id, why=why)

    async def _make(self, batches: Batches, call: Call, pipe: _Pipe) -> None:
        end = _End(None)
        try:
            async with asyncio.timeout(call.remaining()), contextlib.aclosing(batches):
                async for batch in batches:
                    await pipe.put(batch)
        except asyncio.CancelledError:
            pipe.break_off(cut_off())
            raise
        except TimeoutError:
            end = _End(call.out_of_time())
        except Exception as error:  # noqa: BLE001  # a task's edge: the reader raises it
            end = _End(error)
        if not pipe.read:
            said = end.error.for_log() if isinstance(end.error, LlmError) else {}
            _log.info("drained", request_id=call.id, **said, exc_info=None if said else end.error)
        await pipe.put(end)


def cut_off() -> LlmError:
    """The error of a call that the server could not wait for any longer when it had to stop."""
    why = "the server is shutting down, and this call took longer than it could wait"
    return LlmError(Code.UNAVAILABLE, why, retry_after=1)


def _owner(exchange: Exchange) -> str:
    """Callers who bring neither key nor cookie are one owner: each would have a name of its own."""
    return "" if exchange.caller.is_new else exchange.caller.owner
