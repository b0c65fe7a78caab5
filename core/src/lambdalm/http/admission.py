"""Admission: how many calls an HTTP hop works on, how each of them ends, and how all of them are stopped.

For one event loop.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import cast

from lambdalm.call import Call
from lambdalm.errors import Code, FullError, LlmError
from lambdalm.http.cycle import Cycle
from lambdalm.http.limits import Limits
from lambdalm.tracing import Span

_COME_BACK = 1.0  # seconds


def shutting_down() -> LlmError:
    """The error for what a server that stops does not do any more."""
    return LlmError(Code.UNAVAILABLE, "the server is shutting down", retry_after=_COME_BACK)


class InFlight:
    """At most `limit` calls at a time. After `stop_all` no call is admitted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: set[Call] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._calls)

    def refusal(self, ahead: int = 0) -> LlmError | None:
        """The error for a call that would be one too many after `ahead` others, or comes after `stop_all`; or None."""
        if self._stopped:
            return shutting_down()
        if len(self._calls) + ahead < self._limit:
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

    def stop_all(self) -> None:
        """Cancel every call with UNAVAILABLE and admit no more."""
        self._stopped = True
        why = shutting_down()
        for call in list(self._calls):
            call.cancel(why.message, why.code)


class Lifecycle:
    """One server's state: `draining` is set once it has begun to stop; `in_flight` has its calls.

    `worker` is its number among the worker processes that share the port, from 0.
    """

    def __init__(self, limits: Limits, worker: int = 0) -> None:
        self.worker = worker
        self.draining = threading.Event()
        self.in_flight = InFlight(limits.max_in_flight)


class Admitted:
    """A call that is counted as in flight, and whose task is cancelled with it: `with hop.call() as call`.

    Raises LlmError where the call is not admitted; and in place of the task's CancelledError what stopped the call.
    """

    def __init__(self, call: Call, cycle: Cycle, in_flight: InFlight, span: Span) -> None:
        self._call = call
        self._cycle = cycle
        self._in_flight = in_flight
        self._span = span

    def __enter__(self) -> Call:
        call, cycle = self._call, self._cycle
        call.check()
        self._in_flight.enter(call)
        loop = asyncio.get_running_loop()
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        self._watch = call.on_cancel(self._task.cancel)
        self._watch.__enter__()
        self._timer = loop.call_later(call.remaining(), call.expire)
        call.span = self._span.__enter__()
        cycle.on_leave = self._left
        if cycle.disconnected:
            self._left()
        return call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        call = self._call
        self._cycle.on_leave = None
        self._timer.cancel()
        self._in_flight.leave(call)
        self._watch.__exit__(None, None, None)
        if call.cancelled:
            self._task.uncancel()
            if isinstance(error, asyncio.CancelledError):
                error = call.stopped
        self._span.__exit__(kind, error, traceback)
        if isinstance(error, LlmError) and kind is asyncio.CancelledError:
            raise error

    def _left(self) -> None:
        self._call.cancel("the client hung up")
