"""One request's life at one hop: its id, its absolute deadline, its clock, and how to stop it.

Theory of operation. A thread that blocks for a request (on a queue, a socket, an engine) cannot be stopped from
outside: a running generator cannot be closed by another thread, and closing a socket does not wake its `recv`.
So code that is about to block says how it can be woken:

    with call.on_cancel(wake_me):
        block()
    call.check()          # raises the LlmError with which the call was stopped

`cancel` may come from any thread, any number of times; the first reason stays. Each callback runs once, in the
thread that cancels, or at once in the registering thread if the call was already cancelled. Callbacks must be quick
and must not raise.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from lambdalm.errors import Code, LlmError
from lambdalm.timings import HopClock
from lambdalm.tracing import UNTRACED, Span

REQUEST_ID = "x-request-id"
REQUEST_TIMEOUT = "x-request-timeout"

_HOP_MARGIN = 0.05  # seconds; a tenth of what is left, where that is less
_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


class Call:
    """One request at one hop. `deadline` is on the monotonic clock, in seconds."""

    def __init__(self, id: str, budget: float, clock: HopClock) -> None:
        self.id = id
        self.budget = budget
        self.deadline = time.monotonic() + budget
        self.clock = clock
        self.attempts = 0
        """How often the hop behind this one has been asked for it."""
        self.span: Span = UNTRACED
        """This hop's part of the request's trace, which says where in it the next hop is."""
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._next_key = 0
        self._stopped: LlmError | None = None
        # Held until the call is stopped: to wait for a lock costs a fraction of what waiting for an Event does.
        self._running = threading.Lock()
        self._running.acquire()

    @property
    def cancelled(self) -> bool:
        return self._stopped is not None

    @property
    def stopped(self) -> LlmError | None:
        """The error with which it was stopped."""
        return self._stopped

    def remaining(self) -> float:
        """Seconds left of the budget; never below zero."""
        return max(0.0, self.deadline - time.monotonic())

    def passed_on(self) -> float:
        """Seconds to give the next hop: what is left, less what it takes to hear from that hop that they are over."""
        left = self.remaining()
        return left - min(_HOP_MARGIN, left / 10)

    def check(self) -> None:
        """Raises the error with which the call was cancelled, or DEADLINE_EXCEEDED when its time is up."""
        if self._stopped is not None:
            raise self._stopped
        if self.remaining() <= 0:
            raise self.out_of_time()

    def out_of_time(self) -> LlmError:
        """The DEADLINE_EXCEEDED of this call."""
        return LlmError(
            Code.DEADLINE_EXCEEDED,
            f"the request's time budget of {self.budget:.3g} s is used up; X-Request-Timeout sets it",
            origin=self.clock.hop,
        )

    def cancel(self, reason: str, code: Code = Code.CANCELLED) -> None:
        """Stop the call and wake what waits for it."""
        self._stop(LlmError(code, reason, origin=self.clock.hop))

    def expire(self) -> None:
        """Stop the call because its time is up."""
        self._stop(self.out_of_time())

    def _stop(self, error: LlmError) -> None:
        with self._lock:
            if self._stopped is not None:
                return
            self._stopped = error
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
            self._running.release()
        for callback in callbacks:
            callback()

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`; raises what `check` raises when the call is stopped or its time is up before."""
        if seconds > 0 and self._running.acquire(timeout=min(seconds, self.remaining())):
            self._running.release()  # for other threads that wait
        self.check()

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], object]) -> Iterator[None]:
        """While inside, a cancellation runs `callback` (once)."""
        with self._lock:
            key = self._next_key
            self._next_key += 1
            already = self._stopped is not None
            if not already:
                self._callbacks[key] = callback
        if already:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(key, None)


def request_id(given: str | None) -> str:
    """The id to use: the caller's, if it is one (letters, digits, `._:-`, at most 128), else a new one.

    Raises `LlmError(INVALID_ARGUMENT)` for one that could not be passed on.
    """
    if given is None:
        return uuid.uuid4().hex
    if not _ID.fullmatch(given):
        raise LlmError(Code.INVALID_ARGUMENT, "X-Request-Id: use at most 128 letters, digits or any of . _ : -")
    return given


def budget(given: str | None, default: float, maximum: float) -> float:
    """A request's time budget in seconds: what its X-Request-Timeout says, at most `maximum`.

    Raises `LlmError(INVALID_ARGUMENT)` unless that is a number of seconds ≥ 0.
    """
    if given is None:
        return min(default, maximum)
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0 or math.isinf(seconds):
        raise LlmError(Code.INVALID_ARGUMENT, "X-Request-Timeout: give a number of seconds, for example 30 or 0.5")
    return min(seconds, maximum)
