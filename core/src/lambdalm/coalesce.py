"""When frames of streamed text leave a hop: at once while few streams run, else on ticks that all streams share.

What a frame costs a hop hardly depends on how much is in it, and frames that leave together cost a third of frames
that leave alone. So from a handful of active streams on, a frame is held back until the next tick of the process
(20 ms), and what comes meanwhile is joined to it. What comes just after a tick leaves at once: hops of one machine have
the same ticks, so that frames which left one hop together leave the next one together, without another wait.

When more deltas come each second than the budget of frames allows, a stream skips ticks: it sends every active/budget
seconds, so that all streams together send about `frames_per_second`.

Pure decision, for one event loop: it has no clock of its own and does not wait itself.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

LONGEST_PAUSE = 0.21
"""Seconds. A reader would see more as stutter; beyond it, more streams mean more frames again."""

_FEW = 8  # streams whose frames leave at once: measured, a tick saves nothing for 5, 11 % for 10, 22 % for 20
_JUST_AFTER = 0.2  # of a tick
_WINDOW = 1.0  # seconds over which the rate of deltas is measured; a burst of streams in step is not more than that


class Coalescer:
    """One per process; `frames_per_second` is the budget of all streams together, `tick` in seconds."""

    def __init__(self, frames_per_second: float, tick: float = 0.02) -> None:
        self._budget = frames_per_second
        self._tick = tick
        self._active = 0
        self._window_start = 0.0
        self._counted = 0
        self._over_budget = False

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Around each stream that sends frames."""
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    def delay(self, deltas: int, now: float) -> float:
        """Seconds to hold back a frame made of `deltas` deltas; `now` is a monotonic clock, the same for all streams.

        0 while only a handful of streams is active, and just after a tick. Else the frame leaves on a tick: the next
        one, or, over the budget, the first after the stream's share of time, at most `LONGEST_PAUSE` from now.
        """
        self._count(deltas, now)
        if self._over_budget:
            return self._until_tick(now, min(self._active / self._budget, LONGEST_PAUSE))
        if self._active <= _FEW or now / self._tick % 1 < _JUST_AFTER:
            return 0.0
        return self._until_tick(now, 0.0)

    def _until_tick(self, now: float, pause: float) -> float:
        """Seconds to the first tick after a pause, which is cut where that tick would be too late."""
        tick = math.floor((now + pause) / self._tick) + 1
        delay = max(0.0, tick * self._tick - now)
        return delay if delay <= LONGEST_PAUSE else delay - self._tick

    def _count(self, deltas: int, now: float) -> None:
        elapsed = now - self._window_start
        if elapsed >= _WINDOW:
            rate = self._counted / elapsed
            self._window_start = now
            self._counted = 0
            # Deltas that were joined before they came look like fewer; so it takes half the budget to stop.
            self._over_budget = rate > (self._budget / 2 if self._over_budget else self._budget)
        self._counted += deltas
