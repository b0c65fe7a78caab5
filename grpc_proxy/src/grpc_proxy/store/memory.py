"""Records in this process's memory: they end with it, and no other process sees them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from grpc_proxy.store.base import Key, Listed, Record

_SWEEP_SECONDS = 60.0


class Memory:
    """A dict of each owner's records. No call of it fails."""

    name = "memory"
    max_value_bytes: int | None = None

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: dict[str, dict[str, Record]] = {}
        self._swept = clock()

    async def open(self) -> None: ...

    async def get(self, key: Key) -> Record | None:
        return self._living(key)

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        self._sweep()
        held = self._living(key)
        if (held and held.version) != after:
            return False
        self._records.setdefault(key.owner, {})[key.name] = record
        return True

    async def delete(self, key: Key) -> bool:
        living = self._living(key) is not None
        self._records.get(key.owner, {}).pop(key.name, None)
        return living

    async def list(self, owner: str, limit: int) -> Sequence[Listed]:
        now = self._clock()
        living = (
            Listed(name, record.summary, record.expires)
            for name, record in self._records.get(owner, {}).items()
            if record.expires > now
        )
        return heapq.nlargest(limit, living, key=lambda listed: listed.expires)

    async def close(self) -> None:
        self._records.clear()

    def _living(self, key: Key) -> Record | None:
        record = self._records.get(key.owner, {}).get(key.name)
        return record if record is not None and record.expires > self._clock() else None

    def _sweep(self) -> None:
        now = self._clock()
        if now < self._swept + _SWEEP_SECONDS:
            return
        self._swept = now
        living = {
            owner: {name: record for name, record in records.items() if record.expires > now}
            for owner, records in self._records.items()
        }
        self._records = {owner: records for owner, records in living.items() if records}
