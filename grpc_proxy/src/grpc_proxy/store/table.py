"""Which store there is: the section `store` of the config, and the one place that makes a store of it.

What a store needs is imported with it alone: who keeps memory in a file does without the clients of Redis and AWS.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from grpc_proxy.store.base import Store
from grpc_proxy.store.guard import Guarded
from lambdalm.credentials import read_secret

Clock = Callable[[], float]
"""Seconds since 1970."""

_REDIS_URL = r"^(rediss?://[^@\s?#/]+(/\d+)?|unix:///[^@\s?#]+)$"

_REDIS_PATIENCE = 5

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class SqliteConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `store.sqlite`. `~` in the path is the home directory."""

    path: Annotated[str, Meta(min_length=1)] = "~/.local/state/lambdalm/grpc_proxy.sqlite"


class RedisConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `store.redis`. `url` has no password in it: it ends up in logs and errors."""

    url: str = "redis://127.0.0.1:6379/0"
    username: Name | None = None
    password: str | None = None
    password_file: str | None = None
    ca_file: Annotated[str, Meta(min_length=1)] | None = None
    max_connections: Annotated[int, Meta(ge=1, le=4096)] = 64

    def __post_init__(self) -> None:
        urlsplit(self.url).port  # noqa: B018  # which raises ValueError for one that cannot be
        if re.match(_REDIS_URL, self.url) is None:
            raise ValueError(
                "url must be redis://host:port/number, rediss://… (TLS) or unix://path, without user and password: "
                "those are username (REDIS_USERNAME) and password_file (REDIS_PASSWORD_FILE)"
            )


class DynamoDbConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `store.dynamodb`. `endpoint` is for a server other than AWS's own; `threads` carry its calls."""

    table: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{3,255}$")] = "lambdalm"
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]+$")] | None = None
    endpoint: Annotated[str, Meta(pattern=r"^https?://[^@\s?#]+$")] | None = None
    threads: Annotated[int, Meta(ge=1, le=256)] = 16


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `store`: which one keeps what lasts, and how long one call of it may take."""

    kind: Literal["sqlite", "redis", "dynamodb", "memory"] = "sqlite"
    operation_seconds: Annotated[float, Meta(gt=0, le=60)] = 2
    sqlite: SqliteConfig = SqliteConfig()
    redis: RedisConfig = RedisConfig()
    dynamodb: DynamoDbConfig = DynamoDbConfig()

    def __post_init__(self) -> None:
        if self.kind == "dynamodb" and self.dynamodb.region is None:
            raise ValueError("kind dynamodb needs dynamodb.region, as us-east-1")

    def check_workers(self, workers: int) -> None:
        """Raises ValueError where so many processes could not share the store."""
        if self.kind == "memory" and workers > 1:
            raise ValueError(f"store.kind memory is for one process, and workers is {workers}: take sqlite or redis")


def make_store(config: StoreConfig, clock: Clock = time.time) -> Guarded:
    """The store, guarded; raises `LlmError(FAILED_PRECONDITION)` for what the config names and is not there.

    `clock` gives seconds since 1970; expiry is judged by it.
    """
    return Guarded(_KINDS[config.kind](config, clock), config.operation_seconds)


def _sqlite(config: StoreConfig, clock: Clock) -> Store:
    from grpc_proxy.store.sqlite import Sqlite

    return Sqlite(config.sqlite.path, clock)


def _redis(config: StoreConfig, clock: Clock) -> Store:
    from grpc_proxy.store.redis import Redis

    password = read_secret("store.redis.password", config.redis.password, config.redis.password_file)
    # Its client counts wall-clock time; it is there for connections that are dead, and Guarded limits the calls.
    return Redis(config.redis, password, _REDIS_PATIENCE * config.operation_seconds, clock)


def _dynamodb(config: StoreConfig, clock: Clock) -> Store:
    from grpc_proxy.store.dynamodb import DynamoDb

    return DynamoDb(config.dynamodb, config.operation_seconds, clock)


def _memory(config: StoreConfig, clock: Clock) -> Store:
    from grpc_proxy.store.memory import Memory

    return Memory(clock)


_KINDS: dict[str, Callable[[StoreConfig, Clock], Store]] = {
    "sqlite": _sqlite,
    "redis": _redis,
    "dynamodb": _dynamodb,
    "memory": _memory,
}
