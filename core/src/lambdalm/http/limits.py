"""What one HTTP hop takes on, as config: the `limits` of its YAML file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from lambdalm.http.hosts import names

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Bytes = Annotated[int, Meta(ge=1)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests, connections, bytes and seconds. The file `config.yaml` of each HTTP hop says what each is for."""

    max_in_flight: Annotated[int, Meta(ge=1, le=10000)] = 64
    max_connections: Annotated[int, Meta(ge=1, le=60000)] = 4096
    header_bytes: Bytes = 16 * 1024
    body_bytes: Bytes = 1024 * 1024
    header_seconds: Seconds = 10
    body_seconds: Seconds = 30
    write_seconds: Seconds = 60
    idle_seconds: Seconds = 75
    default_timeout: Seconds = 120
    max_timeout: Seconds = 900
    drain_pause: Annotated[float, Meta(ge=0, le=86400)] = 0
    grace: Annotated[float, Meta(ge=0, le=86400)] = 30
    allowed_hosts: str | None = None

    def __post_init__(self) -> None:
        names(self.allowed_hosts)
