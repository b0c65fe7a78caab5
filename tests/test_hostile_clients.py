"""What hostile clients of an HTTP hop do to others: nothing. `python -m bench.hostile` measures the same attacks."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

import psutil
import pytest
import requests

from lambdalm.testing.chain import Chain, free_ports
from lambdalm.testing.hostile import ATTACKS, Attack, Attackers, head, query
from tests.conftest import WAIT, Outcome, frames, health, idle, post, text_of, until

CLOSE = {"Connection": "close"}  # what a test leaves open is not to be taken for what an attack leaves
CANARY = "canary-5b0e77aa"
ROOM = ("BACKEND_MAX_IN_FLIGHT", "UPSTREAM_MAX_IN_FLIGHT", "PARALLEL_SLOTS", "QUEUE_SIZE", "LLM_MAX_CONNECTIONS")


class Attacked(NamedTuple):
    """A hop of a chain that has room for all that an attack may have in flight."""

    chain: Chain
    name: str

    @property
    def port(self) -> int:
        return self.chain.port(self.name)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> requests.Response:
        """What it says when it is asked whether it is alive."""
        return requests.get(f"{self.url}/{'healthz' if self.name == 'edge' else 'health'}", headers=CLOSE, timeout=WAIT)

    @property
    def descriptors(self) -> int:
        return psutil.Process(self.chain.hops[self.name].process.pid).num_fds()

    @property
    def lag(self) -> float:
        """The longest standstill of its loop lately, in seconds."""
        metrics = requests.get(f"{self.url}/metrics", headers=CLOSE, timeout=WAIT).text
        found = re.search(r"^lambdalm_loop_lag_seconds (\S+)$", metrics, re.MULTILINE)
        assert found is not None
        return float(found[1])


class Logs:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, hop: str, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def logs() -> Logs:
    return Logs()


@pytest.fixture(scope="module")
def roomy(logs: Logs) -> Iterator[Chain]:
    with Chain(free_ports(), {"PROVIDER": "scripted", **dict.fromkeys(ROOM, "1000")}, logs.line) as chain:
        for name in ("edge", "backend"):  # what a hop opens once, it has opened
            for stream in (True, False):
                post(f"http://127.0.0.1:{chain.port(name)}", {"prompt": "x", "stream": stream}, headers=CLOSE).close()
        yield chain


@pytest.fixture(params=["edge", "backend"])
def attacked(roomy: Chain, request: pytest.FixtureRequest) -> Attacked:
    until(lambda: idle(roomy), "the engine is idle")
    return Attacked(roomy, request.param)


class Streaming(threading.Thread):
    """A stream of half a second that somebody else reads meanwhile."""

    def __init__(self, hop: Attacked) -> None:
        super().__init__()
        self._hop = hop
        self.outcome: Outcome | None = None
        self.start()

    def run(self) -> None:
        body = {"prompt": "x", "model": "slow", "max_tokens": 10, "stream": True}
        events = frames(post(self._hop.url, body, headers=CLOSE))
        self.outcome = Outcome(200, text_of(events), events[-1])


@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_served_during_an_attack(attacked: Attacked, name: str) -> None:
    before = attacked.descriptors
    stream = Streaming(attacked)
    with Attackers(attacked.port, ATTACKS[name]) as attackers:
        for number in range(20):
            attackers.beat()
            answer = post(attacked.url, {"prompt": f"others {number}"}, headers=CLOSE)
            assert (answer.status_code, answer.json()["text"]) == (200, f"others {number}")
            assert attacked.alive.status_code == 200
        stream.join(WAIT)
        assert attacked.lag < 1
    assert stream.outcome is not None
    assert stream.outcome.finished
    assert len(stream.outcome.text.split()) == 10
    until(lambda: attacked.descriptors <= before, "its descriptors are back")
    until(lambda: idle(attacked.chain), "the engine is idle")


def test_clients_that_never_close_are_closed(attacked: Attacked) -> None:
    before = attacked.descriptors
    with contextlib.ExitStack() as stack:
        for name, attack in ATTACKS.items():
            if name.startswith("never close"):
                stack.enter_context(Attackers(attacked.port, attack))
        until(lambda: attacked.descriptors <= before, "it has closed what they leave open")


def test_a_hang_up_stops_the_first_of_many_requests(attacked: Attacked) -> None:
    ahead = Attack(1, query(prompt="x", model="stall-first") + head("GET", "/models") * 5000)
    with Attackers(attacked.port, ahead):
        until(lambda: health(attacked.chain)["in_flight"] == 1, "the first is being generated")
    until(lambda: idle(attacked.chain), "the engine is idle")


BROKEN = {
    "chunks": b"5\r\nhello\r\nzz\r\n",
    "a chunk's length": b"2\r\nhello\r\n0\r\n\r\n",
    "trailers": b"0\r\nno colon\r\n\r\n",
    "a second request": b"0\r\n\r\nthis is no request\r\n\r\n",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize(
    ("status", "path", "kind"),
    [(404, "/nowhere", "application/json"), (415, "/query", "text/plain"), (405, "/models", "application/json")],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_one_request_never_has_two_answers(
    attacked: Attacked, status: int, path: str, kind: str, broken: str, at_once: bool
) -> None:
    request = head("POST", path, f"Content-Type: {kind}", "Transfer-Encoding: chunked")
    with socket.create_connection(("127.0.0.1", attacked.port), WAIT) as sock:
        received = b""
        sock.sendall(request + (BROKEN[broken] if at_once else b""))
        if not at_once:
            received = sock.recv(2**16)
            sock.sendall(BROKEN[broken])
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(2**16):
                received += piece
    answers = re.findall(rb"HTTP/1\.1 (\d+) ", received)
    assert answers[0] in (b"%d" % status, b"400")
    assert answers[1:] in ([], [b"400"] if broken == "a second request" else [])


CANARIES = {
    "a header line without a colon": f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer {CANARY}\r\n\r\n",
    "a header's name": f"GET / HTTP/1.1\r\nHost: localhost\r\n{CANARY} : x\r\n\r\n",
    "a header's value": f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: {CANARY}\0\r\n\r\n",
    "a folded header": f"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\r\n {CANARY}\r\n\r\n",
    "a method": f"{CANARY} / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a version": f"GET / {CANARY}\r\nHost: localhost\r\n\r\n",
    "a host": f"GET / HTTP/1.1\r\nHost: {CANARY}\r\n\r\n",
    "a target's host": f"GET http://{CANARY}/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a length": f"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Length: {CANARY}\r\n\r\n",
    "a coding": f"POST /query HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {CANARY}\r\n\r\n",
    "an id": f"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {CANARY} x\r\n\r\n",
    "a timeout": query(f"X-Request-Timeout: {CANARY}", prompt="x").decode(),
    "a chunk": f"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    f"Transfer-Encoding: chunked\r\n\r\n{CANARY}\r\n\r\n",
    "a chunk's end": f"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    f"Transfer-Encoding: chunked\r\n\r\n5\r\nhello{CANARY}\r\n0\r\n\r\n",
    "a trailer": f"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    f"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{CANARY}\r\n\r\n",
}


@pytest.mark.parametrize("place", CANARIES)
def test_a_clients_bytes_are_in_no_answer_and_no_log(attacked: Attacked, logs: Logs, place: str) -> None:
    with socket.create_connection(("127.0.0.1", attacked.port), WAIT) as sock:
        sock.sendall(CANARIES[place].encode())
        received = sock.recv(2**16)
    assert received.startswith(b"HTTP/1.1 4")
    assert CANARY.encode() not in received
    assert (
        requests.get(f"{attacked.url}/nowhere", headers={**CLOSE, "X-Request-Id": "after"}, timeout=WAIT).status_code
        == 404
    )
    assert not [line for line in logs.lines if CANARY in line]
