"""Running `hop_app.py` and talking to it, over requests or over bare sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import requests

from lambdalm.errors import LlmError
from lambdalm.events import StreamEvent
from lambdalm.stream import EventReader

WAIT = 20  # seconds until a test that waits has failed


class Hop:
    """A hop that runs in a process of its own."""

    def __init__(self, limits: dict[str, Any], log: IO[bytes], workers: int = 1, pipe: Path | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = requests.Session()
        self.session.trust_env = False
        program = [sys.executable, str(Path(__file__).with_name("hop_app.py")), str(self.port), json.dumps(limits)]
        program += [str(workers), *([str(pipe)] if pipe is not None else [])]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline())

    def get(self, path: str, **headers: str) -> requests.Response:
        return self.session.get(self.url + path, headers=_named(headers), timeout=WAIT)

    def query(self, body: dict[str, Any] | bytes, **headers: str) -> requests.Response:
        """POST /query; `x_request_id="a"` is the header X-Request-Id."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **_named(headers)}
        return self.session.post(f"{self.url}/query", data=data, headers=given, timeout=WAIT)

    @contextlib.contextmanager
    def streaming(self, body: dict[str, Any], **headers: str) -> Iterator[Stream]:
        """The stream that answers a query."""
        with self.connect() as connection:
            connection.send(query_bytes({**body, "stream": True}, **headers))
            yield Stream(connection.answer())

    @contextlib.contextmanager
    def connect(self, receive_buffer: int | None = None) -> Iterator[Connection]:
        with socket.socket() as sock:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(WAIT)
            sock.connect(("127.0.0.1", self.port))
            with contextlib.closing(Connection(sock)) as connection:
                yield connection

    def close(self) -> None:
        self.session.close()
        self.process.kill()
        self.process.wait(WAIT)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Connection:
    """A bare connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._answers: list[http.client.HTTPResponse] = []  # each holds the socket open

    def close(self) -> None:
        for response in self._answers:
            response.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self) -> http.client.HTTPResponse:
        """The next answer; its reader may take more from the socket than its own bytes."""
        response = http.client.HTTPResponse(self.sock)
        self._answers.append(response)
        response.begin()
        return response

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := self.sock.recv(2**16):
                received += chunk
        return received


class Stream:
    """A stream of events as its reader sees it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.response = response
        self.reader = EventReader()
        self._events = self._read()

    def next(self) -> StreamEvent:
        return next(self._events)

    def rest(self) -> list[StreamEvent]:
        """The events that are left; raises the LlmError that the stream ends in."""
        return list(self._events)

    def failure(self) -> LlmError:
        """How the stream fails."""
        try:
            self.rest()
        except LlmError as error:
            return error
        raise AssertionError("the stream did not fail")

    def _read(self) -> Iterator[StreamEvent]:
        while chunk := self.response.read1(2**16):
            yield from self.reader.feed(chunk)
        self.reader.close()


def query_bytes(body: dict[str, Any] | bytes, **headers: str) -> bytes:
    """The bytes of a POST /query."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        **_named(headers),
    }
    return request_bytes("POST", "/query", lines) + data


def request_bytes(method: str, path: str, headers: dict[str, str]) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


@contextlib.contextmanager
def running(log: Path, workers: int = 1, pipe: Path | None = None, **limits: Any) -> Iterator[Hop]:
    """A hop with these limits; its log goes to a file. `pipe` holds its second worker back, as `hop_app` says."""
    with log.open("wb") as stderr:
        hop = Hop(limits, stderr, workers, pipe)
    try:
        yield hop
    finally:
        hop.close()


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
