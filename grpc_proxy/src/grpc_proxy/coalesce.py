"""When to join deltas: pure decision, no I/O and no clock of its own.

A delta is passed on at once while the system keeps up. When more deltas come each second than the budget of frames
allows, every stream pauses after each frame for `active streams / budget` seconds, and what has come meanwhile goes out
as one frame: together the streams then send about `budget` frames a second, however many deltas there are.
"""

from __future__ import annotations

_WINDOW = 0.25  # seconds over which the rate of deltas is measured


class Coalescer:
    """One per process; `frames_per_second` is the budget."""

    def __init__(self, frames_per_second: float) -> None:
        self._budget = frames_per_second
        self._active = 0
        self._window_start = 0.0
        self._counted = 0
        self._rate = 0.0

    def stream_starts(self) -> None:
        self._active += 1

    def stream_ends(self) -> None:
        self._active -= 1

    def pause(self, deltas: int, now: float) -> float:
        """Seconds that a stream waits after a frame made of `deltas` deltas; `now` in seconds."""
        self._count(deltas, now)
        return self._active / self._budget if self._rate > self._budget else 0.0

    def _count(self, deltas: int, now: float) -> None:
        elapsed = now - self._window_start
        if elapsed >= _WINDOW:
            self._rate = self._counted / elapsed
            self._window_start = now
            self._counted = 0
        self._counted += deltas
