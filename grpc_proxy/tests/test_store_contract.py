"""One set of tests that every store passes, each in front of what it really stores in."""

from __future__ import annotations

import asyncio
import stat
import string
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import apsw
import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from grpc_proxy.store import dynamodb, memory, sqlite
from grpc_proxy.store.base import Key, Listed, Record, Store
from grpc_proxy.store.table import DynamoDbConfig, RedisConfig, SqliteConfig, StoreConfig, make_store
from lambdalm.errors import Code, LlmError

from .stores import LATER, Clock, RedisServer, dynamodb_server, redis_server

KINDS = ("sqlite", "redis", "dynamodb", "memory")
ALL_BYTES = bytes(range(256))
MEBIBYTE = 1024 * 1024

Connect = Callable[[], Awaitable[Store]]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def dynamo() -> Iterator[DynamoDbConfig]:
    with dynamodb_server() as config:
        dynamodb.create_table(config)
        yield config


def new_config(kind: str, request: pytest.FixtureRequest, folder: Path) -> StoreConfig:
    sections: dict[str, object] = {"kind": kind, "operation_seconds": 30, "sqlite": SqliteConfig(str(folder / "db"))}
    if kind == "redis":
        sections["redis"] = RedisConfig(url=request.getfixturevalue("redis").url)
    if kind == "dynamodb":
        sections["dynamodb"] = request.getfixturevalue("dynamo")
    return msgspec.convert(sections, StoreConfig)


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    return new_config(request.param, request, tmp_path)


