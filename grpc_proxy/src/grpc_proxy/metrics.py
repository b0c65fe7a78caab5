"""What the proxy counts, for Prometheus and for `GetStats`.

Names are those of seed 001 where it has one. No label has values that a caller can make up: methods, codes, upstreams
and reasons are few, and a model counts as `other` unless some upstream lists it.

With several workers `/metrics` speaks of all (`lambdalm.prometheus`), `GetStats` of one process.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections import OrderedDict
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram

from grpc_proxy.pool import Pool
from lambdalm import prometheus
from lambdalm.errors import Code
from lambdalm.events import Tokens
from lambdalm.prometheus import gauge

_SECONDS = [0.01 * 2**power for power in range(14)]  # 10 ms to 82 s, as OpenTelemetry's GenAI conventions have them
_FIRST = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30]
_GAPS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2.5]
_MOST_SESSIONS = 100_000  # that are counted
_STATES = {"closed": 0, "half-open": 1, "open": 2}


class Metrics:
    """One process's. Sessions are active for `session_seconds` after their last use."""

    def __init__(self, session_seconds: float) -> None:
        self._session_seconds = session_seconds
        self._sessions_used: OrderedDict[str, float] = OrderedDict()
        self.started = time.monotonic()
        self.active = 0
        self.total = 0
        self.sessions_made = 0
        self.turns_completed = 0
        self.completion_tokens = 0
        self.errors: Counts[str] = Counts()
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("llm_service_requests", "Calls by their end", ["method", "code"], registry=registry)
        self._duration = Histogram(
            "llm_service_request_duration_seconds",
            "Start to end",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter("llm_service_tokens", "Tokens", ["model", "kind"], registry=registry)
        self._first = Histogram(
            "llm_service_time_to_first_token_seconds", "Start to first delta", buckets=_FIRST, registry=registry
        )
        self._gap = Histogram("llm_service_inter_token_gap_seconds", "Between deltas", buckets=_GAPS, registry=registry)
        self._queue = Histogram(
            "llm_service_queue_seconds", "Waiting for an upstream with room", buckets=_SECONDS, registry=registry
        )
        self._retries = Counter(
            "llm_service_retries",
            "Attempts that moved on, from where",
            ["upstream", "code"],
            registry=registry,
        )
        self._ejections = Counter("llm_service_ejections", "Breakers that opened", ["upstream"], registry=registry)
        self._turns = Counter("llm_service_turns", "Turns of sessions, by how they ended", ["state"], registry=registry)
        self._sessions = Counter("llm_service_sessions", "Sessions made", registry=registry)
        self._refusals = Counter("llm_service_refusals", "Calls refused, by why", ["reason"], registry=registry)
        self._in_progress = gauge("llm_service_calls_in_progress", "Calls now", [], registry, "livesum")
        self._in_flight = gauge("llm_service_upstream_in_flight", "Requests now", ["upstream"], registry, "livesum")
        self._up = gauge("llm_service_upstream_up", "1 while it is healthy", ["upstream"], registry, "livemin")
        self._breaker = gauge(
            "llm_service_breaker_state", "0 closed, 1 half-open, 2 open", ["upstream"], registry, "livemax"
        )
        self._active_sessions = gauge("llm_service_sessions_active", "Sessions in use", [], registry, "livesum")
        self._store_up = gauge("llm_service_store_up", "1 while the store answers", [], registry, "livemin")
        # `labels` makes texts and takes a lock, at each call.
        self._requests_of = cache(self._requests.labels)
        self._duration_of = cache(self._duration.labels)
        self._tokens_of = cache(self._tokens.labels)
        self._turns_of = cache(self._turns.labels)

    def began(self) -> None:
        """A call has come."""
        self.active += 1
        self.total += 1
        self._in_progress.inc()

    def ended(self, method: str, code: Code | None, seconds: float) -> None:
        """A call has ended; `code` is None for one that went well."""
        self.active -= 1
        self._in_progress.dec()
        self._requests_of(method, "OK" if code is None else code.value).inc()
        self._duration_of(method).observe(seconds)
        if code is not None:
            self.errors[code.value] += 1

    def first_delta(self, seconds: float) -> None:
        self._first.observe(seconds)

    def gap(self, seconds: float) -> None:
        self._gap.observe(seconds)

    def used(self, model: str, usage: Tokens | None) -> None:
        """An answer's tokens, as far as the engine has counted them."""
        if usage is None:
            return
        self._tokens_of(model, "prompt").inc(usage.prompt_tokens or 0)
        self._tokens_of(model, "completion").inc(usage.completion_tokens or 0)
        self.completion_tokens += usage.completion_tokens or 0

    def waited(self, seconds: float) -> None:
        self._queue.observe(seconds)

    def retried(self, upstream: str, code: Code) -> None:
        self._retries.labels(upstream, code.value).inc()

    def ejected(self, upstream: str) -> None:
        self._ejections.labels(upstream).inc()

    @property
    def active_sessions(self) -> int:
        """Sessions that this process has used and that are not forgotten yet."""
        now = time.monotonic()
        while self._sessions_used and next(iter(self._sessions_used.values())) <= now - self._session_seconds:
            self._sessions_used.popitem(last=False)
        return len(self._sessions_used)

    def session_used(self, id: str, is_new: bool) -> None:
        """A turn was stored in it, the first if it is new."""
        if is_new:
            self.sessions_made += 1
            self._sessions.inc()
        self._sessions_used[id] = time.monotonic()
        if not is_new:
            self._sessions_used.move_to_end(id)
        if len(self._sessions_used) > _MOST_SESSIONS:
            self._sessions_used.popitem(last=False)

    def turn_ended(self, state: str) -> None:
        self._turns_of(state).inc()
        self.turns_completed += state == "complete"

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def looked(self, pool: Pool, store_up: bool) -> None:
        """What is now, rather than what has happened."""
        now = time.monotonic()
        self._store_up.set(store_up)
        self._active_sessions.set(self.active_sessions)
        for name, member in pool.members.items():
            self._in_flight.labels(name).set(member.target.in_flight)
            self._up.labels(name).set(member.target.down is None)
            self._breaker.labels(name).set(_STATES[member.target.breaker.state(now)])

    def exposition(self) -> tuple[str, bytes]:
        """Content type and body of `/metrics`."""
        return prometheus.exposition(self._registry)
