"""The config of the RESTful proxy, as `config.yaml` explains it key by key."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from lambdalm.http.limits import Limits
from lambdalm.listen import Listen, Workers, check_port
from lambdalm.logs import LogConfig
from restful_proxy.tls import TlsConfig


class GrpcConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gRPC proxy that requests go to."""

    target: Annotated[str, Meta(pattern=r"^.+:[0-9]+$")]
    keepalive_seconds: Annotated[float, Meta(ge=10)] = 10
    max_message_bytes: Annotated[int, Meta(ge=1)] = 4 * 1024 * 1024
    tls: TlsConfig = TlsConfig()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of `config.yaml`."""

    listen: Listen
    grpc: GrpcConfig
    workers: Workers = 1
    limits: Limits = Limits()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        check_port(self.workers, self.listen)
