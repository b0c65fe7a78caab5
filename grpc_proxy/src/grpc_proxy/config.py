"""The config of the gRPC proxy, as `config.yaml` explains it key by key. A module's own section is defined there."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from yarl import URL

from grpc_proxy.auth import AuthConfig
from grpc_proxy.bridge import BridgeConfig
from grpc_proxy.callers import StickyConfig
from grpc_proxy.dialects import DIALECTS, Dialect
from grpc_proxy.keys import KeysConfig
from grpc_proxy.quotas import QuotasConfig
from grpc_proxy.routing import RoutingConfig
from grpc_proxy.sessions import SessionsConfig
from grpc_proxy.store.table import StoreConfig
from grpc_proxy.tls import TlsConfig
from lambdalm.chat import Name
from lambdalm.listen import Listen, Port, Workers, check_port, is_loopback
from lambdalm.logs import LogConfig

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[int, Meta(ge=1)]
UpstreamName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class GrpcListen(Listen, frozen=True, forbid_unknown_fields=True):
    """Where gRPC is served. Whether that may be reached from elsewhere, the config as a whole says: keys guard it."""

    host: str = "127.0.0.1"
    port: Port = 50051

    @property
    def guarded(self) -> bool:
        return True


class UpstreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server that requests go to, what it speaks, and how the proxy proves to it who asks.

    `url` has no password in it: it ends up in logs and errors. Several, separated by commas, are as many upstreams that
    differ in nothing else. `model` is for requests that name none; `models`, if given, are all that it serves.
    """

    url: Annotated[str, Meta(pattern=r"^https?://[^@\s?#,]+(, *https?://[^@\s?#,]+)*$")]
    dialect: Annotated[str, Meta(pattern=f"^({'|'.join(DIALECTS)})$")] = "query"
    model: Name | None = None
    models: tuple[Name, ...] = ()
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1
    max_in_flight: Count = 60
    queue: Annotated[int, Meta(ge=0)] = 1024
    auth: AuthConfig = AuthConfig()
    connect_seconds: Seconds = 5
    check_seconds: Seconds = 1
    check_timeout: Seconds = 5

    def __post_init__(self) -> None:
        for one in self.each():
            if not URL(one.url).host:  # which raises ValueError for a host or port that cannot be
                raise ValueError(f"url: {one.url} names no host")
            one.speak()

    def each(self) -> list[UpstreamConfig]:
        """One for each of its URLs."""
        urls = self.url.replace(" ", "").split(",")
        if len(urls) == 1:
            return [self]
        return [msgspec.structs.replace(self, url=url) for url in urls]

    def speak(self) -> Dialect:
        """The dialect, for this url."""
        return DIALECTS[self.dialect](self.url)


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one server takes on."""

    max_in_flight: Count = 4096
    max_detached_per_owner: Annotated[int, Meta(ge=0)] = 4
    max_message_bytes: Count = 4 * 1024 * 1024
    default_timeout: Seconds = 120
    max_timeout: Seconds = 900
    drain_pause: Annotated[float, Meta(ge=0, le=86400)] = 0
    grace: Annotated[float, Meta(ge=0, le=86400)] = 30


class ConnectionsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What clients may hold open, of one server process."""

    max: Count = 4096
    max_streams: Count = 4096
    handshake_seconds: Seconds = 10
    max_age_seconds: Annotated[float, Meta(ge=1, le=86400)] = 300


class StreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How answers are passed on."""

    heartbeat_seconds: Seconds = 15
    write_seconds: Seconds = 60
    frames_per_second: Count = 12000


class KeepaliveConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """HTTP/2 pings."""

    time_ms: Milliseconds = 10000
    timeout_ms: Milliseconds = 5000
    permit_without_calls: bool = True
    min_ping_interval_ms: Milliseconds = 5000
    max_pings_without_data: Annotated[int, Meta(ge=0)] = 0
    enable_http2: bool = True

    def __post_init__(self) -> None:
        if not self.enable_http2:
            raise ValueError("enable_http2 is false (GRPC_ENABLE_HTTP2), but gRPC is HTTP/2: there is nothing to serve")


class ProxyLogConfig(LogConfig, frozen=True, forbid_unknown_fields=True):
    """The section `log`; of a prompt so many characters are logged, none with 0."""

    prompt_chars: Annotated[int, Meta(ge=0, le=64)] = 64


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of `config.yaml`."""

    upstreams: Annotated[dict[UpstreamName, UpstreamConfig], Meta(min_length=1)]
    listen: GrpcListen = GrpcListen()
    workers: Workers = 1
    routing: RoutingConfig = RoutingConfig()
    sticky: StickyConfig = StickyConfig()
    sessions: SessionsConfig = SessionsConfig()
    store: StoreConfig = StoreConfig()
    keys: KeysConfig = KeysConfig()
    quotas: QuotasConfig = QuotasConfig()
    limits: LimitsConfig = LimitsConfig()
    stream: StreamConfig = StreamConfig()
    connections: ConnectionsConfig = ConnectionsConfig()
    keepalive: KeepaliveConfig = KeepaliveConfig()
    tls: TlsConfig = TlsConfig()
    bridge: BridgeConfig = BridgeConfig()
    log: ProxyLogConfig = ProxyLogConfig()

    def __post_init__(self) -> None:
        self.store.check_workers(self.workers)
        check_port(self.workers, self.listen)
        if not (self.listen.allow_public or self.keys.file is not None or is_loopback(self.listen.host)):
            raise ValueError(
                f"listen.host {self.listen.host} can be reached from other machines and nobody is asked who they are: "
                "set keys.file (API_KEYS_FILE), or allow_public to true if that is meant, or listen on 127.0.0.1"
            )

    @property
    def is_open(self) -> bool:
        """Whether other machines may call without saying who they are."""
        return self.keys.file is None and not is_loopback(self.listen.host)

    def each_upstream(self) -> dict[str, UpstreamConfig]:
        """The upstreams by name; those of a list of URLs are numbered."""
        found: dict[str, UpstreamConfig] = {}
        for name, config in self.upstreams.items():
            ones = config.each()
            for number, one in enumerate(ones, 1):
                found[name if len(ones) == 1 else f"{name}-{number}"] = one
        return found
