"""Where the time of a request went: every hop measures its share and adds it to what came from behind it.

A hop has a `HopClock` that starts with the request. Its `HopTiming` nests around that of the hop behind it, so
`own_ms`, what this hop and the wire to the next one added, is the difference of the two totals. Timings travel
as JSON in the end event of a stream and in plain answers, and in `Server-Timing` syntax (W3C; milliseconds) as an
HTTP header and as gRPC trailing metadata; `encode` and `decode` join the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

SERVER_TIMING = "server-timing"

_FIELDS = ("total", "queue", "first_token", "generation", "own")


class HopTiming(msgspec.Struct, frozen=True, omit_defaults=True):
    """One hop's share, in milliseconds; what the hop does not know is absent.

    `total_ms` from the request's arrival to its end at this hop; `queue_ms` waiting for a slot; `first_token_ms`
    from arrival to the first delta; `generation_ms` from the first delta to the end; `own_ms` what the hop itself
    (with the wire to the next) added.
    """

    total_ms: float
    queue_ms: float | None = None
    first_token_ms: float | None = None
    generation_ms: float | None = None
    own_ms: float | None = None


Timings = dict[str, HopTiming]
"""Hop name → its share, innermost hop first."""


class HopClock:
    """Measures one request at one hop. `now` is a monotonic clock in seconds."""

    def __init__(self, hop: str, now: Callable[[], float] = time.monotonic) -> None:
        self.hop = hop
        self.behind: Timings = {}
        """What the hop behind reported, once its end (or its error) has come."""
        self._now = now
        self._start = now()
        self._queued: float | None = None
        self._slot: float | None = None
        self._first: float | None = None
        self._engine_end: float | None = None

    def queue_starts(self) -> None:
        """The request starts to wait for a slot."""
        self._queued = self._now()

    def slot_taken(self) -> None:
        """The wait for a slot is over."""
        self._slot = self._now()

    def first_delta(self) -> None:
        """A delta has come; only the first one counts."""
        if self._first is None:
            self._first = self._now()

    def engine_done(self) -> None:
        """The engine has finished; what follows is this hop's own time."""
        self._engine_end = self._now()

    def total_ms(self) -> float:
        """Milliseconds since the request's arrival."""
        return _ms(self._now() - self._start)

    def timings(self) -> Timings:
        """All hops' shares up to now, this one last."""
        return {**self.behind, self.hop: self._share()}

    def _share(self) -> HopTiming:
        end = self._now()
        total = end - self._start
        queue = None
        if self._queued is not None:
            queue = (end if self._slot is None else self._slot) - self._queued
        if self.behind:
            elsewhere = (queue or 0.0) + next(reversed(self.behind.values())).total_ms / 1000
        else:
            engine = 0.0 if self._slot is None else (self._engine_end or end) - self._slot
            elsewhere = (queue or 0.0) + engine
        return HopTiming(
            total_ms=_ms(total),
            queue_ms=None if queue is None else _ms(queue),
            first_token_ms=None if self._first is None else _ms(self._first - self._start),
            generation_ms=None if self._first is None else _ms((self._engine_end or end) - self._first),
            own_ms=_ms(max(0.0, total - elsewhere)),
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def encode(timings: Timings) -> str:
    """As the value of a Server-Timing header: `backend;dur=41.2, backend-queue;dur=0.1, …, proxy;dur=42.0, …`."""
    parts = []
    for hop, share in timings.items():
        for field in _FIELDS:
            value = getattr(share, f"{field}_ms")
            if value is not None:
                name = hop if field == "total" else f"{hop}-{field.replace('_', '-')}"
                parts.append(f"{name};dur={value:.3f}".rstrip("0").rstrip("."))
    return ", ".join(parts)


def decode(header: str) -> Timings:
    """Read what `encode` wrote; entries without a number are passed over."""
    found: dict[str, dict[str, float]] = {}
    for part in header.split(","):
        name, _, rest = part.strip().partition(";")
        try:
            value = float(rest.removeprefix("dur="))
        except ValueError:
            continue
        for field in _FIELDS[1:]:
            suffix = f"-{field.replace('_', '-')}"
            if name.endswith(suffix):
                found.setdefault(name.removesuffix(suffix), {})[f"{field}_ms"] = value
                break
        else:
            found.setdefault(name, {})["total_ms"] = value
    return {hop: HopTiming(**shares) for hop, shares in found.items() if "total_ms" in shares}
