"""The config of the gRPC proxy, as `config.yaml` explains it key by key."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from yarl import URL

from grpc_proxy.auth import AuthConfig
from grpc_proxy.dialects import DIALECTS, Dialect
from lambdalm.listen import Listen
from lambdalm.logs import LogConfig

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[int, Meta(ge=1)]


class UpstreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server that requests go to, what it speaks, and how the proxy proves to it who asks.

    `url` has no password in it: it ends up in logs and errors. `model` is for requests that name none.
    """

    url: Annotated[str, Meta(pattern=r"^https?://[^@\s?#]+$")]
    dialect: Annotated[str, Meta(pattern=f"^({'|'.join(DIALECTS)})$")] = "query"
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    auth: AuthConfig = AuthConfig()
    connect_seconds: Seconds = 5
    check_seconds: Seconds = 1
    check_timeout: Seconds = 5
    max_connections: Count = 4096

    def __post_init__(self) -> None:
        if not URL(self.url).host:  # which raises ValueError for a host or port that cannot be
            raise ValueError(f"url: {self.url} names no host")
        self.speak()

    def speak(self) -> Dialect:
        """The dialect, for this url."""
        return DIALECTS[self.dialect](self.url)


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one server takes on."""

    max_in_flight: Count = 4096
    max_message_bytes: Count = 4 * 1024 * 1024
    default_timeout: Seconds = 120
    max_timeout: Seconds = 900
    grace: Annotated[float, Meta(ge=0, le=86400)] = 30


class StreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How answers are passed on."""

    heartbeat_seconds: Seconds = 15
    write_seconds: Seconds = 60
    frames_per_second: Count = 8000


class KeepaliveConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """HTTP/2 pings."""

    time_ms: Milliseconds = 30000
    timeout_ms: Milliseconds = 10000
    permit_without_calls: bool = True
    min_ping_interval_ms: Milliseconds = 10000
    max_pings_without_data: Annotated[int, Meta(ge=0)] = 0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of `config.yaml`."""

    listen: Listen
    upstream: UpstreamConfig
    limits: LimitsConfig = LimitsConfig()
    stream: StreamConfig = StreamConfig()
    keepalive: KeepaliveConfig = KeepaliveConfig()
    log: LogConfig = LogConfig()
