"""What the stores do when what they store in stops, hangs, fills up or is killed."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import apsw
import pytest
import trustme
from structlog.testing import capture_logs

from grpc_proxy.store.base import Key, Record, Store
from grpc_proxy.store.guard import Guarded, ended_in
from grpc_proxy.store.redis import Redis
from grpc_proxy.store.sqlite import Sqlite
from grpc_proxy.store.table import DynamoDbConfig, RedisConfig, StoreConfig, make_store
from lambdalm.errors import Code, LlmError

from .store_program import COUNTER, numbered
from .stores import LATER, Clock, RedisServer, Relay, redis_server, relay_to

PROGRAM = [sys.executable, str(Path(__file__).with_name("store_program.py"))]
PATIENT = 30.0  # seconds for one operation, where it should succeed
SHORT = 1.0  # where it must not
SECRET = "hunter2-canary"


class Stopwatch:
    """Seconds of the monotonic clock, as a test wants them."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def relay(server: RedisServer) -> AsyncIterator[Relay]:
    async with relay_to(server.port) as relay:
        yield relay


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stopwatch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
async def redis(relay: Relay, clock: Clock) -> AsyncIterator[Store]:
    store = Redis(RedisConfig(url=relay.url, max_connections=4), None, PATIENT, clock)
    yield store
    relay.answering.set()
    await store.close()


@pytest.fixture
async def guarded(redis: Store, stopwatch: Stopwatch) -> Guarded:
    return Guarded(redis, SHORT, retry_seconds=1.0, monotonic=stopwatch)


def record(clock: Clock, value: bytes = b"text", version: str = "1") -> Record:
    return Record(value, version, b"", clock() + LATER)


async def refusal(store: Store, key: Key) -> LlmError:
    with pytest.raises(LlmError) as raised:
        await store.get(key)
    assert raised.value.origin == "store"
    return raised.value


A, B = Key("alice", "n"), Key("bob", "n")


async def test_nobody_gets_the_answer_to_a_command_whose_caller_left(redis: Store, relay: Relay, clock: Clock) -> None:
    for key in (A, B):
        await redis.put(key, record(clock, key.owner.encode()), None)
    relay.connections = 0
    for _ in range(20):
        relay.answering.clear()
        while not relay.asked.empty():
            relay.asked.get_nowait()
        gets = [asyncio.create_task(redis.get(A)) for _ in range(4)]  # one for each connection there may be
        for _ in gets:
            await relay.asked.get()
        for get in gets:
            get.cancel()
        assert all(
            isinstance(left, asyncio.CancelledError) for left in await asyncio.gather(*gets, return_exceptions=True)
        )
        next_ones = [asyncio.create_task(redis.get(B)) for _ in range(8)]
        await asyncio.sleep(0)  # they queue for a connection now
        relay.answering.set()
        for held in await asyncio.gather(*next_ones):
            assert held is not None
            assert held.value == b"bob"
    assert relay.connections <= 3, "those who leave must not cost a connection"


async def test_a_put_whose_caller_left_is_done(redis: Store, relay: Relay, clock: Clock) -> None:
    await redis.put(B, record(clock), None)  # so that the script is known
    relay.answering.clear()
    while not relay.asked.empty():
        relay.asked.get_nowait()
    put = asyncio.create_task(redis.put(A, record(clock), None))
    await relay.asked.get()
    put.cancel()
    relay.answering.set()
    await asyncio.wait({put})
    assert await redis.get(A) == record(clock)


async def test_a_redis_that_stopped_is_unavailable_and_is_back_when_it_is(
    redis: Store, server: RedisServer, clock: Clock, stopwatch: Stopwatch
) -> None:
    guarded = Guarded(redis, PATIENT, retry_seconds=1.0, monotonic=stopwatch)
    await guarded.put(A, record(clock), None)
    with capture_logs() as logs:
        server.kill()
        for _ in range(3):
            assert (await refusal(guarded, A)).code is Code.UNAVAILABLE
            stopwatch.now += 1
        assert guarded.why is not None
        server.start()
        assert await guarded.get(A) == record(clock), "what was acknowledged before the kill is still there"
        assert await guarded.put(A, record(clock, version="2"), "1") is True, "though it knows the script no more"
        assert guarded.why is None
    assert [line["event"] for line in logs] == ["the store is down", "the store is back"]


