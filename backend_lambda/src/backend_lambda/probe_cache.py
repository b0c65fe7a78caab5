"""Health checks of a provider on the loop, which never wait for an engine that hangs.

A check may block, so it runs in a thread, one at a time, and its result counts for a second. A request that comes while
one is under way waits for it, but only for 50 ms: then what the engine said before counts, and the answer says so.
"""

from __future__ import annotations

import asyncio
import math
import time

from backend_lambda.health import Probe, probe
from backend_lambda.providers.base import Provider, ProviderHealth

_FRESH_SECONDS = 1.0
_PATIENCE_SECONDS = 0.05


class ProbeCache:
    """What `provider` says of itself, now or a moment ago; for one loop."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._last: Probe | None = None
        self._time = -math.inf  # of the last probe, and when the one under way began; monotonic seconds
        self._began = -math.inf
        self._running: asyncio.Task[None] | None = None

    async def current(self) -> Probe:
        """What the provider says. Takes 50 ms at most, except the first time, when nothing else is known."""
        if self._last is None or time.monotonic() - self._time >= _FRESH_SECONDS:
            await asyncio.wait([self._under_way()], timeout=None if self._last is None else _PATIENCE_SECONDS)
        assert self._last is not None
        return self._last if self._running is None else self._outdated(self._last)

    async def close(self) -> None:
        """Returns when no check is under way any more."""
        if self._running is not None:
            await asyncio.wait([self._running])

    def _under_way(self) -> asyncio.Task[None]:
        if self._running is None:
            self._began = time.monotonic()
            self._running = asyncio.create_task(self._ask())
        return self._running

    async def _ask(self) -> None:
        before = self._last.models if self._last is not None else ()
        try:
            self._last = await asyncio.to_thread(probe, self._provider, before)
            self._time = time.monotonic()
        finally:
            self._running = None

    def _outdated(self, found: Probe) -> Probe:
        now = time.monotonic()
        note = (
            f"a health check has had no answer for {now - self._began:.1f} s; this was so {now - self._time:.0f} s ago"
        )
        detail = f"{found.health.detail} ({note})" if found.health.detail else note
        return found._replace(health=ProviderHealth(found.health.ok, detail))
