"""What an HTTP hop counts, for Prometheus. No label has values that a client can make up."""

from __future__ import annotations

import math
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Histogram

from lambdalm import prometheus

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900]
_LAG_WINDOWS = 10  # of a second each


class HttpMetrics:
    """One server process's."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "lambdalm_http_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self._duration = Histogram(
            "lambdalm_http_request_duration_seconds",
            "From the whole head to the end of the answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._refusals = Counter("lambdalm_http_refusals", "Refused before the app ran", ["reason"], registry=registry)
        self._connections = prometheus.gauge("lambdalm_http_connections", "Open connections", [], registry, "livesum")
        self._in_flight = prometheus.gauge("lambdalm_http_in_flight", "Calls in progress", [], registry, "livesum")
        about = "Longest standstill of the event loop in the last 10 s"
        self._lag = prometheus.gauge("lambdalm_loop_lag_seconds", about, [], registry, "livemax")
        self._lags: deque[float] = deque([0.0], maxlen=_LAG_WINDOWS)
        self._lag_window = -math.inf

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request of a known route, or of none (empty), has its answer."""
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """A request or connection was refused before the app saw it."""
        self._refusals.labels(reason).inc()

    def now(self, connections: int, in_flight: int) -> None:
        """What is now, rather than what has happened."""
        self._connections.set(connections)
        self._in_flight.set(in_flight)

    def lagged(self, seconds: float, now: float) -> None:
        """The loop ran a timer `seconds` late; `now` is the loop's time."""
        if now >= self._lag_window + 1:
            self._lag_window = now
            self._lags.append(0.0)
        if seconds > self._lags[-1]:
            self._lags[-1] = seconds
        self._lag.set(max(self._lags))

    def exposition(self) -> tuple[str, bytes]:
        """Content type and body of `/metrics`."""
        return prometheus.exposition(self.registry)
