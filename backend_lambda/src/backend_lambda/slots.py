"""The engine's slots: at most `count` generations at a time, and a bounded line of requests that wait, first come first
served.

A waiting request is a future on the loop, without a thread. It leaves the line when its task is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from lambdalm.call import Call
from lambdalm.errors import Code, LlmError

_COME_BACK = 1.0  # seconds


class Slot:
    """A slot that is held. `engine`, where it is set, is done when the engine works for it no more."""

    def __init__(self) -> None:
        self.engine: asyncio.Future[None] | None = None


class Slots:
    """`count` slots and a line of at most `queue` waiting requests; for one loop."""

    def __init__(self, count: int, queue: int) -> None:
        self._free = count
        self._count = count
        self._queue = queue
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def held(self) -> int:
        """Slots taken now."""
        return self._count - self._free

    @property
    def waiting(self) -> int:
        """Requests in line now."""
        return len(self._line)

    @contextlib.asynccontextmanager
    async def take(self, call: Call) -> AsyncIterator[Slot]:
        """Hold a slot while inside, and until its engine is done.

        Raises `LlmError(RESOURCE_EXHAUSTED)` when the line is full, and what has stopped the call before.
        """
        call.clock.queue_starts()
        call.check()
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait_in_line()
        call.clock.slot_taken()
        slot = Slot()
        try:
            yield slot
        finally:
            call.clock.engine_done()
            if slot.engine is None or slot.engine.done():
                self._give_back()
            else:
                slot.engine.add_done_callback(lambda _: self._give_back())

    async def _wait_in_line(self) -> None:
        if len(self._line) >= self._queue:
            raise LlmError(
                Code.RESOURCE_EXHAUSTED,
                f"{self._queue} requests wait for one of {self._count} slots, which is the limit: come back later",
                retry_after=_COME_BACK,
            )
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._line:
                self._line.remove(turn)
            elif not turn.cancelled():
                self._give_back()  # its turn had just come
            raise

    def _give_back(self) -> None:
        """Hand the slot to the first in line that has not left."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
