"""Providers' generators in threads, their events on the loop.

Theory of operation. A provider blocks, so its generator runs in a thread of a pool. The thread puts events into a
hand-over; for the first of them it wakes the loop, once, and the loop takes all that have come by then as one batch. A
thread whose reader is far behind waits, so that a slow reader slows the engine down, which then joins what it says.

When the reader leaves, the engine's call is stopped, which wakes the provider, and the reader waits a moment for the
generator to be closed in its thread. Not longer: a thread that cannot be woken (it looks a name up, say) must not keep
a client from its error. The slot is held until the engine has stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor

from backend_lambda.slots import Slot
from lambdalm.call import Call
from lambdalm.errors import LlmError
from lambdalm.events import StreamEvent, join

_READ_AHEAD = 64  # events that an engine may be ahead of its reader
_PATIENCE_SECONDS = 0.05  # for an engine to stop, before its reader goes on without it

Open = Callable[[Call], Generator[StreamEvent, None, None]]


class EngineThreads:
    """At most `count` generations at a time, each in a thread."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="engine")

    async def batches(self, stream: Open, call: Call, slot: Slot) -> AsyncGenerator[list[StreamEvent], None]:
        """The events of `stream`, which runs in a thread, as they come; raises what it raises.

        It gets a call of its own, which is stopped with `call` and when the reader leaves. Until it has stopped, it is
        the engine of `slot`.
        """
        own = _own_call(call)
        handover = _Handover(asyncio.get_running_loop())
        slot.engine = handover.stopped
        with call.on_cancel(functools.partial(_stop_like, call, own)):
            self._pool.submit(handover.run, stream, own)
            try:
                while batch := await handover.take():
                    yield batch
            finally:
                await handover.leave(own)

    def close(self) -> None:
        """Returns when no generation runs any more."""
        self._pool.shutdown()


def _own_call(call: Call) -> Call:
    own = Call(call.id, call.budget, call.clock)
    own.deadline = call.deadline
    own.span = call.span
    return own


def _stop_like(call: Call, own: Call) -> None:
    try:
        call.check()
    except LlmError as why:
        own.cancel(why.message, why.code)


class _Handover:
    """Between one engine's thread (`run`) and the loop (`take`, `leave`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stopped: asyncio.Future[None] = loop.create_future()
        """Done when the generator has been closed."""
        self._loop = loop
        self._news = asyncio.Event()
        self._changed = threading.Condition(threading.Lock())  # guards what follows
        self._events: list[StreamEvent] = []
        self._loop_knows = False  # that there are events
        self._reader_left = False
        self._ended = False
        self._failure: BaseException | None = None

    def run(self, stream: Open, call: Call) -> None:
        """Play the generator to its end, or until its reader leaves."""
        failure: BaseException | None = None
        try:
            with contextlib.closing(stream(call)) as events:
                for event in events:
                    if not self._put(event):
                        break
        except BaseException as error:  # noqa: BLE001  # it is raised again on the loop
            failure = error
        with self._changed:
            self._ended, self._failure = True, failure
        self._loop.call_soon_threadsafe(self._end)

    def _put(self, event: StreamEvent) -> bool:
        """Returns, when the reader is not too far behind, whether there still is one."""
        with self._changed:
            self._events.append(event)
            first, self._loop_knows = not self._loop_knows, True
        if first:
            self._loop.call_soon_threadsafe(self._news.set)
        with self._changed:
            while len(self._events) >= _READ_AHEAD and not self._reader_left:
                self._changed.wait()
            return not self._reader_left

    async def take(self) -> list[StreamEvent]:
        """All that has come, neighbouring deltas joined; nothing at the end. Raises what the generator raised.

        An engine that is faster than its reader leaves the loop to others: its news comes in the loop's next turn.
        """
        while True:
            if not self._ended:
                await self._news.wait()
            self._news.clear()
            with self._changed:
                ended = self._ended
                events, self._events = self._events, []
                self._loop_knows = False
                self._changed.notify()
            if events:
                return list(join(events))
            if ended:
                if self._failure is not None:
                    raise self._failure
                return []

    async def leave(self, call: Call) -> None:
        """Stop the engine, if it still runs, and give it a moment to do so."""
        with self._changed:
            self._reader_left = True
            self._changed.notify()
        if self._ended:
            self._end()
        else:
            call.cancel("the reader of the answer has left")
            await asyncio.wait([self.stopped], timeout=_PATIENCE_SECONDS)

    def _end(self) -> None:
        self._news.set()
        if not self.stopped.done():
            self.stopped.set_result(None)
