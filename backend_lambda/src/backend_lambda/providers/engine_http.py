"""HTTP to an engine, that can be stopped at any moment: before it connects, before its headers, in the middle.

Theory of operation. A thread that waits in `connect` or `recv` is woken only by shutting its socket down; so the socket
must be known before the first wait, which no client library offers. Here each request has a connection of its own, and
h11, which does no I/O, makes and reads the bytes. To close the connection is how an engine is told to stop; what a new
one costs is little beside a generation. Name resolution alone cannot be woken.

What has come by the time that somebody asks comes in one piece, however the engine cut it: it sends an HTTP chunk for
each word, and a reader who is slow, or one of very many, has to get fewer pieces, not an older answer.

Nothing is retried, no redirect is followed, and no proxy of the environment is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import h11
from msgspec import Meta

from lambdalm.call import Call, request_id
from lambdalm.errors import Code, LlmError
from lambdalm.foreign_errors import seconds_to_wait
from lambdalm.timings import HopClock

HttpUrl = Annotated[str, Meta(pattern=r"^https?://[^@?#\x00-\x20\x7f-\U0010ffff]+$")]
"""An engine's address in a config; a password in it would end up in errors, so there is none."""

Seconds = Annotated[float, Meta(gt=0, le=86400)]

_LOOK_UP = 0.05  # seconds between looks at the call while a connection is made
_CHUNK = 64 * 1024
_AT_ONCE = 64  # reads
_CHECK_SECONDS = 3.0
_MAX_HEADERS = 64 * 1024  # bytes
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
        whole = bytearray()
        for piece in self.chunks:
            whole += piece
            if len(whole) > _MAX_WHOLE:
                raise LlmError(Code.INTERNAL, f"an answer of more than {_MAX_WHOLE >> 20} MiB")
        return bytes(whole)


class Head(NamedTuple):
    """The beginning of an answer; the names of `headers` are in lower case."""

    status: int
    headers: dict[str, str]

    @property
    def retry_after(self) -> float | None:
        """In seconds."""
        return seconds_to_wait(self.headers.get("retry-after"))


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
            head = exchange.ask("POST", f"{self.url.path}{path}", body, {"Content-Type": "application/json"})
            if head.status == 200:
                yield Stream(head.headers.get("content-type", ""), exchange.chunks())
            else:
                yield Reply(head.status, exchange.up_to(_MAX_BODY), head.retry_after)

    def get(self, path: str, call: Call) -> Reply:
        """Ask for `path`, read the whole answer; raises LlmError as `post` does."""
        with Exchange(self, call) as exchange:
            head = exchange.ask("GET", f"{self.url.path}{path}", b"")
            return Reply(head.status, exchange.up_to(_MAX_BODY), head.retry_after)

    def look(self, path: str) -> Reply:
        """Ask for `path` to see whether the engine is there: over in 3 seconds. Raises `LlmError(UNAVAILABLE)`."""
        try:
            return self.get(path, check_call(self.name))
        except LlmError as error:
            if error.code is not Code.DEADLINE_EXCEEDED:
                raise
        why = f"{self.name} at {self.base_url} gave no answer in {_CHECK_SECONDS:g} s"
        raise LlmError(Code.UNAVAILABLE, why, retry_after=1, origin=self.name)


