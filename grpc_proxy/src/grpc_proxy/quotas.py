"""What keys may use, kept in the store that all proxies share: reserved before a request, settled after it.

Theory of operation. `ledger.py` decides; here its ledgers are read and written, one record for each key. A record is
replaced only if it is the one that was decided on, so that of two proxies one is refused, reads again and decides
again. Within a process a key has one writer: what comes while it writes is decided on together and written at once, in
the order it came. The writer remembers what it wrote, so that where nobody else writes, a change is one `put`.

What is remembered may be old, so a refusal counts only if it was decided on what the store has: if the `put` of the
same batch succeeded, or after another look.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import msgspec

from grpc_proxy import ledger as ledgers
from grpc_proxy.background import Background
from grpc_proxy.keys import KeyEntry
from grpc_proxy.ledger import DAY, Ledger, Limits, Refusal
from grpc_proxy.minute_warning import MinuteWarning
from grpc_proxy.store.base import Key, Record, Store
from lambdalm import logs
from lambdalm.errors import STORE, Code, LlmError

_log = logs.get(__name__)

_KEPT = 2 * DAY  # seconds after the last change: longer than any budget lasts
_TOGETHER = 64  # changes that share a write: deciding on more would hold the loop up
_TRIES = 20  # of one change; each that fails is another process's success
_PAUSE = 0.005  # seconds before another try, times a random number and the tries so far
_AGAIN = 1.2  # seconds, after which a settlement is tried once more: a store that fails is left alone for one

Decide = Callable[[Ledger], Ledger | Refusal]
Verdict = Refusal | None


class QuotasConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `quotas`: what becomes of requests with limits while the store cannot be asked."""

    when_store_fails: Literal["refuse", "allow"] = "refuse"


class Reservation(NamedTuple):
    """What a request may use: its key's id, and its own."""

    key: str
    id: str


