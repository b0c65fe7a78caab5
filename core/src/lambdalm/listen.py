"""Where a server listens, and the rule that loopback is the default."""

from __future__ import annotations

import ipaddress
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from lambdalm.credentials import read_secret

Port = Annotated[int, Meta(ge=0, le=65535)]
Workers = Annotated[int, Meta(ge=1, le=256)]
"""How many processes share the port of a server (`lambdalm.workers`)."""


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Host and port of a server. Beyond loopback only with `allow_public`, since nothing asks who is calling."""

    host: str
    port: Port
    allow_public: bool = False

    advice: ClassVar[str] = ""
    """What else one can do than to allow it."""

    @property
    def guarded(self) -> bool:
        """Whether callers have to say who they are."""
        return False

    def __post_init__(self) -> None:
        if not (self.allow_public or self.guarded or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} can be reached from other machines and nobody is asked who they are: "
                f"{self.advice}set allow_public to true if that is meant, or listen on 127.0.0.1"
            )

    @property
    def address(self) -> str:
        """As `host:port`, an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class GuardedListen(Listen, frozen=True, forbid_unknown_fields=True):
    """The same for a server that can ask for a bearer token; with one, it may listen anywhere."""

    advice = "set token_file, "

    token: str | None = None
    token_file: str | None = None

    @property
    def guarded(self) -> bool:
        return self.token is not None or self.token_file is not None

    def secret(self) -> str | None:
        """The token, None where nobody is asked; raises `LlmError(FAILED_PRECONDITION)` where it cannot be had."""
        return read_secret("listen.token", self.token, self.token_file)


def check_port(workers: int, *listens: Listen) -> None:
    """Raises ValueError where several workers are to share a port that is not named."""
    if workers > 1 and any(listen.port == 0 for listen in listens):
        raise ValueError("listen.port is 0 and workers more than 1: they share one port, so give it a number")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than localhost counts as public."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