@pytest.fixture(params=[kind for kind in KINDS if kind != "memory"])
def lasting(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    return new_config(request.param, request, tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def owner() -> str:
    return uuid.uuid4().hex


@pytest.fixture
async def store(config: StoreConfig, clock: Clock) -> AsyncIterator[Store]:
    store = make_store(config, clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def connect(lasting: StoreConfig, clock: Clock) -> AsyncIterator[Connect]:
    """Opens the same store once more, as another proxy would."""
    opened = []

    async def connect() -> Store:
        store = make_store(lasting, clock)
        opened.append(store)
        await store.open()
        return store

    yield connect
    for store in opened:
        await store.close()


def record(
    clock: Clock, version: str = "1", value: bytes = b"text", *, summary: bytes = b"", last: float = LATER
) -> Record:
    return Record(value, version, summary, clock() + last)


async def test_a_record_is_read_back_as_it_was_put(store: Store, clock: Clock, owner: str) -> None:
    for name, kept in {
        "bytes": Record(ALL_BYTES, "v-1", ALL_BYTES[::-1], clock() + LATER),
        "empty": Record(b"", "1", b"", clock() + LATER),
        "a fraction": Record(b"x", "1", b"", clock() + 0.1 + 0.2),
    }.items():
        assert await store.put(Key(owner, name), kept, None) is True
        assert await store.get(Key(owner, name)) == kept


async def test_what_is_not_there_is_not_found(store: Store, clock: Clock, owner: str) -> None:
    assert await store.get(Key(owner, "none")) is None
    assert await store.delete(Key(owner, "none")) is False
    assert list(await store.list(owner, 10)) == []
    assert await store.put(Key(owner, "none"), record(clock), "1") is False
    assert await store.get(Key(owner, "none")) is None


async def test_only_who_has_read_the_newest_version_may_replace_it(store: Store, clock: Clock, owner: str) -> None:
    key = Key(owner, "a")
    first, second, other = record(clock, "1"), record(clock, "2"), record(clock, "3")
    assert await store.put(key, first, None) is True
    for wrong in (None, "2", "", "v1", "1 "):
        assert await store.put(key, other, wrong) is False
        assert await store.get(key) == first
    assert await store.put(key, second, "1") is True
    assert await store.put(key, other, "1") is False
    assert await store.get(key) == second


async def test_a_record_made_anew_is_not_the_old_one(store: Store, clock: Clock, owner: str) -> None:
    key = Key(owner, "a")
    await store.put(key, record(clock, "1"), None)
    assert await store.delete(key) is True
    assert await store.delete(key) is False
    assert await store.get(key) is None
    assert await store.put(key, record(clock, "2"), "1") is False
    assert await store.put(key, record(clock, "2"), None) is True
    assert await store.put(key, record(clock, "3"), "1") is False


async def test_of_fifty_writers_at_once_one_wins(store: Store, clock: Clock, owner: str) -> None:
    key = Key(owner, "raced")
    after = None
    for turn in range(3):
        versions = [f"{turn}-{writer}" for writer in range(50)]
        verdicts = await asyncio.gather(*(store.put(key, record(clock, version), after) for version in versions))
        assert verdicts.count(True) == 1
        kept = await store.get(key)
        assert kept is not None
        assert kept.version == versions[verdicts.index(True)]
        after = kept.version


async def test_of_writers_in_two_proxies_one_wins(connect: Connect, clock: Clock, owner: str) -> None:
    stores = [await connect(), await connect()]
    puts = [stores[n % 2].put(Key(owner, "raced"), record(clock, str(n)), None) for n in range(50)]
    assert (await asyncio.gather(*puts)).count(True) == 1


async def test_no_work_is_lost_between_writers_that_try_again(connect: Connect, clock: Clock, owner: str) -> None:
    stores = [await connect(), await connect()]
    key = Key(owner, "counter")

    async def add(n: int) -> None:
        while True:
            held = await stores[n % 2].get(key)
            count = int(held.value) + 1 if held else 1
            new = record(clock, uuid.uuid4().hex, str(count).encode())
            if await stores[n % 2].put(key, new, held.version if held else None):
                return

    await asyncio.gather(*(add(n) for n in range(12)))
    held = await stores[0].get(key)
    assert held is not None
    assert held.value == b"12"


async def test_a_record_whose_time_is_up_is_gone_for_every_call(store: Store, clock: Clock, owner: str) -> None:
    names = [Key(owner, name) for name in ("read", "deleted", "replaced", "made anew")]
    for key in names:
        await store.put(key, record(clock, last=10), None)
    await store.put(Key(owner, "stays"), record(clock, last=11), None)
    clock.now += 9.5
    assert await store.get(names[0]) is not None
    clock.now += 0.5
    assert await store.get(names[0]) is None
    assert await store.delete(names[1]) is False
    assert await store.put(names[2], record(clock, "2"), "1") is False
    assert [listed.name for listed in await store.list(owner, 10)] == ["stays"]
    assert await store.put(names[3], record(clock, "2"), None) is True
    assert await store.get(names[3]) == record(clock, "2")


async def test_a_record_that_is_put_again_lives_on(store: Store, clock: Clock, owner: str) -> None:
    key = Key(owner, "a")
    await store.put(key, record(clock, "1", last=10), None)
    clock.now += 9
    await store.put(key, record(clock, "2", last=10), "1")
    clock.now += 9
    assert await store.get(key) is not None
    assert len(await store.list(owner, 10)) == 1


async def test_a_list_has_the_owners_records_the_longest_lived_first(store: Store, clock: Clock, owner: str) -> None:
    for name, last in {"b": 20.0, "c": 30.0, "a": 10.0, "gone": 40.0}.items():
        await store.put(Key(owner, name), record(clock, summary=name.encode(), last=last), None)
    await store.put(Key(f"{owner}2", "theirs"), record(clock), None)
    await store.delete(Key(owner, "gone"))
    assert list(await store.list(owner, 10)) == [
        Listed("c", b"c", clock() + 30.0),
        Listed("b", b"b", clock() + 20.0),
        Listed("a", b"a", clock() + 10.0),
    ]
    assert [listed.name for listed in await store.list(owner, 2)] == ["c", "b"]


async def test_a_list_is_as_long_as_one_asks_for(store: Store, clock: Clock, owner: str) -> None:
    for n in range(120):
        await store.put(Key(owner, str(n)), record(clock, summary=b"s" * 10_000, last=10.0 + n), None)
    assert [listed.name for listed in await store.list(owner, 110)] == [str(n) for n in range(119, 9, -1)]


async def test_owners_that_look_alike_are_not_mixed_up(store: Store, clock: Clock, owner: str) -> None:
    keys = [
        *(
            Key(f"{owner}{more}", "n")
            for more in ("", "}", "{", ":", "%7D", " ", "*", "?", "\\", "'", '"', "[a]", "A", "a")
        ),
        *(Key(f"{owner}{mark}", f"b{mark}c") for mark in string.punctuation),
        *(Key(owner, name) for name in ("}:record:n", "n:names", "names", "N", " n", "n" * 256)),
        Key(f"{owner}}}:record:x", "y"),
        Key(owner, "x}:record:y"),
    ]
    assert len(set(keys)) == len(keys)
    for n, key in enumerate(keys):
        assert await store.put(key, record(clock, value=str(n).encode()), None) is True
    for n, key in enumerate(keys):
        held = await store.get(key)
        assert held is not None
        assert held.value == str(n).encode()
    for someone in {key.owner for key in keys}:
        names = {listed.name for listed in await store.list(someone, 100)}
        assert names == {key.name for key in keys if key.owner == someone}


async def test_large_values_are_kept_or_refused_with_the_limit(store: Store, clock: Clock) -> None:
    key = Key("o" * 256, uuid.uuid4().hex * 8)
    # moto counts a value as it travels, in base64; what DynamoDB itself takes is not to be seen here.
    size = MEBIBYTE if store.max_value_bytes is None else store.max_value_bytes * 3 // 4 - 1024
    large = record(clock, value=ALL_BYTES * (size // 256))
    assert await store.put(key, large, None) is True
    assert await store.get(key) == large
    if store.max_value_bytes is not None:
        with pytest.raises(LlmError) as raised:
            await store.put(key, record(clock, "2", bytes(store.max_value_bytes + 1)), "1")
        assert raised.value.code is Code.FAILED_PRECONDITION
        assert str(store.max_value_bytes) in raised.value.message
        assert await store.get(key) == large


async def test_what_one_proxy_puts_another_reads(connect: Connect, clock: Clock, owner: str) -> None:
    here, there = await connect(), await connect()
    key = Key(owner, "a")
    for turn in range(20):
        kept = record(clock, str(turn), summary=str(turn).encode())
        assert await here.put(key, kept, str(turn - 1) if turn else None) is True
        assert await there.get(key) == kept
        assert [listed.summary for listed in await there.list(owner, 1)] == [kept.summary]
        here, there = there, here
    assert await there.delete(key) is True
    assert await here.get(key) is None


async def test_a_record_outlives_its_proxy(lasting: StoreConfig, clock: Clock, owner: str) -> None:
    kept = record(clock)
    for put in (True, False):
        store = make_store(lasting, clock)
        await store.open()
        if put:
            await store.put(Key(owner, "a"), kept, None)
        assert await store.get(Key(owner, "a")) == kept
        await store.close()


async def test_a_write_whose_caller_leaves_is_finished_and_hinders_nobody(
    store: Store, clock: Clock, owner: str
) -> None:
    puts = [asyncio.create_task(store.put(Key(owner, str(n)), record(clock), None)) for n in range(20)]
    await asyncio.sleep(0)  # until they have begun
    for put in puts[::2]:
        put.cancel()
    verdicts = await asyncio.gather(*puts, return_exceptions=True)
    assert verdicts[1::2] == [True] * 10
    assert await store.put(Key(owner, "next"), record(clock), None) is True


class Against(RuleBasedStateMachine):
    """The store beside a dict, which is how it should behave."""

    names = st.sampled_from(["a", "b", "c"])
    owners = st.sampled_from(["-x", "-y"])

    def __init__(self, config: StoreConfig) -> None:
        super().__init__()
        self.clock = Clock()
        self.runner = asyncio.Runner()
        self.store = make_store(config, self.clock)
        self.run = self.runner.run
        self.prefix = uuid.uuid4().hex
        self.model: dict[Key, Record] = {}
        self.writes = 0

    @initialize()
    def open(self) -> None:
        self.run(self.store.open())

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()

    def living(self, key: Key) -> Record | None:
        held = self.model.get(key)
        return held if held and held.expires > self.clock() else None

    @rule(owner=owners, name=names, value=st.binary(max_size=40), last=st.integers(1, 30), after=st.sampled_from("rwn"))
    def put(self, owner: str, name: str, value: bytes, last: int, after: str) -> None:
        key, held = Key(self.prefix + owner, name), self.living(Key(self.prefix + owner, name))
        self.writes += 1
        # No two expire together: their order would be anyone's guess.
        new = Record(value, f"v{self.writes}", value[:5], self.clock() + last + self.writes / 1000)
        version = {"r": held and held.version, "w": "wrong", "n": None}[after]
        right = version == (held and held.version)
        assert self.run(self.store.put(key, new, version)) is right
        if right:
            self.model[key] = new

    @rule(owner=owners, name=names)
    def delete(self, owner: str, name: str) -> None:
        key = Key(self.prefix + owner, name)
        assert self.run(self.store.delete(key)) is (self.living(key) is not None)
        self.model.pop(key, None)

    @rule(owner=owners, name=names)
    def get(self, owner: str, name: str) -> None:
        key = Key(self.prefix + owner, name)
        assert self.run(self.store.get(key)) == self.living(key)

    @rule(owner=owners, limit=st.integers(1, 4))
    def list(self, owner: str, limit: int) -> None:
        living = [
            Listed(key.name, held.summary, held.expires)
            for key, held in self.model.items()
            if key.owner == self.prefix + owner and self.living(key)
        ]
        living.sort(key=lambda listed: listed.expires, reverse=True)
        assert [*self.run(self.store.list(self.prefix + owner, limit))] == living[:limit]

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds


def test_it_behaves_like_a_dict(config: StoreConfig) -> None:
    # Few examples for each run, and every run others; no deadline, since other work may hold the machine.
    class Machine(Against):
        def __init__(self) -> None:
            super().__init__(config)

    run_state_machine_as_test(Machine, settings=settings(max_examples=12, stateful_step_count=25, deadline=None))


# What each store does of its own.


async def test_sqlite_keeps_its_file_to_its_user_and_leaves_no_log_behind(tmp_path: Path) -> None:
    file = tmp_path / "not" / "yet" / "there" / "db"
    clock = Clock()
    store = sqlite.Sqlite(str(file), clock)
    await store.open()
    await store.put(Key("o", "n"), record(clock), None)
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}
    other = sqlite.Sqlite(str(file), clock)
    await other.open()
    await store.close()
    assert file.with_name("db-wal").stat().st_size == 0, "though another process still has it open"
    await other.close()
    assert [path.name for path in file.parent.iterdir()] == ["db"]


async def test_sqlite_may_be_opened_by_several_at_once_where_no_file_is_yet(tmp_path: Path, owner: str) -> None:
    clock = Clock()
    for turn in range(5):
        stores = [sqlite.Sqlite(str(tmp_path / str(turn)), clock) for _ in range(8)]
        await asyncio.gather(*(store.open() for store in stores))
        puts = [store.put(Key(owner, str(n)), record(clock), None) for n, store in enumerate(stores)]
        assert await asyncio.gather(*puts) == [True] * 8
        for store in stores:
            await store.close()


async def test_sqlite_clears_away_what_has_expired(tmp_path: Path) -> None:
    clock = Clock()
    store = sqlite.Sqlite(str(tmp_path / "db"), clock)
    await store.open()
    old = 3 * sqlite.SWEEP_RECORDS
    await asyncio.gather(*(store.put(Key("o", str(n)), record(clock, last=1), None) for n in range(old)))
    await store.close()
    clock.now += 2
    store = sqlite.Sqlite(str(tmp_path / "db"), clock)  # which has not swept yet
    await store.open()
    for n in range(4):
        await store.put(Key("o", f"new {n}"), record(clock), None)
    await store.close()
    assert apsw.Connection(str(tmp_path / "db")).execute("SELECT count(*) FROM records").get == 4


async def test_memory_lets_go_of_what_has_expired() -> None:
    clock, value = Clock(), bytes(range(200))
    store = memory.Memory(clock)
    held_here = sys.getrefcount(value)
    await store.put(Key("someone", "n"), record(clock, value=value, last=10), None)
    assert sys.getrefcount(value) > held_here
    clock.now += 100
    await store.put(Key("someone else", "n"), record(clock), None)
    assert sys.getrefcount(value) == held_here


async def test_redis_forgets_by_itself_what_has_expired(redis: RedisServer, owner: str) -> None:
    import redis.asyncio as client

    clock = Clock()
    store = make_store(StoreConfig(kind="redis", redis=RedisConfig(url=redis.url)), clock)
    await store.open()
    await store.put(Key(owner, "long"), record(clock, last=1000), None)
    await store.put(Key(owner, "short"), record(clock, last=10), None)
    await store.close()
    async with client.Redis.from_url(redis.url) as look:
        left = {key.decode().rpartition(":")[2]: await look.pttl(key) async for key in look.scan_iter(f"*{owner}*")}
    assert {name: round(ms / 100_000) for name, ms in left.items()} == {"short": 1, "long": 11, "names": 11}


async def test_dynamodbs_table_may_be_made_twice_and_is_asked_for_if_missing(dynamo: DynamoDbConfig) -> None:
    dynamodb.create_table(dynamo)
    store = make_store(StoreConfig(kind="dynamodb", dynamodb=msgspec.structs.replace(dynamo, table="missing")))
    with pytest.raises(LlmError, match="no table missing") as raised:
        await store.open()
    assert raised.value.code is Code.FAILED_PRECONDITION
    await store.close()


def test_memory_is_refused_to_several_processes() -> None:
    StoreConfig(kind="memory").check_workers(1)
    StoreConfig(kind="sqlite").check_workers(2)
    with pytest.raises(ValueError, match="memory is for one process"):
        StoreConfig(kind="memory").check_workers(2)
