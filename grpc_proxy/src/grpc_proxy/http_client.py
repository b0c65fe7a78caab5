"""HTTP towards upstreams: what a client is, and what an answer is to who reads it.

Nothing is retried and no redirect is followed, and no time is limited but that to connect: a call has its own budget. A
task that is cancelled while it asks closes the connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Protocol

from yarl import URL

KEPT_SECONDS = 4.0  # that an idle connection is kept: less than servers do, of which uvicorn's 5 s are the shortest
FAREWELL_SECONDS = 1.0  # for the end of a body whose answer has ended, so that its connection can be used again
_RECEIVE_BUFFER = 128 * 1024  # bytes; Linux doubles it
_WATCHED = (
    (socket.TCP_KEEPIDLE, 5),  # seconds of silence before the first probe,
    (socket.TCP_KEEPINTVL, 2),  # and between them
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 11_000),  # milliseconds in which what was sent must be acknowledged
)


class UnreachableError(Exception):
    """No connection came about; its words say why."""


class BrokenOffError(Exception):
    """The connection ended before the answer did, or what came is no HTTP."""


Gate = Callable[["asyncio.Future[None]"], None]
"""Sets the result of a future when what has come may be read: at once, or later, joined with what comes meanwhile."""


class Response(Protocol):
    """An answer whose headers have come. Each of its calls raises BrokenOffError."""

    status: int
    content_type: str
    """In small letters and without parameters; empty where there is none."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Found by their names in any case."""
        ...

    async def some(self, gate: Gate | None = None) -> bytes:
        """What has come of the body since; waits until something has and the gate opens. Empty at the body's end."""
        ...

    def close(self) -> None:
        """Give the connection back if the body has ended, or does soon and `finished` was called; else close it."""
        ...

    def finished(self) -> None:
        """All that counts of the body has been read."""
        ...


class Client(Protocol):
    """Asks servers."""

    async def ask(self, method: str, url: URL, headers: Mapping[str, str], body: bytes, connect: float) -> Response:
        """Returns when the headers have come; connecting may take `connect` seconds.

        Raises UnreachableError and BrokenOffError.
        """
        ...


Address = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]]
"""As getaddrinfo gives it."""


def watching_socket(address: Address) -> socket.socket:
    """One that notices within 11 s that the other host is gone (no RST comes then): a silent model answers TCP's
    probes."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    # What a model says ahead of a slow reader waits with the model, not in megabytes of this machine's kernel.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _WATCHED:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def reason(error: BaseException) -> str:
    """Why a connection did not come about, in a few words."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason}"
    if isinstance(cause, socket.gaierror):
        return cause.strerror or "its name is not known"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__
