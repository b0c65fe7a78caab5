"""Admission: how many calls an HTTP hop works on, and how all of them are stopped. For one event loop."""

from __future__ import annotations

import threading

from lambdalm.call import Call
from lambdalm.errors import Code, FullError, LlmError
from lambdalm.http.limits import Limits

_COME_BACK = 1.0  # seconds


class InFlight:
    """At most `limit` calls at a time. After `stop_all` no call is admitted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: set[Call] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._calls)

    def refusal(self) -> LlmError | None:
        """The error for a call that would be one too many, or comes after `stop_all`; None while there is room."""
        if self._stopped:
            return LlmError(Code.UNAVAILABLE, "the server is shutting down", retry_after=_COME_BACK)
        if len(self._calls) < self._limit:
            return None
        why = f"{self._limit} requests are in flight, which is the limit: come back later"
        return FullError(why, _COME_BACK)

    def enter(self, call: Call) -> None:
        """Count `call` until `leave`; raises what `refusal` gives."""
        if (refusal := self.refusal()) is not None:
            raise refusal
        self._calls.add(call)

    def leave(self, call: Call) -> None:
        self._calls.discard(call)

    def stop_all(self, reason: str) -> None:
        """Cancel every call with UNAVAILABLE and admit no more."""
        self._stopped = True
        for call in list(self._calls):
            call.cancel(reason, Code.UNAVAILABLE)


class Lifecycle:
    """One server's state: `draining` is set once it has begun to stop; `in_flight` has its calls.

    `worker` is its number among the worker processes that share the port, from 0.
    """

    def __init__(self, limits: Limits, worker: int = 0) -> None:
        self.worker = worker
        self.draining = threading.Event()
        self.in_flight = InFlight(limits.max_in_flight)
