"""The calls that an HTTP hop is working on: how many it takes, and how all of them are stopped."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from lambdalm.call import Call
from lambdalm.errors import Code, FullError, LlmError

_COME_BACK = 1.0  # seconds


class InFlight:
    """At most `limit` calls at a time; one more is refused at once. `drain` refuses all that come from then on."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        self._shut = False

    def __len__(self) -> int:
        return len(self._calls)

    @contextlib.contextmanager
    def admit(self, call: Call) -> Iterator[None]:
        """Count `call` while inside; raises FullError where there are too many, `LlmError(UNAVAILABLE)` when shut."""
        with self._lock:
            if self._shut:
                raise LlmError(Code.UNAVAILABLE, "the server is shutting down", retry_after=_COME_BACK)
            if len(self._calls) >= self._limit:
                why = f"{self._limit} requests are in flight, which is the limit: come back later"
                raise FullError(why, _COME_BACK)
            self._calls.add(call)
        try:
            yield
        finally:
            with self._lock:
                self._calls.discard(call)

    def stop_all(self, reason: str) -> None:
        """Cancel every call with UNAVAILABLE and take no more."""
        with self._lock:
            self._shut = True
            calls = list(self._calls)
        for call in calls:
            call.cancel(reason, Code.UNAVAILABLE)