class Quotas:
    """The limits of all keys. `clock` gives seconds since 1970, the same for all who share the store."""

    def __init__(self, store: Store, config: QuotasConfig, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._allow = config.when_store_fails == "allow"
        self._clock = clock
        self._writers: dict[str, _Writer] = {}
        self._unlimited = MinuteWarning("requests go on without limits")
        self._unsettled = MinuteWarning("a reservation stays unsettled")
        self._afterwards = Background()

    async def reserve(self, entry: KeyEntry, tokens: int, until: float) -> Reservation | None:
        """Take one request of so many tokens at most; it counts as in flight up to `until`, in seconds since 1970.

        None where nothing needs to be settled. Raises `LlmError(RESOURCE_EXHAUSTED)` where a limit is reached, and
        the store's error where it fails.
        """
        if entry.limits == Limits():
            return None
        reservation = Reservation(entry.id, secrets.token_urlsafe(9))
        change = _Change(partial(self._reserved, entry.limits, reservation.id, tokens, until))
        try:
            refusal = await self._change(entry.id, change)
        except LlmError as error:
            if change.may_be_written:
                self._afterwards.start(self.settle(reservation, 0))
            self._without_store(error)
            return None
        except asyncio.CancelledError:
            await self.settle(reservation, 0)  # it may have been written, and nobody would settle it
            raise
        if refusal is not None:
            raise _refused(refusal)
        return reservation

    async def settle(self, reservation: Reservation, tokens: int | None) -> None:
        """Give back what was not used (None: nobody knows). Never raises: where it fails, all of it stays used."""
        decide = partial(ledgers.settle, id=reservation.id, tokens=tokens)
        try:
            await self._change(reservation.key, _Change(decide))
        except LlmError:
            await asyncio.sleep(_jittered(_AGAIN))
            try:
                await self._change(reservation.key, _Change(decide))
            except LlmError as error:
                self._unsettled.log(key_id=reservation.key, tokens=tokens, **error.for_log())

    async def close(self) -> None:
        """Finish what was begun, before the store is closed."""
        await self._afterwards.finish()
        await asyncio.gather(*(writer.idle() for writer in self._writers.values()))

    def _reserved(self, limits: Limits, id: str, tokens: int, until: float, ledger: Ledger) -> Ledger | Refusal:
        return ledgers.reserve(ledger, limits, id, tokens, until, self._clock())

    async def _change(self, key_id: str, change: _Change) -> Verdict:
        if key_id not in self._writers:
            self._writers[key_id] = _Writer(self._store, Key("quota", key_id), self._clock)
        return await self._writers[key_id].change(change)

    def _without_store(self, error: LlmError) -> None:
        """Raises, unless requests are to go on."""
        why = f"the key's limits cannot be checked: {error.message}"
        if not self._allow:
            raise LlmError(error.code, why, retry_after=error.retry_after, origin=error.origin)
        self._unlimited.log(why=why)


class _Change:
    """One that waits to be written. `may_be_written` is whether the store was given it, though it may have failed."""

    def __init__(self, decide: Decide) -> None:
        self.decide = decide
        self.done: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self.may_be_written = False


class _Writer:
    """The one writer of a key's ledger in this process."""

    def __init__(self, store: Store, key: Key, clock: Callable[[], float]) -> None:
        self._store = store
        self._key = key
        self._clock = clock
        self._ledger: Ledger | None = None  # as the store has it; None: to be read
        self._version: str | None = None
        self._waiting: list[_Change] = []
        self._writing: asyncio.Task[None] | None = None

    async def change(self, change: _Change) -> Verdict:
        """Write what it decides; its refusal, if it does refuse. Raises the store's LlmError.

        Whoever leaves meanwhile does not stop it.
        """
        self._waiting.append(change)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return await change.done

    async def idle(self) -> None:
        if self._writing is not None:
            await self._writing

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            verdicts: list[Verdict | Exception]
            try:
                verdicts = [*await self._write(batch)]
            except Exception as error:  # noqa: BLE001  # whatever it was, those who wait must hear of it
                self._ledger = None  # what was begun may have been written
                verdicts = [error] * len(batch)
            for change, verdict in zip(batch, verdicts, strict=True):
                _tell(change.done, verdict)

    async def _write(self, batch: list[_Change]) -> list[Verdict]:
        seen = False  # whether the ledger was read for this batch
        for tries in range(_TRIES):
            if self._ledger is None:
                self._ledger, seen = await self._read(), True
            before = self._ledger
            after, verdicts = _decided(batch, before)
            if after is not before and await self._put(after, batch):
                return verdicts
            if after is before and (seen or not any(verdicts)):
                return verdicts
            self._ledger = None
            if after is not before:
                await asyncio.sleep(_PAUSE * tries * random.random())
        why = "too many proxies write this key's usage at once: try again"
        raise LlmError(Code.UNAVAILABLE, why, retry_after=1, origin=STORE)

    async def _read(self) -> Ledger:
        record = await self._store.get(self._key)
        self._version = record and record.version
        try:
            return msgspec.msgpack.decode(record.value, type=Ledger) if record else Ledger()
        except msgspec.MsgspecError as error:
            _log.warning("a ledger that cannot be read is begun anew", key_id=self._key.name, why=str(error))
            return Ledger()

    async def _put(self, ledger: Ledger, batch: list[_Change]) -> bool:
        version = secrets.token_urlsafe(12)
        record = Record(msgspec.msgpack.encode(ledger), version, expires=self._clock() + _KEPT)
        for change in batch:
            change.may_be_written = True
        if not await self._store.put(self._key, record, self._version):
            return False
        self._ledger, self._version = ledger, version
        return True


def _decided(batch: list[_Change], ledger: Ledger) -> tuple[Ledger, list[Verdict]]:
    """The ledger after all of them, and what each is told."""
    verdicts: list[Verdict] = []
    for change in batch:
        decided = change.decide(ledger)
        refusal = decided if isinstance(decided, Refusal) else None
        ledger = decided if isinstance(decided, Ledger) else ledger
        verdicts.append(refusal)
    return ledger, verdicts


def _tell(done: asyncio.Future[Verdict], verdict: Verdict | Exception) -> None:
    if done.done():  # its caller has left
        return
    if isinstance(verdict, Exception):
        done.set_exception(verdict)
    else:
        done.set_result(verdict)


def _refused(refusal: Refusal) -> LlmError:
    wait = refusal.retry_after
    after = None if wait is None else _jittered(wait)
    return LlmError(Code.RESOURCE_EXHAUSTED, refusal.message, retry_after=after, origin="proxy")


def _jittered(seconds: float) -> float:
    """Up to a tenth more, so that those who were refused together do not come back together."""
    return seconds * random.uniform(1, 1.1)
