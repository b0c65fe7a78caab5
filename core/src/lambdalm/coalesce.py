"""When to join deltas, so that many streams do not cost a hop more than it has.

What a frame costs a hop hardly depends on how much is in it. So when more deltas come each second than the budget of
frames allows, every stream pauses after each frame, and what has come meanwhile goes out as one frame: together the
streams then send about `frames_per_second`. While the hop keeps up, each delta is passed on at once.

Pure decision: it has no clock of its own and does not wait itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

LONGEST_PAUSE = 0.21
"""Seconds. A reader would see more as stutter; beyond it, more streams mean more frames again."""

_WINDOW = 1.0  # seconds over which the rate of deltas is measured; a burst of streams in step is not more than that


class Coalescer:
    """One per process, for any number of threads; `frames_per_second` is the budget of all streams together."""

    def __init__(self, frames_per_second: float) -> None:
        self._budget = frames_per_second
        self._lock = threading.Lock()  # nobody waits for it who has a frame to send: see _measure
        self._active = 0
        self._window_start = 0.0
        self._counted = 0
        self._joining = False

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Around each stream that asks for pauses."""
        with self._lock:
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1

    def pause(self, deltas: int, now: float) -> float:
        """Seconds that a stream waits after a frame made of `deltas` deltas; `now` in seconds."""
        if now - self._window_start >= _WINDOW:
            self._measure(now)
        self._counted += deltas  # threads may lose a count to each other; a rate does not need them all
        return min(self._active / self._budget, LONGEST_PAUSE) if self._joining else 0.0

    def _measure(self, now: float) -> None:
        """End the window, unless another thread is just doing so: a thousand threads must not queue here."""
        if not self._lock.acquire(blocking=False):
            return
        elapsed = now - self._window_start
        if elapsed >= _WINDOW:
            rate = self._counted / elapsed
            self._window_start = now
            self._counted = 0
            # Deltas that were joined before they came look like fewer; so it takes half the budget to stop.
            self._joining = rate > (self._budget / 2 if self._joining else self._budget)
        self._lock.release()
