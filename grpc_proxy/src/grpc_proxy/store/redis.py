"""Records in Redis (or Valkey), which proxies on several machines share.

Theory of operation. A record is a hash; a sorted set of each owner has the names, by when they expire. What reads and
then writes is one Lua script, so that nothing comes between. All keys of an owner have one hash tag: in a cluster they
lie on one node. What has expired is judged by the proxy's clock; Redis's own expiry only clears away, some time later.

A command once sent is always read to its answer, whoever has left by then: a connection given back with an answer
still to come would hand it to the next caller (OpenAI, March 2023). Nothing is sent twice.

How lasting "acknowledged" is, Redis is told by its operator: see `appendonly` and `appendfsync`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)

from grpc_proxy.store.base import Key, Listed, Record
from lambdalm.errors import Code, LlmError

if TYPE_CHECKING:
    from grpc_proxy.store.table import RedisConfig

T = TypeVar("T")

_SLACK_SECONDS = 60.0  # after its expiry, until Redis forgets a record

# Its version is compared with a letter before it, so that none (nil in Lua) is never taken for an empty one.
_PUT = """
local held = redis.call('HMGET', KEYS[1], 'version', 'expires')
local living = held[1] and tonumber(held[2]) > tonumber(ARGV[2])
if (living and 'v' .. held[1] or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'value', ARGV[4], 'summary', ARGV[5], 'expires', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[8])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[7]) then redis.call('PEXPIRE', KEYS[2], ARGV[7]) end
return 1
"""

_DELETE = """
local expires = redis.call('HGET', KEYS[1], 'expires')
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
return expires and tonumber(expires) > tonumber(ARGV[1]) and 1 or 0
"""


class Redis:
    """`seconds` is what one command may take, and each of what comes before it (a connection)."""

    name = "redis"
    max_value_bytes: int | None = None

    def __init__(self, config: RedisConfig, password: str | None, seconds: float, clock: Callable[[], float]) -> None:
        self._url = config.url
        self._clock = clock
        # Any: redis-py's types are unions over all the ways to set it up.
        self._client: Any = redis.asyncio.Redis.from_pool(_pool(config, password, seconds))
        self._put = self._client.register_script(_PUT)
        self._delete = self._client.register_script(_DELETE)
        self._running: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Nothing: the first command connects."""

    async def get(self, key: Key) -> Record | None:
        fields = ["value", "version", "summary", "expires"]
        value, version, summary, expires = await self._run(self._client.hmget(_record_key(*key), fields))
        if expires is None or float(expires) <= self._clock():
            return None
        return Record(value, version.decode(), summary, float(expires))

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        now = self._clock()
        arguments: list[Any] = [
            "" if after is None else f"v{after}",
            repr(now),
            record.version,
            record.value,
            record.summary,
            repr(record.expires),
            # A length of time and no date: Redis's clock may be another.
            int(max(record.expires - now + _SLACK_SECONDS, 1.0) * 1000),
            key.name,
        ]
        return bool(await self._run(self._put(keys=_keys(key), args=arguments)))

    async def delete(self, key: Key) -> bool:
        return bool(await self._run(self._delete(keys=_keys(key), args=[repr(self._clock()), key.name])))

    async def list(self, owner: str, limit: int) -> Sequence[Listed]:
        return await self._run(self._list(owner, limit, self._clock()))

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running)
        await self._client.aclose()

    async def _list(self, owner: str, limit: int, now: float) -> Sequence[Listed]:
        names = await self._client.zrevrangebyscore(_names_key(owner), "+inf", f"({now!r}", start=0, num=limit)
        if not names:
            return []
        async with self._client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(_record_key(owner, name.decode()), ["summary", "expires"])
            rows = await pipeline.execute()
        return [
            Listed(name.decode(), summary, float(expires))
            for name, (summary, expires) in zip(names, rows, strict=True)
            if expires is not None  # else it was deleted meanwhile
        ]

    async def _run(self, command: Coroutine[Any, Any, T]) -> T:
        """What the command gives; it goes on to its end also where the caller does not wait for it."""
        task = asyncio.create_task(command)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except (RedisError, OSError) as error:
            raise _failure(error, self._url) from None


def _pool(config: RedisConfig, password: str | None, seconds: float) -> redis.asyncio.BlockingConnectionPool:
    tls: dict[str, Any] = {}
    if config.url.startswith("rediss:"):
        tls = {"ssl_ca_certs": config.ca_file}
    return redis.asyncio.BlockingConnectionPool.from_url(
        config.url,
        username=config.username,
        password=password,
        max_connections=config.max_connections,
        timeout=seconds,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,  # it would be told to the server in two more commands
        **tls,
    )


def _keys(key: Key) -> Sequence[str]:
    return [_record_key(*key), _names_key(key.owner)]


def _record_key(owner: str, name: str) -> str:
    return f"{_prefix(owner)}:record:{name}"


def _names_key(owner: str) -> str:
    return f"{_prefix(owner)}:names"


def _prefix(owner: str) -> str:
    # Quoted: with a brace or a colon in it, one owner's keys could be those of another.
    return f"lambdalm:{{{quote(owner, safe='')}}}"


def _failure(error: RedisError | OSError, url: str) -> LlmError:
    """Redis's own words are left out: there is no telling what of ours it repeats."""
    if isinstance(error, OutOfMemoryError):
        return LlmError(Code.RESOURCE_EXHAUSTED, f"{url} is full: raise its maxmemory", origin="store")
    return LlmError(Code.UNAVAILABLE, f"{url} {_why(error)}", origin="store")


def _why(error: RedisError | OSError) -> str:
    if isinstance(error.__context__, ssl.SSLError):
        return "has no certificate that is trusted here: see store.redis.ca_file"
    for kind, why in _WHY.items():
        if isinstance(error, kind):
            return why
    return f"refused: {type(error).__name__}"


_WHY: dict[type[Exception], str] = {
    AuthenticationError: "refused the password: set store.redis.password_file, and username if it wants one",
    NoPermissionError: "does not allow this user what the store needs: see its ACL",
    BusyLoadingError: "is still loading",
    ReadOnlyError: "is a replica: name the primary in store.redis.url",
    redis.exceptions.TimeoutError: "did not answer in time",
    redis.exceptions.ConnectionError: "cannot be reached",
    OSError: "cannot be reached",
}