class Exchange:
    """One request on a connection of its own."""

    def __init__(self, engine: EngineHttp, call: Call) -> None:
        self._engine = engine
        self._call = call
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADERS)
        self._sock: socket.socket | None = None
        self._stack = contextlib.ExitStack()
        self._silence = f"it was silent for {engine.silence_seconds:g} s, which is the request_timeout"

    def __enter__(self) -> Exchange:
        self._stack.enter_context(self._call.on_cancel(self._shut))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, method: str, target: str, body: bytes, headers: Mapping[str, str] = {}) -> Head:
        """Connect, send, and wait for the headers. `headers` go along with the engine's own."""
        engine, url = self._engine, self._engine.url
        with self._failing("cannot be reached", f"it did not connect in {engine.connect_seconds:g} s"):
            sock = self._connect(url.hostname or "", url.port or _port(url))
        sent = {"Host": host_header(url), "Accept-Encoding": "identity", **engine.headers, **headers}
        if body or method != "GET":
            sent["Content-Length"] = str(len(body))
        with self._failing("gave no answer", self._silence):
            request = h11.Request(method=method, target=target or "/", headers=list(sent.items()))
            self._set_patience(sock)
            sock.sendall(b"".join(self._http.send(event) or b"" for event in _events(request, body)))
            return self._head()

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, to its end; what has come by the time it is asked for comes in one piece."""
        ended = False
        while not ended:
            with self._failing("broke off in the middle of its answer", self._silence):
                piece, ended = self._piece()
            if piece:
                yield piece

    def up_to(self, most: int) -> bytes:
        """The body, but no more than `most` bytes of it."""
        body = bytearray()
        for piece in self.chunks():
            body += piece
            if len(body) >= most:
                break
        return bytes(body[:most])

    def _head(self) -> Head:
        while True:
            event = self._next_event()
            if isinstance(event, h11.Response):
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                return Head(event.status_code, headers)
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("peer closed connection before it answered")

    def _piece(self) -> tuple[bytes, bool]:
        """All of the body that is here, at least something, and whether it has ended."""
        pieces: list[bytes] = []
        try:
            event = self._next_event()
            while isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
                event = self._http.next_event()
        except h11.RemoteProtocolError:
            if not pieces:
                raise
            return b"".join(pieces), False  # the next one raises it again
        return b"".join(pieces), event is not h11.NEED_DATA

    def _next_event(self) -> Any:
        """h11's next event, as soon as there is one."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            assert self._sock is not None
            self._set_patience(self._sock)
            data = self._sock.recv(_CHUNK)
            if not data:
                self._call.check()  # a connection that was shut ends like a body without a length
            self._http.receive_data(data + self._at_once() if data else b"")
        return event

    def _at_once(self) -> bytes:
        """What else is there: TLS gives no more than a record at a time, which may be a single word."""
        pieces: list[bytes] = []
        if isinstance(self._sock, ssl.SSLSocket):
            with contextlib.suppress(OSError):  # nothing more by now; what has broken, the next read tells
                self._sock.settimeout(0)
                while len(pieces) < _AT_ONCE and (piece := self._sock.recv(_CHUNK)):
                    pieces.append(piece)
        return b"".join(pieces)

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
        writable = select.poll()  # select.select takes no descriptor above 1023
        writable.register(sock, select.POLLOUT)
        failure = sock.connect_ex(address)  # type: ignore[arg-type]  # from getaddrinfo
        deadline = time.monotonic() + self._engine.connect_seconds
        while failure in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._call.check()
            if time.monotonic() >= deadline:
                raise TimeoutError
            if writable.poll(_LOOK_UP * 1000):
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

    def _set_patience(self, sock: socket.socket) -> None:
        """Before each wait: until the silence is too long, or the call's time is up."""
        self._call.check()
        sock.settimeout(max(0.001, min(self._engine.silence_seconds, self._call.remaining())))

    @contextlib.contextmanager
    def _failing(self, what: str, on_timeout: str) -> Iterator[None]:
        """Translate what sockets, TLS and HTTP raise; a call that was stopped is the reason for whatever it is."""
        engine = self._engine
        try:
            yield
        except (OSError, h11.ProtocolError, UnicodeError) as error:  # the last of a name that cannot be one
            self._call.check()
            why = on_timeout if isinstance(error, TimeoutError) else _reason(error)
            message = f"{engine.name} at {engine.base_url} {what}: {why}"
            raise LlmError(Code.UNAVAILABLE, message, retry_after=1, origin=engine.name) from None

    def _shut(self) -> None:
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the socket's own: SSLSocket's would spoil a read


def _events(request: h11.Request, body: bytes) -> list[Any]:
    return [request, h11.Data(data=body), h11.EndOfMessage()] if body else [request, h11.EndOfMessage()]


def host_header(url: SplitResult) -> str:
    """The header Host: without the scheme's own port, as signatures want it."""
    host = url.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if url.port in (None, _port(url)) else f"{host}:{url.port}"


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
        return f"TLS: {getattr(error, 'verify_message', '') or error.reason}"
    if isinstance(error, h11.ProtocolError):
        closed = "peer closed connection" in str(error)
        return "the connection was closed" if closed else f"it does not speak HTTP as it should ({error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
