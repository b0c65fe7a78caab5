"""Limits in real stores: races have one winner, nothing is lost, and a store that fails is as the config says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from grpc_proxy.keys import KeyEntry, new_key
from grpc_proxy.ledger import DAY, Ledger, Limits
from grpc_proxy.quotas import Quotas, QuotasConfig, Reservation
from grpc_proxy.store.base import Key, Record, Store
from grpc_proxy.store.guard import Guarded
from grpc_proxy.store.memory import Memory
from grpc_proxy.store.redis import Redis
from grpc_proxy.store.table import RedisConfig, SqliteConfig, StoreConfig, make_store
from lambdalm import logs
from lambdalm.errors import Code, LlmError

from .conftest import SOON, WAIT
from .stores import Clock, RedisServer, redis_server, relay_to

REFUSE, ALLOW = QuotasConfig("refuse"), QuotasConfig("allow")
MANY = 500

# One proxy's part of a race: so many requests at once, when it is told; prints how many were let in, and refused.
RACER = """
import asyncio, sys, time, msgspec
from grpc_proxy.keys import KeyEntry
from grpc_proxy.quotas import Quotas, QuotasConfig
from grpc_proxy.store.table import StoreConfig, make_store
from lambdalm.errors import Code, LlmError

async def main():
    store = make_store(msgspec.json.decode(sys.argv[1], type=StoreConfig))
    await store.open()
    quotas = Quotas(store, QuotasConfig())
    entry = msgspec.json.decode(sys.argv[2], type=KeyEntry)
    print("ready", flush=True)
    sys.stdin.readline()
    asked = (quotas.reserve(entry, 1, time.time() + 60) for _ in range(int(sys.argv[3])))
    found = await asyncio.gather(*asked, return_exceptions=True)
    refused = sum(isinstance(one, LlmError) and one.code is Code.RESOURCE_EXHAUSTED for one in found)
    print(sum(not isinstance(one, Exception) for one in found), refused)
    await quotas.close()
    await store.close()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _logging() -> None:
    """As a server's: other tests may or may not have set it up."""
    logs.configure("proxy", logs.LogConfig())


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def config_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> StoreConfig:
    url = request.getfixturevalue("redis").url if kind == "redis" else RedisConfig().url
    file = SqliteConfig(str(folder / "quotas.sqlite"))
    return msgspec.convert(
        {"kind": kind, "operation_seconds": 30, "sqlite": file, "redis": RedisConfig(url=url)}, StoreConfig
    )


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store = make_store(config_of(request.param, request, tmp_path))
    await store.open()
    yield store
    await store.close()


