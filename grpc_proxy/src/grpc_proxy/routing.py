"""Which backend a request goes to, and whether it may be tried once more.

Least outstanding: of the backends that serve the model, are healthy, whose breaker lets it pass and that have room, the
one with the fewest requests in flight for its weight; the one that answered the session last comes first, while it is
one of them, since its prompt cache is warm. Retries come from one budget for all requests, so that a backend that fails
always is hit at most 1.2 times as often as there are requests.

Pure: no clock, no I/O. `pool.py` acts; times are seconds on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from grpc_proxy.breaker import Breaker, BreakerConfig, Count
from lambdalm.chat import Name
from lambdalm.errors import Code, LlmError

_MENDABLE = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.UNKNOWN, Code.UNAUTHENTICATED}
"""What another backend could do better. A deadline is over everywhere, and a bad request is bad everywhere."""

_TO_BEGIN_WITH = 10  # retries, so that the first requests have some, too

_FAULTS = {Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS, Code.UNAUTHENTICATED}
"""What speaks against a backend. It is the proxy's credential that it refuses; a deadline is the caller's choice, and
one without room is not broken: others are asked before it for a while."""

_MOST_FULL = 5.0  # seconds for which others are asked before one that had no room, if it does not say less


class RetryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `retries`. `budget` is the share of requests that may be tried once more, `saved` how many such tries
    can be saved up for the moment in which a backend dies."""

    attempts: Count = 3
    budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    saved: Annotated[int, Meta(ge=0)] = 100


class RoutingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `routing`. `fallbacks` names for a model those that may answer in its place, the best first."""

    retries: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    fallbacks: dict[Name, tuple[Name, ...]] = {}

    def models(self, asked: str | None) -> tuple[str | None, ...]:
        """What may answer, in order."""
        return (asked, *self.fallbacks.get(asked, ())) if asked is not None else (None,)


class Target:
    """One backend, as routing sees it. `waiting` is how many requests wait for it, or for another as well. `models` is
    None while it is not known what it serves; `down` says why it is not healthy; `fixed` says that the config names its
    models."""

    def __init__(self, name: str, weight: float, max_in_flight: int, queue: int, breaker: Breaker) -> None:
        self.name = name
        self.weight = weight
        self.max_in_flight = max_in_flight
        self.queue = queue
        self.breaker = breaker
        self.models: frozenset[str] | None = None
        self.fixed = False
        self.down: str | None = None
        self.in_flight = 0
        self.waiting = 0
        self._full_until = 0.0
        self._last_chosen = 0

    @property
    def has_room(self) -> bool:
        return self.in_flight < self.max_in_flight

    @property
    def load(self) -> tuple[float, int]:
        """What it would have in flight for its weight; who was chosen longest ago comes first among equals."""
        return (self.in_flight + 1) / self.weight, self._last_chosen

    def said_full(self, retry_after: float | None, now: float) -> None:
        """It has refused a request for want of room; when to come back in seconds, if it said that."""
        self._full_until = now + min(retry_after or 1.0, _MOST_FULL)

    def is_full(self, now: float) -> bool:
        """Whether it said so a moment ago."""
        return now < self._full_until

    def began(self, turn: int, now: float) -> bool:
        """A request goes to it; says whether on trial, since the breaker was not closed."""
        self.in_flight += 1
        self._last_chosen = turn
        return self.breaker.began(now)


def serving(targets: Iterable[Target], model: str | None) -> list[Target]:
    """Those that serve the model; where none is known to, those that may: a backend can have more than it lists."""
    targets = list(targets)
    if model is None:
        return targets
    known = [target for target in targets if target.models is not None and model in target.models]
    return known or [target for target in targets if not target.fixed]


def available(targets: Sequence[Target], now: float) -> list[Target]:
    """Those that may be asked now; one that has just said that it is full only where all have. Where every healthy
    one's breaker is open, the one that is open the shortest time stays: an answer that may fail is better than none."""
    healthy = [target for target in targets if target.down is None]
    passing = [target for target in healthy if target.breaker.allows(now)]
    passing = [target for target in passing if not target.is_full(now)] or passing
    return passing or sorted(healthy, key=lambda target: target.breaker.until)[:1]


def another_stays(targets: Iterable[Target], target: Target, now: float) -> bool:
    """Whether this one may be left out: while another is healthy and in."""
    others = (other for other in targets if other is not target)
    return any(other.down is None and other.breaker.state(now) == "closed" for other in others)


def choose(targets: Sequence[Target], sticky: str | None) -> Target | None:
    """The one to ask of those available; None where all are full."""
    with_room = [target for target in targets if target.has_room]
    for target in with_room:
        if target.name == sticky:
            return target
    return min(with_room, key=lambda target: target.load, default=None)


def is_fault(error: LlmError) -> bool:
    """Whether it speaks against the backend that it came from."""
    return error.code in _FAULTS


def is_mendable(error: LlmError) -> bool:
    """Whether another backend might answer in its place."""
    return error.code in _MENDABLE


class RetryBudget:
    """Each request pays a share of a try in; each retry takes a whole one out."""

    def __init__(self, config: RetryConfig) -> None:
        self._config = config
        self._saved = float(min(config.saved, _TO_BEGIN_WITH))

    def request(self) -> None:
        self._saved = min(self._saved + self._config.budget, float(self._config.saved))

    @property
    def has_one(self) -> bool:
        """Whether there is a retry."""
        return self._saved >= 1

    def take(self) -> bool:
        """The same; if so, it is taken."""
        if not self.has_one:
            return False
        self._saved -= 1
        return True
