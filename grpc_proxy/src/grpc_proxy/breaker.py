"""When a backend is left out because it fails, and when it may try again.

    closed ──5 failures in a row──▶ open, 30 s × times it has opened ──▶ half-open ──a first delta──▶ closed
                                     ▲                                        │
                                     └────────────────a failure───────────────┘

Half-open, one request at a time may try it. Passive outlier ejection, as Envoy has it, and a circuit breaker are one
thing here. Pure: it has no clock of its own; times are seconds on the monotonic clock.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=1)]
State = Literal["closed", "open", "half-open"]


class BreakerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `breaker`."""

    failures: Count = 5
    seconds: Seconds = 30
    max_seconds: Seconds = 300


class Breaker:
    """One backend's."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._failures = 0
        self._times = 0
        self._until: float | None = None
        self._closed_at = 0.0
        self._trying_since: float | None = None

    def state(self, now: float) -> State:
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a request may go to the backend now."""
        state = self.state(now)
        return state == "closed" or (state == "half-open" and not self._on_trial(now))

    def _on_trial(self, now: float) -> bool:
        """Whether a request tries it; one that has hung for long bars no other."""
        return self._trying_since is not None and now - self._trying_since < self._config.seconds

    @property
    def until(self) -> float:
        """When an open one may be tried again."""
        return self._until or 0.0

    def began(self, now: float) -> bool:
        """A request goes to it; says whether on trial, which it is told when the request ends."""
        state = self.state(now)
        if state == "half-open" and not self._on_trial(now):
            self._trying_since = now
        return state != "closed"

    def answered(self, now: float, on_trial: bool) -> None:
        """A first delta has come from it: it lives. Only a whole answer clears the failures counted so far."""
        if on_trial and self._until is not None:
            self._until = None
            self._failures = self._config.failures - 1
            self._closed_at = now

    def succeeded(self) -> None:
        """It has given a whole answer."""
        self._failures = 0

    def trial_over(self) -> None:
        """The request that was on trial has ended, however it did."""
        self._trying_since = None

    def failed(self, now: float, may_open: bool, on_trial: bool) -> bool:
        """It has failed; says whether it opens. `may_open` is False where nobody else is left to ask.

        A request of before that fails while it is open, or half-open, says nothing new.
        """
        self._failures += 1
        again = on_trial and self.state(now) == "half-open"
        if not again and not (self._failures >= self._config.failures and self._until is None):
            return False
        if not may_open:
            self._until = None
            return False
        if not again and now - self._closed_at > self._config.max_seconds:
            self._times = 0
        self._times += 1
        self._until = now + min(self._config.seconds * self._times, self._config.max_seconds)
        return True
