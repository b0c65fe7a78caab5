"""The engine's slots: so many generations at a time, and a bounded line of those that wait, first come first served.

A waiting request leaves the line when its client hangs up or its time is up.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from lambdalm.call import Call
from lambdalm.errors import Code, LlmError

_COME_BACK = 1.0  # seconds


class Slots:
    """`count` slots and a line of at most `queue` waiting requests."""

    def __init__(self, count: int, queue: int) -> None:
        self._free = count
        self._count = count
        self._queue = queue
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()

    @property
    def held(self) -> int:
        """Slots taken now."""
        return self._count - self._free

    @property
    def waiting(self) -> int:
        """Requests in line now."""
        return len(self._line)

    @contextlib.contextmanager
    def take(self, call: Call) -> Iterator[None]:
        """Hold a slot while inside.

        Raises `LlmError(RESOURCE_EXHAUSTED)` when the line is full, and what stopped the call while it waited.
        """
        call.clock.queue_starts()
        turn = self._enter_line()
        try:
            with call.on_cancel(turn.set):
                turn.wait(call.remaining())
            call.check()
        except BaseException:
            self._leave_line(turn)
            raise
        call.clock.slot_taken()
        try:
            yield
        finally:
            call.clock.engine_done()
            self._give_back()

    def _enter_line(self) -> threading.Event:
        turn = threading.Event()
        with self._lock:
            if self._free > 0 and not self._line:
                self._free -= 1
                turn.set()
            elif len(self._line) >= self._queue:
                raise LlmError(
                    Code.RESOURCE_EXHAUSTED,
                    f"{self._queue} requests wait for one of {self._count} slots, which is the limit: come back later",
                    retry_after=_COME_BACK,
                )
            else:
                self._line.append(turn)
        return turn

    def _leave_line(self, turn: threading.Event) -> None:
        """Give up waiting; if the slot has been handed over in the meantime, pass it on."""
        with self._lock:
            if turn in self._line:
                self._line.remove(turn)
                return
        self._give_back()

    def _give_back(self) -> None:
        with self._lock:
            if self._line:
                self._line.popleft().set()
            else:
                self._free += 1