class Spied(Memory):
    """The store `memory`, which counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__(time.time)
        self.calls: Counter[str] = Counter()

    async def get(self, key: Key) -> Record | None:
        self.calls["get"] += 1
        return await super().get(key)

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        self.calls["put"] += 1
        return await super().put(key, record, after)


class Hanging(Spied):
    """It does what is asked of it in order, but only while it is `working`."""

    def __init__(self) -> None:
        super().__init__()
        self.working = asyncio.Event()
        self.working.set()

    async def get(self, key: Key) -> Record | None:
        await self.working.wait()
        return await super().get(key)

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        await self.working.wait()
        return await super().put(key, record, after)


def key_with(**limits: int) -> KeyEntry:
    return new_key(f"test {uuid.uuid4().hex}", [], Limits(**limits))[1]


def soon() -> float:
    return time.time() + WAIT


async def granted(quotas: Quotas, entry: KeyEntry, tokens: int = 1) -> Reservation:
    reservation = await quotas.reserve(entry, tokens, soon())
    assert reservation is not None
    return reservation


async def refused(quotas: Quotas, entry: KeyEntry, tokens: int = 1) -> LlmError:
    with pytest.raises(LlmError) as raised:
        await quotas.reserve(entry, tokens, soon())
    return raised.value


async def ledger_of(store: Store, entry: KeyEntry) -> Ledger:
    record = await store.get(Key("quota", entry.id))
    assert record is not None
    return msgspec.msgpack.decode(record.value, type=Ledger)


async def race(all_quotas: Sequence[Quotas], entry: KeyEntry) -> tuple[int, int]:
    """How many of many requests at once were let in, and refused by a limit."""
    asked = (all_quotas[number % len(all_quotas)].reserve(entry, 1, soon()) for number in range(MANY))
    found = await asyncio.gather(*asked, return_exceptions=True)
    refusals = sum(isinstance(one, LlmError) and one.code is Code.RESOURCE_EXHAUSTED for one in found)
    return sum(isinstance(one, Reservation) for one in found), refusals


async def test_a_refusal_says_which_limit_what_is_left_and_when_to_come_back(store: Store) -> None:
    quotas, entry = Quotas(store, REFUSE), key_with(tokens_per_minute=100)
    await granted(quotas, entry, 70)
    error = await refused(quotas, entry, 60)
    assert (error.code, error.origin) == (Code.RESOURCE_EXHAUSTED, "proxy")
    assert error.message.startswith("the key has 30 of its 100 tokens a minute left")
    assert error.retry_after is not None
    assert 17 < error.retry_after < 20


async def test_what_was_not_used_is_given_back(store: Store) -> None:
    quotas, entry = Quotas(store, REFUSE), key_with(tokens_per_day=100)
    await quotas.settle(await granted(quotas, entry, 100), 40)
    await quotas.settle(await granted(quotas, entry, 60), None)
    assert (await refused(quotas, entry, 1)).code is Code.RESOURCE_EXHAUSTED
    assert (await ledger_of(store, entry)).day_tokens == 100


async def test_what_never_fits_is_not_asked_to_come_back(store: Store) -> None:
    error = await refused(Quotas(store, REFUSE), key_with(tokens_per_minute=100), 101)
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert error.retry_after is None


async def test_of_many_at_once_for_one_request_exactly_one_is_let_in(store: Store) -> None:
    assert await race([Quotas(store, REFUSE)], key_with(requests_per_minute=1)) == (1, MANY - 1)


async def test_of_many_at_once_through_several_proxies_exactly_one_is_let_in(store: Store) -> None:
    proxies = [Quotas(store, REFUSE) for _ in range(5)]
    assert await race(proxies, key_with(tokens_per_day=1)) == (1, MANY - 1)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_of_many_at_once_through_two_processes_exactly_one_is_let_in(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config, entry = config_of(kind, request, tmp_path), key_with(requests_per_minute=1)
    arguments = [msgspec.json.encode(config).decode(), msgspec.json.encode(entry).decode(), str(MANY // 2)]
    command = [sys.executable, "-c", RACER, *arguments]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    try:
        for racer in racers:
            assert racer.stdout
            assert racer.stdout.readline() == "ready\n", racer.stdout.read()
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("go\n")
            racer.stdin.flush()
        said = [racer.communicate(timeout=WAIT)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(said) == [f"0 {MANY // 2}\n", f"1 {MANY // 2 - 1}\n"]


async def test_proxies_that_write_at_once_lose_nothing(store: Store) -> None:
    entry = key_with(tokens_per_day=10**6)

    async def works(quotas: Quotas) -> None:
        for _ in range(20):
            await quotas.settle(await granted(quotas, entry, 10), 3)

    await asyncio.gather(*(works(Quotas(store, REFUSE)) for _ in range(4)))
    ledger = await ledger_of(store, entry)
    assert (ledger.day_tokens, ledger.held) == (4 * 20 * 3, {})


async def test_what_another_proxy_gave_back_can_be_had_at_once(store: Store) -> None:
    one, other, entry = Quotas(store, REFUSE), Quotas(store, REFUSE), key_with(max_in_flight=1)
    for _ in range(3):
        reservation = await granted(one, entry)
        assert "requests at once" in (await refused(other, entry)).message
        await one.settle(reservation, 1)
        await other.settle(await granted(other, entry), 1)


async def test_a_key_without_limits_needs_no_store() -> None:
    store = Spied()
    assert await Quotas(store, REFUSE).reserve(key_with(), 10**9, soon()) is None
    assert not store.calls


async def test_where_nobody_else_writes_a_change_is_one_put() -> None:
    store = Spied()
    quotas, entry = Quotas(store, REFUSE), key_with(requests_per_minute=100)
    for _ in range(10):
        await quotas.settle(await granted(quotas, entry), 1)
    assert store.calls == {"get": 1, "put": 20}


async def test_what_comes_at_once_is_written_at_once() -> None:
    store = Spied()
    quotas, entry = Quotas(store, REFUSE), key_with(requests_per_minute=100)
    reservations = await asyncio.gather(*(granted(quotas, entry) for _ in range(50)))
    await asyncio.gather(*(quotas.settle(one, 1) for one in reservations))
    assert store.calls == {"get": 1, "put": 2}


async def test_to_settle_twice_changes_nothing_and_costs_nothing() -> None:
    store = Spied()
    quotas, entry = Quotas(store, REFUSE), key_with(tokens_per_day=100)
    reservation = await granted(quotas, entry, 50)
    for tokens in (20, 0, None):
        await quotas.settle(reservation, tokens)
    assert (await ledger_of(store, entry)).day_tokens == 20
    assert store.calls["put"] == 2


async def test_what_a_dead_proxy_held_is_free_when_its_time_is_up() -> None:
    clock = Clock()
    store, entry = Memory(clock), key_with(max_in_flight=1)
    await Quotas(store, REFUSE, clock).reserve(entry, 1, clock.now + 30)
    other = Quotas(store, REFUSE, clock)
    await refused(other, entry)
    clock.now += 30
    await granted(other, entry)


async def test_a_ledger_that_its_store_has_forgotten_is_begun_anew() -> None:
    clock = Clock()
    store, entry = Memory(clock), key_with(tokens_per_day=1)
    quotas = Quotas(store, REFUSE, clock)
    await granted(quotas, entry)
    clock.now += 2 * DAY + 1
    assert await store.get(Key("quota", entry.id)) is None
    await granted(quotas, entry)


async def test_a_ledger_that_cannot_be_read_is_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    store, entry = Memory(time.time), key_with(tokens_per_day=1)
    await store.put(Key("quota", entry.id), Record(b"\xc1", "v", expires=soon()), None)
    await granted(Quotas(store, REFUSE), entry)
    assert "a ledger that cannot be read is begun anew" in caplog.text


async def test_while_the_store_is_gone_requests_are_refused_or_let_through_as_configured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry, free = key_with(requests_per_minute=10), key_with()
    with redis_server(tmp_path) as server:
        store = Redis(RedisConfig(url=server.url), None, 2, time.time)
        strict, lenient = Quotas(store, REFUSE), Quotas(store, ALLOW)
        await granted(strict, entry)
        server.kill()
        error = await refused(strict, entry)
        assert (error.code, error.origin) == (Code.UNAVAILABLE, "store")
        assert error.message.startswith("the key's limits cannot be checked: ")
        assert await strict.reserve(free, 1, soon()) is None
        assert [await lenient.reserve(entry, 1, soon()) for _ in range(3)] == [None] * 3
        assert caplog.text.count("requests go on without limits") == 1
        server.start()
        await granted(strict, entry)
        await granted(lenient, entry)
        assert (await ledger_of(store, entry)).day_tokens == 3
        await store.close()


async def test_what_cannot_be_settled_is_complained_of_and_stays_as_it_was_reserved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = key_with(tokens_per_day=100)
    with redis_server(tmp_path) as server:
        store = Redis(RedisConfig(url=server.url), None, 2, time.time)
        quotas = Quotas(store, REFUSE)
        reservations = [await granted(quotas, entry, 30) for _ in range(2)]
        server.kill()
        await asyncio.gather(*(quotas.settle(reservation, 10) for reservation in reservations))
        assert caplog.text.count("a reservation stays unsettled") == 1
        server.start()
        assert (await ledger_of(store, entry)).day_tokens == 60
        await store.close()


async def test_a_refusal_by_a_failing_store_leaves_no_work(tmp_path: Path) -> None:
    entry = key_with(requests_per_minute=10)
    with redis_server(tmp_path) as server:
        store = Redis(RedisConfig(url=server.url), None, 2, time.time)
        quotas = Quotas(store, REFUSE)
        await granted(quotas, entry)
        server.kill()
        for _ in range(5):
            await refused(quotas, entry)
        assert len(quotas._afterwards._tasks) == 1, "only the first had been given to the store"
        server.start()
        await quotas.close()
        assert len((await ledger_of(store, entry)).held) == 1
        await store.close()


async def test_a_reservation_that_is_written_after_the_store_was_given_up_is_given_back() -> None:
    store, entry = Hanging(), key_with(max_in_flight=1, tokens_per_day=100)
    quotas = Quotas(Guarded(store, SOON, retry_seconds=0), REFUSE)
    await quotas.settle(await granted(quotas, entry), 0)
    store.working.clear()
    assert (await refused(quotas, entry, 60)).code is Code.UNAVAILABLE
    store.working.set()
    await quotas.close()
    assert store.calls["put"] == 4, "the late reservation has been written, and settled"
    ledger = await ledger_of(store, entry)
    assert (ledger.day_tokens, ledger.held) == (0, {})


@pytest.mark.parametrize("leaves", ["before it is written", "before it is acknowledged"])
async def test_a_caller_that_leaves_meanwhile_leaves_nothing_behind(leaves: str, redis: RedisServer) -> None:
    entry = key_with(max_in_flight=1, tokens_per_day=10)
    async with relay_to(redis.port) as relay:
        store = Redis(RedisConfig(url=relay.url), None, WAIT, time.time)
        quotas = Quotas(store, REFUSE)
        if leaves == "before it is acknowledged":
            await quotas.settle(await granted(quotas, entry, 10), 0)
        while not relay.asked.empty():
            relay.asked.get_nowait()
        relay.answering.clear()
        leaving = asyncio.create_task(quotas.reserve(entry, 10, soon()))
        await relay.asked.get()
        leaving.cancel()
        relay.answering.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await granted(quotas, entry, 10)
        await quotas.close()
        await store.close()


async def test_a_caller_that_leaves_a_store_that_does_not_answer_leaves_nothing_behind(redis: RedisServer) -> None:
    entry = key_with(max_in_flight=1, tokens_per_day=10)
    async with relay_to(redis.port) as relay:
        store = Redis(RedisConfig(url=relay.url), None, 1, time.time)
        quotas = Quotas(store, REFUSE)
        await quotas.settle(await granted(quotas, entry, 10), 0)
        while not relay.asked.empty():
            relay.asked.get_nowait()
        relay.answering.clear()
        leaving = asyncio.create_task(quotas.reserve(entry, 10, soon()))
        await relay.asked.get()  # the reservation is on its way, and nobody will hear that it was made
        leaving.cancel()
        await relay.asked.get()  # another look
        relay.answering.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await granted(quotas, entry, 10)
        await quotas.close()
        await store.close()