async def test_a_redis_that_hangs_holds_nobody_up_for_long(
    guarded: Guarded, server: RedisServer, relay: Relay, clock: Clock, stopwatch: Stopwatch
) -> None:
    await guarded.put(A, record(clock), None)
    server.pause()
    first = await refusal(guarded, A)  # which only its limit can end
    assert first.code is Code.UNAVAILABLE
    assert "did not answer in 1 s" in first.message
    while not relay.asked.empty():
        relay.asked.get_nowait()
    for _ in range(10):
        again = await refusal(guarded, A)
        assert again.message == first.message
        assert again.retry_after == 1.0
    assert relay.asked.empty(), "nobody asks while it is down"
    stopwatch.now += 1
    refused = await asyncio.gather(*(refusal(guarded, A) for _ in range(10)))
    assert {error.code for error in refused} == {Code.UNAVAILABLE}
    assert relay.asked.qsize() == 1, "one goes to see"
    server.resume()
    stopwatch.now += 1
    assert await guarded.get(A) == record(clock)
    assert guarded.why is None


async def test_a_probe_whose_caller_left_does_not_bar_the_next(
    guarded: Guarded, server: RedisServer, relay: Relay, clock: Clock, stopwatch: Stopwatch
) -> None:
    await guarded.put(A, record(clock), None)
    server.pause()
    await refusal(guarded, A)
    stopwatch.now += 1
    while not relay.asked.empty():
        relay.asked.get_nowait()
    probe = asyncio.create_task(guarded.get(A))
    await relay.asked.get()
    probe.cancel()
    server.resume()
    stopwatch.now += 1
    assert await guarded.get(A) == record(clock)


class Leaping:
    """A clock by which the process was stopped for a minute between any two looks at it."""

    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks * 60.0


async def test_time_in_which_the_process_was_stopped_counts_for_little() -> None:
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task, clock = asyncio.create_task(_awaited(answer)), Leaping()
    assert not await ended_in(task, 0.7, clock)
    assert clock.looks == 2 * 4, "each time of 60 s counts for 0.2 s"
    assert not task.done()
    waiting = asyncio.create_task(ended_in(task, 3600, Leaping()))
    answer.set_result(None)
    assert await waiting


async def _awaited(future: asyncio.Future[None]) -> None:
    await future


async def test_a_refusal_that_is_no_fault_of_the_store_does_not_take_it_down(
    stopwatch: Stopwatch, clock: Clock
) -> None:
    config = DynamoDbConfig(region="us-east-1", endpoint="http://127.0.0.1:1")
    guarded = make_store(StoreConfig(kind="dynamodb", dynamodb=config), clock)
    with pytest.raises(LlmError) as raised:
        await guarded.put(A, record(clock, bytes(500_000)), None)
    assert raised.value.code is Code.FAILED_PRECONDITION
    assert guarded.why is None
    await guarded.close()


