"""What one API key has used, and whether it may have more: pure, without a clock, a store or randomness.

Theory of operation. Before a request its cost is reserved: one request, and as many tokens as it may take. After it,
`settle` puts the tokens that it did take in the place of those. What is used goes into three places:

- Two buckets, of requests and of tokens, which hold a minute's worth and are drained all the time at the limit's rate.
  A request is admitted if it fits in. So in any stretch of s seconds a key gets at most limit × (1 + s / 60).
- The tokens of the calendar day, in UTC.
- `held`: what is reserved and not settled yet, which is also what is in flight.

The bucket of tokens drains what is settled before what is held, and settling gives back only what is still in it.
Otherwise refunds for what drained long ago would let more through than the stretch has.

A reservation that is not settled by its `until` was made by a process that is gone: it is spent as it was estimated,
and no longer in flight. More than was reserved is charged, too; then the bucket is fuller than full, and later
requests wait until it has drained.

Time is in seconds since 1970, by clocks that may be set while this runs. A ledger that is up to a minute ahead of
`now` was written by a machine whose clock is: its time counts. One that is further ahead was written before the clock
was set back: its minute is taken to be over, and what is held to be spent. A clock set forward has the same effect. So
a key gets at most a budget more by it, and waits at most a minute longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import replace

MINUTE = 60.0
DAY = 86400
_BUSY = 1.0  # seconds after which to try again where nobody knows when a request will have ended
_ROUNDING = 1e-8  # of a limit: what times that are floats may be wrong by

Limit = Annotated[int, Meta(ge=1)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a key may use; None is no limit. A request's tokens are those of its prompt and of its answer."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    max_in_flight: Limit | None = None


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A reservation that is not settled: its tokens, those of them that are still in the bucket, and its day."""

    tokens: int
    until: float
    in_bucket: float
    day: int


class Ledger(msgspec.Struct, frozen=True):
    """What a key has used, as of `at`. `requests` are those in their bucket, `tokens` those that are settled and still
    in theirs, `day_tokens` those of the day `day` (in days since 1970), settled and held."""

    at: float = 0.0
    requests: float = 0.0
    tokens: float = 0.0
    day: int = 0
    day_tokens: int = 0
    held: dict[str, Held] = {}


class Refusal(msgspec.Struct, frozen=True):
    """Why there is no more: the name of the limit, seconds until it makes sense to try again (None: never, as it is
    asked for), and words for the user."""

    limit: str
    retry_after: float | None
    message: str


def reserve(ledger: Ledger, limits: Limits, id: str, tokens: int, until: float, now: float) -> Ledger | Refusal:
    """The ledger with one more request in flight, of so many tokens at most; or the refusal that lasts longest.

    An id that is held already changes nothing.
    """
    if id in ledger.held:
        return ledger
    ledger = _advanced(ledger, limits, now)
    refusals = list(_refusals(ledger, limits, tokens, now))
    if refusals:
        return max(refusals, key=lambda refusal: math.inf if refusal.retry_after is None else refusal.retry_after)
    return replace(
        ledger,
        requests=ledger.requests + 1,
        day_tokens=ledger.day_tokens + tokens,
        held={**ledger.held, id: Held(tokens, until, tokens, ledger.day)},
    )


def settle(ledger: Ledger, id: str, tokens: int | None) -> Ledger:
    """The ledger with the tokens that the request did take (None: nobody knows, the estimate stays).

    An id that is not held, because it is settled or its time is over, changes nothing. What a day's reservation did
    not use is not given back to the next day.
    """
    held = ledger.held.get(id)
    if held is None:
        return ledger
    taken = held.tokens if tokens is None else tokens
    drained = held.tokens - held.in_bucket
    more = taken - held.tokens
    return replace(
        ledger,
        tokens=ledger.tokens + max(0.0, taken - drained),
        day_tokens=ledger.day_tokens + (more if held.day == ledger.day else max(0, more)),
        held={other: value for other, value in ledger.held.items() if other != id},
    )


