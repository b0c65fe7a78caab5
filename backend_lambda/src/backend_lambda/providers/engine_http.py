"""HTTP to an engine, that can be stopped at any moment: before it connects, before its headers, in the middle.

Theory of operation. A thread that waits in `connect` or `recv` is woken only by shutting its socket down; so the socket
must be known before the first wait, which no client library offers. Here each request has a connection of its own,
made by hand and given to `http.client`. To close it is how an engine is told to stop; what a new connection costs is
little beside a generation. Name resolution alone cannot be woken.

Nothing is retried, no redirect is followed, and no proxy of the environment is used.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta

from lambdalm.call import Call, request_id
from lambdalm.errors import Code, LlmError
from lambdalm.timings import HopClock

HttpUrl = Annotated[str, Meta(pattern=r"^https?://[^@\s]+$")]
"""An engine's address in a config; a password in it would end up in errors, so there is none."""

Seconds = Annotated[float, Meta(gt=0, le=86400)]

_LOOK_UP = 0.05  # seconds between looks at the call while a connection is made
_CHUNK = 64 * 1024
_CHECK_SECONDS = 3.0
_MAX_BODY = 1024 * 1024  # bytes of a Reply
_MAX_WHOLE = 16 * 1024 * 1024  # bytes of a Stream that is read whole


def check_call(name: str) -> Call:
    """A call of a provider's own, to look whether its engine is there: over in 3 seconds."""
    return Call(request_id(None), _CHECK_SECONDS, HopClock(name))


class Reply(NamedTuple):
    """An answer that was read whole; `body` is cut at 1 MiB."""

    status: int
    body: bytes
    retry_after: float | None = None


class Stream(NamedTuple):
    """A 200 answer; `chunks` are its bytes as they come, and raise LlmError."""

    content_type: str
    chunks: Iterator[bytes]

    def whole(self) -> bytes:
        """All of it; raises `LlmError(INTERNAL)` above 16 MiB."""
        pieces: list[bytes] = []
        for piece in self.chunks:
            pieces.append(piece)
            if sum(map(len, pieces)) > _MAX_WHOLE:
                raise LlmError(Code.INTERNAL, f"an answer of more than {_MAX_WHOLE >> 20} MiB")
        return b"".join(pieces)


