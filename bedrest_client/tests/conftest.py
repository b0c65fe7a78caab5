"""A small real RESTful proxy for the client's tests: it sends the bytes that a test gives it."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, StreamEvent, TextDelta, Tokens
from lambdalm.stream import encode_error, encode_event
from lambdalm.timings import HopTiming

WAIT = 20  # seconds until a test that waits has failed

TIMINGS = {
    "backend": HopTiming(total_ms=39.0, queue_ms=0.0, first_token_ms=10.0, own_ms=0.4),
    "proxy": HopTiming(total_ms=39.9, first_token_ms=11.0, own_ms=0.9),
    "edge": HopTiming(total_ms=41.0, first_token_ms=12.0, own_ms=1.1),
}
END = Finished(FinishReason.STOP, Tokens(4, 9), TIMINGS)


class Asked(NamedTuple):
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Server:
    """Answers each request with the next of its replies, the last one again and again."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.hung_up = threading.Event()
        self.go_on = threading.Event()
        self._replies: list[Callable[[_Handler], None]] = []
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._http.server_address[1]
        self.address = f"127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        thread = threading.Thread(target=self._http.serve_forever, args=[0.01])
        thread.start()
        try:
            yield self
        finally:
            self.go_on.set()
            self._http.shutdown()
            thread.join()
            self._http.server_close()

    def reply(self, handler: _Handler) -> None:
        (self._replies.pop(0) if len(self._replies) > 1 else self._replies[0])(handler)

    def whole(self, *texts: str, end: Finished = END) -> None:
        """Answer with these texts, chunked, as uvicorn does."""
        self.stream(events(*texts), encode_event(end), chunked=True)

    def stream(self, *pieces: bytes, chunked: bool = False, unfinished: bool = False) -> None:
        """Send these pieces as a stream; `unfinished` leaves the chunked body's end out."""

        def reply(handler: _Handler) -> None:
            handler.head(200, "text/event-stream", {"Transfer-Encoding": "chunked"} if chunked else {})
            for piece in pieces:
                handler.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked and not unfinished:
                handler.send(b"0\r\n\r\n")

        self._replies.append(reply)

    def held(self, first: bytes, rest: bytes = b"", status: int = 200) -> None:
        """Send `first`, wait for `go_on` or the client's hang-up, then send `rest`."""

        def reply(handler: _Handler) -> None:
            handler.head(status, "text/event-stream", {})
            handler.send(first)
            handler.hold()
            with contextlib.suppress(OSError):
                handler.send(rest)

        self._replies.append(reply)

    def silent(self) -> None:
        """Take the request and answer nothing."""
        self._replies.append(lambda handler: handler.hold())

    def answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        """One HTTP answer."""

        def reply(handler: _Handler) -> None:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            handler.head(status, kind, {**named, "Content-Length": str(len(body))})
            handler.send(body)

        self._replies.append(reply)

    def drop(self) -> None:
        """Close the connection without a word."""
        self._replies.append(lambda handler: None)


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.asked.append(Asked(self.path, headers, json.loads(body)))
        self.close_connection = True
        try:
            self.owner.reply(self)
        except ConnectionError:
            self.owner.hung_up.set()

    def head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def hold(self) -> None:
        self.connection.settimeout(0.02)
        for _ in range(WAIT * 50):
            if self.owner.go_on.is_set():
                return
            try:
                gone = self.connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                gone = True
            if gone:
                self.owner.hung_up.set()
                return

    def log_message(self, format: str, *args: Any) -> None:
        pass


def events(*texts: str, model: str = "lambdalm-demo") -> bytes:
    """The start of a stream: Started and these texts."""
    started: list[StreamEvent] = [Started("r1", model)]
    return b"".join(map(encode_event, [*started, *map(TextDelta, texts)]))


def broken(code: Code, message: str, **more: Any) -> bytes:
    """The end of a stream that failed."""
    return encode_error(LlmError(code, message, **more), {"proxy": HopTiming(5.0, own_ms=5.0)})


class Ran(NamedTuple):
    """What a run of the program left."""

    status: int
    out: str
    err: str


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as running:
        yield running


@pytest.fixture
def wire() -> Any:
    """The pieces that streams are made of."""

    class Wire:
        started = staticmethod(events)
        error = staticmethod(broken)
        end = encode_event(END)
        event = staticmethod(encode_event)
        wait = WAIT

    return Wire


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in [name for name in os.environ if name.startswith("BEDREST_")] + ["LLM_PORT", "NO_COLOR"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def bedrest(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the program in this process, against `server` unless it gets a --port."""
    from bedrest_client.__main__ import main

    def run(command: str, *arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        port = [] if "--port" in arguments else ["--port", str(server.port)]
        status = main([command, *port, *arguments])
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    return run


@pytest.fixture
def program(server: Server) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the program as a process of its own, against `server`."""
    with contextlib.ExitStack() as stack:

        def start(command: str, *arguments: str) -> subprocess.Popen[bytes]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "bedrest_client", command, "--port", str(server.port), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    # Unbuffered, every write would show at once, also one that is not flushed.
                    env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
                )
            )
            stack.callback(process.kill)
            return process

        yield start