def _advanced(ledger: Ledger, limits: Limits, now: float) -> Ledger:
    """The ledger as it is at `now`."""
    if ledger.at > now + MINUTE:  # the clock was set back
        return _today(Ledger(at=now, day=ledger.day, day_tokens=ledger.day_tokens))
    now = max(now, ledger.at)
    elapsed = now - ledger.at
    ledger = _drained(_expired(ledger, now), _flow(limits.tokens_per_minute, elapsed))
    requests = max(0.0, ledger.requests - _flow(limits.requests_per_minute, elapsed))
    return _today(replace(ledger, at=now, requests=requests))


def _flow(limit: int | None, elapsed: float) -> float:
    """What a bucket loses in so many seconds."""
    return math.inf if limit is None else limit * elapsed / MINUTE


def _expired(ledger: Ledger, now: float) -> Ledger:
    """With what was held for too long spent."""
    held = {name: one for name, one in ledger.held.items() if one.until > now}
    if len(held) == len(ledger.held):
        return ledger
    return replace(ledger, tokens=ledger.tokens + _in_bucket(ledger.held) - _in_bucket(held), held=held)


def _drained(ledger: Ledger, flow: float) -> Ledger:
    """With so much less in the bucket of tokens: of what is settled first, then of what has been held longest."""
    tokens = max(0.0, ledger.tokens - flow)
    flow -= ledger.tokens - tokens
    if flow <= 0:
        return replace(ledger, tokens=tokens)
    held = {}
    for name, one in ledger.held.items():
        lost = min(flow, one.in_bucket)
        flow -= lost
        held[name] = replace(one, in_bucket=one.in_bucket - lost) if lost else one
    return replace(ledger, tokens=tokens, held=held)


def _in_bucket(held: dict[str, Held]) -> float:
    return sum(one.in_bucket for one in held.values())


def _today(ledger: Ledger) -> Ledger:
    day = int(ledger.at // DAY)
    return ledger if day == ledger.day else replace(ledger, day=day, day_tokens=0)


def _refusals(ledger: Ledger, limits: Limits, tokens: int, now: float) -> Iterator[Refusal]:
    most = limits.max_in_flight
    if most is not None and len(ledger.held) >= most:
        why = f"the key's {most} requests at once are all in progress; come back when one of them has ended"
        yield Refusal("max_in_flight", _BUSY, why)
    yield from _requests(limits.requests_per_minute, ledger.requests)
    in_bucket = ledger.tokens + _in_bucket(ledger.held)
    yield from _tokens("tokens_per_minute", "a minute", limits.tokens_per_minute, in_bucket, tokens, None)
    midnight = (ledger.day + 1) * DAY - now
    yield from _tokens("tokens_per_day", "a day (UTC)", limits.tokens_per_day, ledger.day_tokens, tokens, midnight)


def _requests(limit: int | None, used: float) -> Iterator[Refusal]:
    wait = _wait(limit, used, 1)
    if wait:
        why = f"the key's {limit} requests a minute are used up; come back in {_duration(wait)}"
        yield Refusal("requests_per_minute", wait, why)


def _tokens(name: str, per: str, limit: int | None, used: float, cost: int, wait: float | None) -> Iterator[Refusal]:
    """`wait` is until all of them are given anew; None: they come back one by one, over a minute."""
    short = _wait(limit, used, cost)
    if limit is None or not short:
        return
    if cost > limit:
        why = f"the request may take {cost} tokens, and the key has {limit} {per}: lower max_tokens or shorten it"
        yield Refusal(name, None, why)
        return
    wait = short if wait is None else wait
    why = (
        f"the key has {max(0, math.floor(limit - used))} of its {limit} tokens {per} left, and the request may take "
        f"{cost}; come back in {_duration(wait)}, or lower max_tokens"
    )
    yield Refusal(name, wait, why)


def _wait(limit: int | None, used: float, cost: int) -> float:
    """Seconds until so much fits into a bucket that drains in a minute; 0 if it does now."""
    if limit is None or used + cost <= limit * (1 + _ROUNDING):
        return 0.0
    return (used + cost - limit) * MINUTE / limit


def _duration(seconds: float) -> str:
    """In words, rounded up: 12 s, 5 min, 7 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds > 2 * size:
            return f"{math.ceil(seconds / size)} {unit}"
    return f"{math.ceil(seconds)} s"