async def test_a_dynamodb_that_cannot_be_reached_is_unavailable(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    config = DynamoDbConfig(region="us-east-1", endpoint=endpoint)
    store = make_store(StoreConfig(kind="dynamodb", dynamodb=config), clock)
    await store.open()
    error = await refusal(store, A)
    assert error.code is Code.UNAVAILABLE
    assert SECRET not in error.message
    await store.close()


async def put_megabytes(store: Store, clock: Clock) -> None:
    for n in range(100):
        await store.put(Key("o", str(n)), record(clock, bytes(1024 * 1024)), None)


async def test_a_full_redis_has_no_room_and_can_still_be_read(tmp_path: Path, clock: Clock) -> None:
    with redis_server(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        store = make_store(StoreConfig(kind="redis", redis=RedisConfig(url=server.url)), clock)
        await store.put(A, record(clock), None)
        with pytest.raises(LlmError) as raised:
            await put_megabytes(store, clock)
        assert raised.value.code is Code.RESOURCE_EXHAUSTED
        assert await store.get(A) == record(clock)
        assert await store.delete(Key("o", "0")) is True, "what makes room is allowed"
        await store.close()


async def test_a_password_opens_redis_and_is_never_told(tmp_path: Path, clock: Clock) -> None:
    with redis_server(tmp_path, "--requirepass", SECRET) as server:
        (tmp_path / "password").write_text(f"{SECRET}\n")
        right = StoreConfig(kind="redis", redis=RedisConfig(url=server.url, password_file=str(tmp_path / "password")))
        store = make_store(right, clock)
        assert await store.put(A, record(clock), None) is True
        await store.close()
        for password in (f"{SECRET}-wrong", None):
            store = make_store(StoreConfig(kind="redis", redis=RedisConfig(url=server.url, password=password)), clock)
            error = await refusal(store, A)
            assert error.code is Code.UNAVAILABLE
            assert "password" in error.message
            assert SECRET not in error.message
            await store.close()


async def test_redis_by_tls_is_believed_only_with_a_certificate_that_is_trusted(
    server: RedisServer, tmp_path: Path, clock: Clock
) -> None:
    authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with relay_to(server.port, tls) as relay:
        url = relay.url.replace("redis:", "rediss:")
        store = make_store(
            StoreConfig(kind="redis", redis=RedisConfig(url=url, ca_file=str(tmp_path / "ca.pem"))), clock
        )
        assert await store.put(A, record(clock), None) is True
        await store.close()
        store = make_store(StoreConfig(kind="redis", redis=RedisConfig(url=url)), clock)
        assert "no certificate that is trusted" in (await refusal(store, A)).message
        await store.close()


async def test_acknowledged_puts_outlive_a_killed_process(tmp_path: Path, clock: Clock) -> None:
    for turn in range(3):
        file = tmp_path / str(turn) / "db"
        acknowledged = await asyncio.to_thread(killed_while_it_writes, file)
        store = Sqlite(str(file), clock)
        await store.open()
        for n in acknowledged:
            held = await store.get(Key("o", str(n)))
            assert held is not None, f"{n} was acknowledged and is lost"
            assert held._replace(expires=0.0) == numbered(n, 3000)._replace(expires=0.0)
        await store.close()
        assert integrity(file) == "ok"


def killed_while_it_writes(file: Path) -> list[int]:
    """What the program had heard to be kept before it was killed."""
    with subprocess.Popen([*PROGRAM, "write", str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = [next(process.stdout) for _ in range(300)]
        process.kill()
        return [int(n) for n in (*said, *process.stdout)]


def integrity(file: Path) -> object:
    db = apsw.Connection(str(file))
    try:
        return db.pragma("integrity_check")
    finally:
        db.close()


async def test_processes_that_share_a_file_lose_no_work(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "db"  # which they also make at the same time
    workers = [await asyncio.create_subprocess_exec(*PROGRAM, "count", str(file), "100") for _ in range(3)]
    assert [await worker.wait() for worker in workers] == [0, 0, 0]
    store = Sqlite(str(file), clock)
    await store.open()
    held = await store.get(COUNTER)
    await store.close()
    assert held is not None
    assert held.value == b"300"


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """The command before a command: it has a 2 MiB disk at `tmp_path`, which only it sees."""
    mount = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", mount, str(tmp_path)]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no user namespaces here: {tried.stderr.strip()}")
    return command


def test_a_full_disk_loses_nothing_and_ends_when_there_is_room(small_disk: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*small_disk, *PROGRAM, "fill", str(tmp_path / "db")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    saw = json.loads(done.stdout)
    assert saw["refusal"] == Code.RESOURCE_EXHAUSTED
    assert "the disk is full" in saw["why"]
    assert saw["kept"] > 20
    assert saw["read"] == [True] * saw["kept"]
    assert saw["listed"] == saw["kept"]
    assert saw["together"] == [True, Code.RESOURCE_EXHAUSTED] * 2
    assert saw["integrity"] == saw["integrity after"] == "ok"
    assert saw["put after"] is True


@pytest.mark.parametrize("what", ["newer", "text", "folder", "under a file"])
async def test_a_file_that_is_no_store_of_ours_is_refused_at_the_start(what: str, tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "db"
    if what == "newer":
        apsw.Connection(str(file)).pragma("user_version", 2)
    elif what == "text":
        file.write_text("no database at all\n" * 100)
    elif what == "folder":
        file.mkdir()
    else:
        file.touch()
        file /= "db"
    store = Sqlite(str(file), clock)
    with pytest.raises(LlmError) as raised:
        await store.open()
    assert raised.value.code is Code.FAILED_PRECONDITION
    assert str(file) in raised.value.message
    await store.close()


async def test_a_file_that_another_process_holds_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    store = Sqlite(str(tmp_path / "db"), clock)
    await store.open()
    holder = apsw.Connection(str(tmp_path / "db"))
    holder.execute("BEGIN IMMEDIATE")
    put = asyncio.create_task(store.put(A, record(clock), None))
    for _ in range(3):  # the first may come before the put has begun
        assert await store.get(A) is None
    assert not put.done(), "who only reads does not wait for those who write"
    with pytest.raises(LlmError, match="another process holds") as raised:
        await put
    assert raised.value.code is Code.UNAVAILABLE
    put = asyncio.create_task(store.put(A, record(clock), None))
    holder.execute("COMMIT")
    assert await put is True
    await store.close()
    holder.close()