class EngineHttp:
    """One engine at `base_url`, called `name` in errors.

    `connect_seconds` bounds each try to connect, `silence_seconds` the time that may pass without a byte.
    """

    def __init__(
        self, name: str, base_url: str, headers: Mapping[str, str], connect_seconds: float, silence_seconds: float
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.url = _address(name, self.base_url)
        self.headers = dict(headers)
        self.connect_seconds = connect_seconds
        self.silence_seconds = silence_seconds
        self.tls = ssl.create_default_context() if self.url.scheme == "https" else None

    @contextlib.contextmanager
    def post(self, path: str, body: bytes, call: Call) -> Iterator[Stream | Reply]:
        """Send `body` as JSON: a Stream for a 200, a Reply for anything else. On leaving, the connection is closed.

        Raises LlmError: UNAVAILABLE for an engine that cannot be reached, is silent or breaks off, and what stopped
        the call.
        """
        with Exchange(self, call) as exchange:
            answer = exchange.ask("POST", f"{self.url.path}{path}", body, {"Content-Type": "application/json"})
            if answer.status == 200:
                yield Stream(answer.getheader("Content-Type", ""), exchange.chunks(answer))
            else:
                yield Reply(answer.status, b"".join(exchange.up_to(answer, _MAX_BODY)), _retry_after(answer))

    def get(self, path: str, call: Call) -> Reply:
        """Ask for `path`, read the whole answer; raises LlmError as `post` does."""
        with Exchange(self, call) as exchange:
            answer = exchange.ask("GET", f"{self.url.path}{path}", None)
            return Reply(answer.status, b"".join(exchange.up_to(answer, _MAX_BODY)), _retry_after(answer))


class Exchange:
    """One request on a connection of its own."""

    def __init__(self, engine: EngineHttp, call: Call) -> None:
        self._engine = engine
        self._call = call
        self._sock: socket.socket | None = None
        self._stack = contextlib.ExitStack()
        self._silence = f"it was silent for {engine.silence_seconds:g} s, which is the request_timeout"

    def __enter__(self) -> Exchange:
        self._stack.enter_context(self._call.on_cancel(self._shut))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] = {}
    ) -> http.client.HTTPResponse:
        """Connect, send, and wait for the headers. `headers` go along with the engine's own."""
        engine = self._engine
        url = engine.url
        connection = unconnected(url)
        self._stack.callback(connection.close)
        with self._failing("cannot be reached", f"it did not connect in {engine.connect_seconds:g} s"):
            connection.sock = self._connect(url.hostname or "", connection.port)
        sent = {"Accept-Encoding": "identity", **engine.headers, **headers}
        with self._failing("gave no answer", self._silence):
            self._set_patience()
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            self._stack.callback(response.close)
            return response

    def chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The body as it comes, to its end."""
        while not response.isclosed():  # which it is after its last byte, from Python 3.13 on
            with self._failing("broke off in the middle of its answer", self._silence):
                self._set_patience()
                chunk = response.read1(_CHUNK)
                if not chunk and response.length:
                    raise http.client.IncompleteRead(chunk, response.length)
            if not chunk:
                self._call.check()  # a connection that was shut ends like a body without a length
                return
            yield chunk

    def up_to(self, response: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
        """The body, but no more than `most` bytes of it."""
        for chunk in self.chunks(response):
            yield chunk[:most]
            most -= len(chunk)
            if most <= 0:
                return

    def _connect(self, host: str, port: int) -> socket.socket:
        problem: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            self._stack.callback(sock.close)
            try:
                self._wait_for_connection(sock, address)
            except OSError as error:
                problem = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock = sock
            self._call.check()  # from here on, `_shut` wakes whoever waits
            return self._encrypted(sock, host)
        raise problem

    def _wait_for_connection(self, sock: socket.socket, address: object) -> None:
        """Connect; a socket that is not connected yet cannot be shut down, so look at the call now and then."""
        sock.setblocking(False)
        failure = sock.connect_ex(address)  # type: ignore[arg-type]  # from getaddrinfo
        deadline = time.monotonic() + self._engine.connect_seconds
        while failure in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._call.check()
            if time.monotonic() >= deadline:
                raise TimeoutError
            if select.select((), (sock,), (), _LOOK_UP)[1]:
                failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))

    def _encrypted(self, sock: socket.socket, host: str) -> socket.socket:
        tls = self._engine.tls
        sock.settimeout(min(self._engine.connect_seconds, self._call.remaining()))
        if tls is None:
            return sock
        wrapped = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        self._stack.callback(wrapped.close)
        self._sock = wrapped
        self._call.check()
        wrapped.do_handshake()
        return wrapped

    def _set_patience(self) -> None:
        self._call.check()
        if self._sock is not None:
            self._sock.settimeout(max(0.001, min(self._engine.silence_seconds, self._call.remaining())))

    @contextlib.contextmanager
    def _failing(self, what: str, on_timeout: str) -> Iterator[None]:
        """Translate what sockets, TLS and HTTP raise; a call that was stopped is the reason for whatever it is."""
        engine = self._engine
        try:
            yield
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last of a name that cannot be one
            self._call.check()
            why = on_timeout if isinstance(error, TimeoutError) else _reason(error)
            message = f"{engine.name} at {engine.base_url} {what}: {why}"
            raise LlmError(Code.UNAVAILABLE, message, retry_after=1, origin=engine.name) from None

    def _shut(self) -> None:
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the socket's own: SSLSocket's would spoil a read


def unconnected(url: SplitResult) -> http.client.HTTPConnection:
    """A connection that has no socket yet and makes none by itself."""
    connection = http.client.HTTPConnection(url.hostname or "", url.port or _port(url))
    connection.default_port = _port(url)  # the header Host leaves it out, as signatures want it
    connection.auto_open = 0
    return connection


def _address(name: str, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is none
    except ValueError as error:
        raise LlmError(Code.FAILED_PRECONDITION, f"{url} is not an address: {error}", origin=name) from None
    return parts


def _port(url: SplitResult) -> int:
    return 443 if url.scheme == "https" else 80


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason}"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was closed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    """The header's seconds; its other form, a date, is not used by engines."""
    try:
        seconds = float(response.getheader("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 3600 else None
