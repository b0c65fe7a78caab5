"""Clients that do what they should not: for tests and measurements of what a server lets them do to others.

An attack is a number of connections that each send something and are then held open, for as long as the attack lasts.
As a program (`python -m lambdalm.testing.hostile PORT ATTACK`) one says `ready` when all have sent, and goes on until
its standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
from typing import NamedTuple

_BEAT = 0.05  # seconds between two things that a client does
_CONNECT_SECONDS = 20.0


class Attack(NamedTuple):
    """`number` connections. Each sends `first`, and then `more` again and again; with `deaf` it reads nothing."""

    number: int
    first: bytes
    more: bytes = b""
    deaf: bool = False


def head(method: str, path: str, *lines: str, version: str = "1.1") -> bytes:
    """The head of a request to this machine."""
    return "\r\n".join((f"{method} {path} HTTP/{version}", "Host: localhost", *lines, "", "")).encode("latin-1")


def query(*lines: str, **fields: object) -> bytes:
    """A whole `POST /query`."""
    body = json.dumps(fields).encode()
    return head("POST", "/query", "Content-Type: application/json", f"Content-Length: {len(body)}", *lines) + body


_JSON = "Content-Type: application/json"
_CHUNKED = (_JSON, "Transfer-Encoding: chunked")
_NOWHERE = head("GET", "/nowhere")

ATTACKS: dict[str, Attack] = {
    "never close after Connection: close": Attack(100, head("GET", "/models", "Connection: close")),
    "never close after HTTP/1.0": Attack(100, head("GET", "/models", version="1.0")),
    "never close after a 400": Attack(100, b"\x16\x03\x01 hello\r\n\r\n"),
    "never close after a 413": Attack(100, head("POST", "/query", _JSON, "Content-Length: 99999999") + b"x" * 1000),
    "never close after a 415": Attack(100, head("POST", "/query", "Connection: close", "Content-Length: 5") + b"hello"),
    "never close after a 431": Attack(100, b"GET / HTTP/1.1\r\n" + b"X-Long: %b\r\n" % (b"x" * 2000) * 12),
    "half a head": Attack(500, b"POST /query HTTP/1.1\r\nHost: localhost\r\nX-Half: "),
    "a body that does not come": Attack(500, head("POST", "/query", _JSON, "Content-Length: 100")),
    "a body that dribbles": Attack(200, head("POST", "/query", _JSON, "Content-Length: 4000"), b"x"),
    "readers that take nothing": Attack(200, query(prompt="x", model="flood", stream=True), deaf=True),
    "thousands of requests ahead": Attack(10, _NOWHERE * 3000),
    "thousands ahead, and deaf": Attack(10, _NOWHERE * 3000, deaf=True),
    "a flood ahead of an answer": Attack(20, query(prompt="x", model="stall-first"), _NOWHERE * 3000),
    "bodies in chunks of a byte": Attack(100, head("POST", "/query", *_CHUNKED), b"1\r\nx\r\n" * 10_000),
    "endless trailers": Attack(100, head("POST", "/query", *_CHUNKED) + b"0\r\nX: ", b"x" * 60_000),
    "endless bodies to nowhere": Attack(
        100, head("POST", "/nowhere", *_CHUNKED), b"ea60\r\n" + b"x" * 60_000 + b"\r\n"
    ),
    "connections without a word": Attack(1000, b""),
}
"""What is attacked → how."""


class Attackers:
    """An attack under way; for `with`. `beat` does what the clients do, and never waits for the server."""

    def __init__(self, port: int, attack: Attack) -> None:
        self._attack = attack
        self._sockets: dict[socket.socket, bytes] = {}  # and what each is about to send
        for _ in range(attack.number):
            self._sockets[_connected(port, attack.deaf)] = attack.first
        self.beat()

    def __enter__(self) -> Attackers:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()

    def beat(self) -> None:
        """Each client sends what the server takes, and reads what there is."""
        for sock, left in self._sockets.items():
            with contextlib.suppress(OSError):
                while left:
                    left = left[sock.send(left) :]
            self._sockets[sock] = left or self._attack.more
            if not self._attack.deaf:
                with contextlib.suppress(OSError):
                    while sock.recv(2**16):
                        pass


def _connected(port: int, deaf: bool) -> socket.socket:
    sock = socket.socket()
    if deaf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(_CONNECT_SECONDS)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def main(port: int, name: str) -> None:
    """Attack until standard input ends."""
    with Attackers(port, ATTACKS[name]) as attackers:
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], _BEAT)[0]:
            attackers.beat()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
