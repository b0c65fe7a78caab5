"""A store that cannot hold anyone up: no call takes longer than its limit, and none waits for a store that is down.

Theory of operation. A call of the store is a task of its own, which nothing interrupts: whoever asked may leave, or
have waited long enough, and the store still finishes its work in order. A call that fails as UNAVAILABLE, or takes too
long, means that the store is down. From then on calls fail at once, but for one in `retry_seconds`, which goes through
to see; the first that succeeds ends it. A probe that hangs or whose caller leaves costs nothing: the next one is due
`retry_seconds` later in any case.

The limit of a call is in seconds in which this process's event loop ran: a process that was stopped or starved could
not have read the store's answer, which may have been there all the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from grpc_proxy.store.base import Key, Listed, Record, Store
from lambdalm import logs
from lambdalm.errors import Code, LlmError

T = TypeVar("T")

_TICK_SECONDS = 0.1
_MOST_SECONDS = 2 * _TICK_SECONDS  # that a tick counts for: what it took longer, the loop did not run

_log = logs.get(__name__)


class Guarded:
    """A Store around a Store. `seconds` is what one call may take; `monotonic` is a clock for probes, in seconds."""

    def __init__(
        self,
        store: Store,
        seconds: float,
        retry_seconds: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = store.name
        self.max_value_bytes = store.max_value_bytes
        self.why: str | None = None
        """Why the store is down; None while it is not."""
        self._store = store
        self._seconds = seconds
        self._retry_seconds = retry_seconds
        self._monotonic = monotonic
        self._no_room: str | None = None
        self._probe_at = 0.0
        self._running: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        await self._store.open()

    async def get(self, key: Key) -> Record | None:
        return await self._call(self._store.get, key)

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        try:
            done = await self._call(self._store.put, key, record, after)
        except LlmError as error:
            if error.code is Code.RESOURCE_EXHAUSTED:
                self._no_room = error.message
            raise
        self._no_room = None
        return done

    @property
    def trouble(self) -> str | None:
        """Why not all that is asked of it can be done: it is down, or has no room; None while it can."""
        return self.why or self._no_room

    async def delete(self, key: Key) -> bool:
        return await self._call(self._store.delete, key)

    async def list(self, owner: str, limit: int) -> Sequence[Listed]:
        return await self._call(self._store.list, owner, limit)

    async def close(self) -> None:
        """Calls in flight have their time to end, then the store is closed."""
        if self._running:
            await asyncio.wait(self._running, timeout=self._seconds)
        await self._store.close()

    async def _call(self, operation: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        self._admit()
        task = asyncio.create_task(operation(*arguments))
        self._running.add(task)
        task.add_done_callback(self._ended)
        if not await ended_in(task, self._seconds):
            raise self._failed(f"the store ({self.name}) did not answer in {self._seconds:g} s")
        error = task.exception()
        if isinstance(error, LlmError) and error.code is Code.UNAVAILABLE:
            raise self._failed(error.message)
        self._worked()
        return task.result()

    def _admit(self) -> None:
        """Raises while the store is down and no probe is due; a call that it lets through then is the probe."""
        if self.why is None:
            return
        now = self._monotonic()
        if now < self._probe_at:
            raise self._down(self.why, self._probe_at - now)
        self._probe_at = now + self._retry_seconds

    def _failed(self, why: str) -> LlmError:
        if self.why is None:
            _log.warning("the store is down", store=self.name, why=why)
        self.why = why
        self._probe_at = self._monotonic() + self._retry_seconds
        return self._down(why, self._retry_seconds)

    def _worked(self) -> None:
        if self.why is not None:
            _log.info("the store is back", store=self.name)
        self.why = None

    def _down(self, why: str, seconds: float) -> LlmError:
        said = why if why.startswith("the store") else f"the store ({self.name}) fails: {why}"
        return LlmError(Code.UNAVAILABLE, said, retry_after=seconds, origin="store")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio complains of a failure that nobody has looked at


async def ended_in(task: asyncio.Task[Any], seconds: float, monotonic: Callable[[], float] = time.monotonic) -> bool:
    """Whether the task ends within `seconds`, counting only time in which this loop runs; never cancels the task."""
    while seconds > 0:
        before = monotonic()
        done, _ = await asyncio.wait({task}, timeout=min(seconds, _TICK_SECONDS))
        if done:
            return True
        seconds -= min(monotonic() - before, _MOST_SECONDS)
    return False
