"""Several worker processes of one HTTP hop: they share its port and its metrics, and a hung one is replaced."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .hop import WAIT, Hop, request_bytes, running

PID = request_bytes("GET", "/pid", {"Host": "localhost", "Connection": "close"})


@pytest.fixture
def hop(tmp_path: Path) -> Iterator[Hop]:
    with running(tmp_path / "log", workers=2) as started:
        try:
            yield started
        finally:
            started.process.terminate()
            started.process.wait(20)


def answering(hop: Hop) -> int:
    """The process that answers a new connection; 0 where none does within a second."""
    with contextlib.suppress(TimeoutError, ConnectionError), hop.connect() as connection:
        connection.sock.settimeout(1)
        connection.send(PID)
        return int(connection.answer().read())
    return 0


def seen(hop: Hop, count: int, but: int = 0) -> set[int]:
    """Ask until `count` processes, other than `but`, have answered."""
    found: set[int] = set()
    while len(found) < count:
        found |= {answering(hop)} - {0, but}
    return found


def test_workers_share_the_port_and_the_metrics(hop: Hop) -> None:
    assert len(seen(hop, 2)) == 2
    page = hop.get("/metrics").text
    counted = re.search(r'lambdalm_http_requests_total\{route="/pid",status="200"\} (\S+)', page)
    assert counted is not None
    before = float(counted[1])
    seen(hop, 2)
    again = re.search(r'lambdalm_http_requests_total\{route="/pid",status="200"\} (\S+)', hop.get("/metrics").text)
    assert again is not None
    assert float(again[1]) >= before + 2


def test_worker_that_still_loads_takes_no_connections(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with running(tmp_path / "log", workers=2, pipe=pipe) as hop:
        with pipe.open("wb"):  # when the second worker has opened it, too
            first = seen(hop, 1)
            assert {answering(hop) for _ in range(50)} == first
        seen(hop, 2)
        hop.process.terminate()
        assert hop.process.wait(WAIT) == 0


def test_hung_worker_is_replaced(hop: Hop) -> None:
    hung = seen(hop, 2).pop()
    os.kill(hung, signal.SIGSTOP)
    assert hung not in seen(hop, 2, but=hung)
