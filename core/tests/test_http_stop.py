"""How a hop stops: not ready, no new connections, time for what runs, and a truthful end for what is left."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from lambdalm.errors import Code
from lambdalm.events import Finished

from .hop import WAIT, Hop, request_bytes, running

STALL = {"prompt": "x", "model": "stall"}
SLOW = {"prompt": "x", "model": "slow", "max_tokens": 10}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_sigterm_lets_a_running_stream_finish_and_then_exits_with_0(log: Path) -> None:
    with running(log, grace=WAIT) as hop, hop.streaming(SLOW, Connection="close") as stream:
        stream.next()
        hop.process.send_signal(signal.SIGTERM)
        events = stream.rest()
        assert isinstance(events[-1], Finished)
        assert sum(type(event).__name__ == "TextDelta" for event in events) == 10
        assert hop.process.wait(WAIT) == 0


@pytest.mark.parametrize(("stop", "grace"), [(signal.SIGTERM, 0.2), (signal.SIGINT, 100)])  # SIGINT does not wait
def test_what_still_runs_after_the_grace_period_ends_with_an_error_event(
    log: Path, stop: signal.Signals, grace: float
) -> None:
    with running(log, grace=grace) as hop, hop.streaming(STALL, Connection="close") as stream:
        stream.next()
        hop.process.send_signal(stop)
        error = stream.failure()
        assert (error.code, error.message, error.origin) == (Code.UNAVAILABLE, "the server is shutting down", "hop")
        assert stream.reader.timings["hop"].total_ms > 0
        assert hop.process.wait(WAIT) == 0


def test_an_idle_hop_stops_with_0(log: Path) -> None:
    with running(log, grace=100) as hop:
        hop.process.send_signal(signal.SIGTERM)
        assert hop.process.wait(WAIT) == 0
    assert "Traceback" not in log.read_text()


def test_a_hop_says_that_it_stops_while_it_still_takes_connections(log: Path) -> None:
    with running(log, drain_pause=1, grace=0) as hop:
        assert one_off(hop, "/draining") == b"False"
        hop.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + WAIT
        while one_off(hop, "/draining") != b"True":
            assert time.monotonic() < end
        assert [one_off(hop, "/draining") for _ in range(3)] == [b"True"] * 3
        assert hop.process.wait(WAIT) == 0


def test_a_hop_that_lets_its_calls_finish_refuses_new_connections(log: Path) -> None:
    with running(log, grace=100) as hop, hop.streaming(STALL, Connection="close") as held:
        held.next()
        hop.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + WAIT
        while is_answered(hop):
            assert time.monotonic() < end


def test_request_whose_body_is_awaited_is_refused_at_the_end(log: Path) -> None:
    head = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": "9", "Expect": "100-continue"}
    with running(log, grace=100) as hop, hop.connect() as connection:
        connection.send(request_bytes("POST", "/query", head))
        assert connection.sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        hop.process.send_signal(signal.SIGINT)
        answer = connection.answer()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert b"the server is shutting down" in answer.read()
        assert hop.process.wait(WAIT) == 0


def test_hop_that_cannot_close_ends_with_1(log: Path) -> None:
    with running(log) as hop:
        hop.get("/never-close", Connection="close")
        hop.process.send_signal(signal.SIGTERM)
        assert hop.process.wait(WAIT) == 1
    assert "close_timed_out" in log.read_text()


def is_answered(hop: Hop) -> bool:
    """Whether a new connection is taken, and its request answered within two seconds."""
    try:
        with hop.connect() as connection:
            connection.sock.settimeout(2)
            connection.send(request_bytes("GET", "/things", {"Host": "localhost"}))
            return bool(connection.sock.recv(1000))
    except ConnectionError:
        return False


def one_off(hop: Hop, path: str) -> bytes:
    """The answer to a request on a connection of its own."""
    with hop.connect() as connection:
        connection.send(request_bytes("GET", path, {"Host": "localhost", "Connection": "close"}))
        return connection.answer().read()
