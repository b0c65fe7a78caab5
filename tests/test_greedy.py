"""Clients that are slow or want too much hold bounded resources for a bounded time, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import psutil
import pytest
import requests

from lambdalm.testing.chain import Chain, free_ports
from tests.conftest import health, idle, post, until
from tests.test_cancellation import send_and_keep

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def small() -> Iterator[Chain]:
    """An edge that takes four requests at a time."""
    with Chain(free_ports(), {"PROVIDER": "scripted", "LLM_MAX_CONNECTIONS": "4"}) as chain:
        yield chain


def test_what_is_too_much_is_refused_at_once_while_health_checks_answer(small: Chain) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(send_and_keep(small.ports.edge, '{"prompt":"x","model":"stall-first"}'))
        until(lambda: health(small)["in_flight"] == 4, "four requests are held")
        for _ in range(50):
            refused = post(small.url, {"prompt": "x"})
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "1"
            assert refused.json()["error"]["origin"] == "edge"
        assert requests.get(f"{small.url}/healthz", timeout=5).status_code == 200
    until(lambda: idle(small), "the engine is idle")
    assert post(small.url, {"prompt": "x"}).status_code == 200


def test_half_sent_headers_take_no_place(small: Chain) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(200):
            sock = held.enter_context(socket.create_connection(("127.0.0.1", small.ports.edge)))
            sock.sendall(b"POST /query HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for _ in range(20):
            assert post(small.url, {"prompt": "x"}).status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_half_sent_headers_are_closed_at_their_deadline(small: Chain) -> None:
    with contextlib.ExitStack() as held:
        sockets = [
            held.enter_context(socket.create_connection(("127.0.0.1", small.ports.edge), timeout=30))
            for _ in range(200)
        ]
        for sock in sockets:
            sock.sendall(b"POST /query HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for sock in sockets:
            with sock.makefile("rb") as answer:
                assert answer.read().startswith(b"HTTP/1.1 408")  # to its end: the server closes


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_reader_that_stops_reading_holds_bounded_memory_and_is_closed(small: Chain) -> None:
    processes = [
        process
        for hop in small.hops.values()
        for process in (psutil.Process(hop.process.pid), *psutil.Process(hop.process.pid).children())
    ]
    before = sum(process.memory_info().rss for process in processes)
    with send_and_keep(small.ports.edge, '{"prompt":"x","model":"flood","stream":true}') as sock:
        assert sock.recv(1)
        peak = 0
        while not idle(small):
            peak = max(peak, sum(process.memory_info().rss for process in processes))
    assert peak - before < 32 * MIB
