"""What one connection may do to its server, in all the ways that HTTP/1.1 has and in some that it has not."""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from psutil import Process

from lambdalm.events import Finished, Started, TextDelta, Tokens, Usage
from lambdalm.http.limits import Limits
from lambdalm.stream import EventReader

from .hop import WAIT, Connection, Hop, Stream, query_bytes, request_bytes, running

MIB = 2**20
ASK = {"prompt": "hello"}
LOCAL = {"Host": "localhost"}
LAST = {"Host": "localhost", "Connection": "close"}
CHUNKED = {"Host": "localhost", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}


@pytest.fixture(scope="module")
def hop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hop]:
    """Patient with idle connections and with bodies, impatient with headers."""
    log = tmp_path_factory.mktemp("connections") / "log"
    with running(log, header_seconds=0.5, body_seconds=15, idle_seconds=60) as started:
        yield started


def answered(connection: Connection) -> bytes:
    """All answers, up to that to a last request, which is sent now."""
    connection.send(request_bytes("GET", "/things", LAST))
    return connection.rest()


# Requests sent ahead


@pytest.mark.parametrize("length", [3000, 5000, 100_000])
def test_a_body_sent_ahead_is_read_to_its_end(hop: Hop, length: int) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes(ASK) + query_bytes({"prompt": "x" * length}))
        received = answered(connection)
    assert received.count(b"HTTP/1.1 200 ") == 3
    assert b'"text":"%b"' % (b"x" * length) in received


def test_headers_begun_ahead_have_their_deadline(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes(ASK) + b"GET /things HTTP/1.1\r\n")
        received = connection.rest()
    assert received.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 408 " in received


# A hop that is full


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hop]:
    """A hop whose only call is in flight."""
    log = tmp_path_factory.mktemp("full") / "log"
    with running(log, max_in_flight=1) as started, started.streaming({"prompt": "x", "model": "stall"}) as held:
        held.next()
        yield started


def test_a_refused_head_request_has_no_body(full: Hop) -> None:
    with full.connect() as connection:
        connection.send(request_bytes("HEAD", "/query", LOCAL))
        received = answered(connection)
    refusal, _, rest = received.partition(b"\r\n\r\n")
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert rest.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "last",
    [
        query_bytes(ASK, Connection="close"),
        b"GET /refused HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    ],
)
def test_nothing_is_answered_after_a_last_refusal(full: Hop, last: bytes) -> None:
    with full.connect() as connection:
        connection.send(last + request_bytes("GET", "/things", LAST))
        received = connection.rest()
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nconnection: close\r\n" in received


def test_refusals_wait_for_their_reader(full: Hop) -> None:
    """One who asks on and reads nothing holds the buffers of one connection, and is not read any further."""
    rss = Process(full.pid).memory_info().rss
    with full.connect(receive_buffer=4096) as connection:
        connection.sock.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.send(request_bytes("GET", "/refused", LOCAL) * 10_000)
        assert full.get("/things").status_code == 200
        assert Process(full.pid).memory_info().rss - rss < 16 * MIB


# Many connections


def found_at_once(stack: contextlib.ExitStack, hop: Hop, number: int, data: bytes = b"") -> list[Connection]:
    """Connections with `data` on each, which the server finds all at once."""
    hop.process.send_signal(signal.SIGSTOP)
    connections = [stack.enter_context(hop.connect()) for _ in range(number)]
    for connection in connections:
        connection.send(data)
    hop.process.send_signal(signal.SIGCONT)
    return connections


def test_connections_are_capped_and_the_longest_idle_give_way(tmp_path: Path) -> None:
    with (
        running(tmp_path / "log", max_connections=20, header_seconds=60) as capped,
        capped.streaming({"prompt": "x", "model": "slow", "max_tokens": 20}) as held,
        contextlib.ExitStack() as stack,
    ):
        held.next()
        connections = found_at_once(stack, capped, 100)
        assert all(connection.rest() == b"" for connection in connections[:81])
        assert len(Process(capped.pid).net_connections()) == 21  # and the listener
        assert b"200 OK" in answered(connections[-1])
        assert isinstance(held.rest()[-1], Finished)


def test_bodies_that_fill_the_memory_give_way_to_new_ones(tmp_path: Path) -> None:
    with (
        running(tmp_path / "log", max_in_flight=1, body_bytes=50_000) as small,
        contextlib.ExitStack() as stack,
    ):
        hoarders = [stack.enter_context(small.connect()) for _ in range(3)]
        for hoarder in hoarders:
            hoarder.send(query_bytes({"prompt": "x" * 40_000})[:-1])
            assert small.get("/things").status_code == 200
        assert small.query({"prompt": "x" * 40_000}).status_code == 200
        for hoarder in hoarders[:2]:
            refused = hoarder.answer()
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        hoarders[2].send(b"}")
        assert hoarders[2].answer().status == 200


def test_what_is_sent_ahead_is_held_within_the_memory_for_all(tmp_path: Path) -> None:
    with running(tmp_path / "log", max_in_flight=1) as small, contextlib.ExitStack() as stack:
        assert small.get("/things").status_code == 200
        rss = Process(small.pid).memory_info().rss
        for _ in range(40):
            connection = stack.enter_context(small.connect())
            connection.send(request_bytes("GET", "/ends?id=never", LOCAL) + b"GET / HTTP/1.1\r\nX: " + b"x" * MIB)
        assert small.get("/things").status_code == 200
        assert Process(small.pid).memory_info().rss - rss < 16 * MIB


# Bodies that are mostly something else


@pytest.mark.parametrize(
    ("start", "more"),
    [(b"0\r\nX: ", b"x" * 1000), (b"0\r\n", b"X: y\r\n" * 200), (b"1;x=", b"x" * 1000)],
    ids=["one trailer", "trailers", "chunk extension"],
)
def test_endless_framing_of_a_body_is_refused(hop: Hop, start: bytes, more: bytes) -> None:
    with hop.connect() as connection:
        connection.send(request_bytes("POST", "/query", CHUNKED) + start)
        with contextlib.suppress(OSError):
            for _ in range(1000):
                connection.send(more)
        assert connection.answer().status == 431


def test_a_trailer_is_no_header(hop: Hop) -> None:
    with hop.connect() as connection:
        body = b'12\r\n{"prompt":"hello"}\r\n0\r\nX-Request-Id: of-trailer\r\nHost: elsewhere\r\n\r\n'
        connection.send(request_bytes("POST", "/query", {**CHUNKED, "X-Request-Id": "of-head"}) + body)
        answer = connection.answer()
        assert (answer.status, answer.headers["X-Request-Id"]) == (200, "of-head")


def test_a_body_in_tiny_chunks_is_read_while_they_are_few(hop: Hop) -> None:
    few, many = ({"prompt": "x" * length} for length in (200, 5000))
    for body, status in ((few, 200), (many, 400)):
        with hop.connect() as connection:
            chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(body).encode())
            connection.send(request_bytes("POST", "/query", CHUNKED) + chunks + b"0\r\n\r\n")
            assert connection.answer().status == status


# Other ways to ask


def test_a_stream_over_http_1_0_has_no_chunks(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes({**ASK, "stream": True}).replace(b" HTTP/1.1", b" HTTP/1.0"))
        head, _, body = connection.rest().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert [type(event) for event in EventReader().feed(body)] == [Started, TextDelta, Usage, Finished]


def test_http_1_0_has_no_100_continue(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes(ASK, Expect="100-continue").replace(b" HTTP/1.1", b" HTTP/1.0"))
        assert connection.rest().startswith(b"HTTP/1.1 200 ")


def test_a_refusal_before_100_continue_closes(hop: Hop) -> None:
    """The client may send its body now or its next request: who cannot tell must not guess."""
    head = {**LOCAL, "Content-Type": "text/plain", "Content-Length": "5", "Expect": "100-continue"}
    with hop.connect() as connection:
        connection.send(request_bytes("POST", "/query", head))
        received = connection.rest()
    assert received.startswith(b"HTTP/1.1 415 ")
    assert b"\r\nconnection: close\r\n" in received


# Readers that pause


def until_it_waits(hop: Hop) -> None:
    """Return when the hop has used no CPU for half a second: its only client takes nothing."""
    process, used, idle = Process(hop.pid), -1.0, 0
    while idle < 5:
        select.select([], [], [], 0.1)
        idle = idle + 1 if used == (used := sum(process.cpu_times()[:2])) else 0


def test_a_reader_that_pauses_gets_its_whole_stream(hop: Hop) -> None:
    body = {"prompt": "x", "model": "flood", "max_tokens": 2_000_000, "stream": True}
    with hop.connect(receive_buffer=4096) as connection:
        connection.send(query_bytes(body))
        until_it_waits(hop)
        *_, end = Stream(connection.answer()).rest()
    assert isinstance(end, Finished)
    assert end.usage == Tokens(1, 2_000_000)


def test_call_stopped_before_its_head_is_taken_has_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    long = query_bytes({"prompt": "x", "model": "flood", "max_tokens": 2_000_000})
    late = {"prompt": "x", "model": "stall", "stream": True}
    with running(log, write_seconds=WAIT) as own, own.connect(receive_buffer=4096) as connection:
        connection.send(long + query_bytes(late, X_Request_Id="late", X_Request_Timeout="1"))
        assert own.get("/ends?id=late").text == "closed"
        connection.send(request_bytes("GET", "/things", LAST))
        received = connection.rest()
    assert received.count(b"HTTP/1.1 200 ") == 3
    assert received.count(b'"code":"DEADLINE_EXCEEDED"') == 1
    assert "Traceback" not in log.read_text()


# Clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_a_half_closed_connection_stops_the_engine(hop: Hop, stream: bool) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes({"prompt": "x", "model": "stall", "stream": stream}, X_Request_Id=f"half-{stream}"))
        connection.sock.shutdown(socket.SHUT_WR)
        assert hop.get(f"/ends?id=half-{stream}").text == "CANCELLED"


def test_a_stuck_reader_that_half_closes_stops_the_engine(hop: Hop) -> None:
    with hop.connect(receive_buffer=4096) as connection:
        connection.send(query_bytes({"prompt": "x", "model": "flood", "stream": True}, X_Request_Id="stuck"))
        until_it_waits(hop)
        connection.sock.shutdown(socket.SHUT_WR)
        assert hop.get("/ends?id=stuck").text in ("CANCELLED", "closed")


def test_stuck_reader_that_leaves_is_logged_and_counted_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(log) as own:
        with own.connect(receive_buffer=4096) as connection:
            connection.send(query_bytes({"prompt": "x", "model": "flood", "stream": True}, X_Request_Id="stuck"))
            until_it_waits(own)
        own.get("/ends?id=stuck")
        assert 'lambdalm_http_requests_total{route="/query",status="200"} 1.0' in own.get("/metrics").text
    (line,) = [line for line in map(json.loads, log.read_text().splitlines()) if line.get("request_id") == "stuck"]
    assert (line["event"], line["code"]) == ("stream failed", "CANCELLED")


def test_a_client_that_leaves_is_no_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(log) as own:
        for stream in (False, True):
            for model in ("stall-first", "slow"):
                body, name = {"prompt": "x", "model": model, "stream": stream}, f"{model}-{stream}"
                with own.connect() as connection:
                    connection.send(query_bytes(body, X_Request_Id=name))
                assert own.get(f"/ends?id={name}").text == "CANCELLED"
    assert '"level": "error"' not in log.read_text()


def test_a_hang_up_ends_what_was_asked_ahead(hop: Hop) -> None:
    with hop.connect() as connection:
        stalled = query_bytes({"prompt": "x", "model": "stall-first"}, X_Request_Id="first-of-many")
        connection.send(stalled + request_bytes("GET", "/bug", LOCAL) * 5000)
    assert hop.get("/ends?id=first-of-many").text == "CANCELLED"
    assert 'lambdalm_http_requests_total{route="/bug"' not in hop.get("/metrics").text


def test_thousands_sent_ahead_are_all_answered_in_order(hop: Hop) -> None:
    number = 3000
    with hop.connect() as connection:
        sender = threading.Thread(
            target=connection.send,
            args=[
                b"".join(request_bytes("GET", "/things", {**LOCAL, "X-Request-Id": f"n{i}."}) for i in range(number))
            ],
        )
        sender.start()
        received = connection.sock.recv(1000)
        while received.count(b"x-request-id: n") < number or b"n2999." not in received[-500:]:
            received += connection.sock.recv(2**20)
        sender.join()
    assert re.findall(rb"x-request-id: n(\d+)\.", received) == [b"%d" % i for i in range(number)]


@pytest.mark.parametrize("ahead", [b"", query_bytes(ASK)], ids=["alone", "sent ahead"])
def test_the_body_of_an_upgrade_ends_where_it_says(hop: Hop, ahead: bytes) -> None:
    upgrade = query_bytes(ASK, Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMAAABk")
    with hop.connect() as connection:
        connection.send(ahead + upgrade + query_bytes({"prompt": "another"}))
        received = connection.rest()
    assert received.count(b"HTTP/1.1 200 ") == 1 + bool(ahead)
    assert b"another" not in received


@pytest.mark.parametrize("given", ["close", "foo, close", "Close, foo", "foo ,close\r\nConnection: keep-alive"])
def test_close_may_stand_in_a_list(hop: Hop, given: str) -> None:
    with hop.connect() as connection:
        connection.send(request_bytes("GET", "/things", {**LOCAL, "Connection": given}))
        assert b"\r\nconnection: close\r\n" in connection.rest()


def test_an_answer_is_not_reset_by_what_follows_its_request(hop: Hop) -> None:
    """A reset would take the answer from a client that has not read it yet."""
    with contextlib.ExitStack() as stack:
        [connection] = found_at_once(stack, hop, 1, request_bytes("GET", "/things", LAST) + b"x" * MIB)
        received = connection.sock.recv(1000)
        while chunk := connection.sock.recv(1000):
            received += chunk
    assert received.endswith(b'{"things":[]}\n')


@pytest.mark.parametrize("target", ["http://localhost/things", "http://127.0.0.1:80/things", "http://[::1]:80/things"])
def test_a_target_may_name_its_host(hop: Hop, target: str) -> None:
    with hop.connect() as connection:
        connection.send(request_bytes("GET", target, LAST))
        assert connection.answer().status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "localhost:80:80", "a@localhost", "", "[::1"]
)
def test_a_host_of_another_name_is_misdirected(hop: Hop, host: str) -> None:
    with hop.connect() as connection:
        connection.send(request_bytes("GET", "/things", {"Host": host}))
        assert connection.answer().status == 421


def test_a_target_of_another_name_is_misdirected(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(request_bytes("GET", "http://evil.example/things", LOCAL))
        assert connection.answer().status == 421


@pytest.mark.parametrize("host", ["api.example.com", "API.example.com.:443", "a.example.org"])
def test_allowed_hosts_may_have_ports_and_a_last_dot(tmp_path: Path, host: str) -> None:
    allowed = "Api.Example.com:8443, .example.org."
    with running(tmp_path / "log", allowed_hosts=allowed) as own, own.connect() as connection:
        connection.send(request_bytes("GET", "/things", {"Host": host}))
        assert connection.answer().status == 200


@pytest.mark.parametrize("given", ["http://api.example.com", "a.example b.example", "::1", "a.example,:80"])
def test_allowed_host_that_is_no_name_stops_the_start(given: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="is no host name"):
        msgspec.convert({"allowed_hosts": given}, Limits)


# Time budgets


def test_a_time_budget_runs_while_the_body_comes(hop: Hop) -> None:
    request = query_bytes(ASK, X_Request_Timeout="0.2")
    with hop.connect() as connection:
        connection.send(request[:-1])
        select.select([connection.sock], [], [], 0.3)
        connection.send(request[-1:])
        assert connection.answer().status == 504


# Many requests at once


def test_of_many_calls_at_once_only_those_over_the_limit_are_refused(tmp_path: Path) -> None:
    stall = query_bytes({"prompt": "x", "model": "stall", "stream": True})
    with running(tmp_path / "log", max_in_flight=10) as small, contextlib.ExitStack() as stack:
        connections = found_at_once(stack, small, 50, stall)
        assert sorted(connection.answer().status for connection in connections) == [200] * 10 + [503] * 40
        assert refusals(small.get("/metrics").content) == 40, "each before the app saw it"


def refusals(metrics: bytes) -> int:
    """How many requests a full hop has refused before its app saw them."""
    found = re.search(rb'^lambdalm_http_refusals_total\{reason="in flight"\} (\d+)', metrics, re.MULTILINE)
    return int(found[1]) if found else 0


def test_refusals_on_one_connection_leave_turns_to_others(full: Hop) -> None:
    before = refusals(full.get("/metrics").content)
    full.process.send_signal(signal.SIGSTOP)
    with full.connect() as many, full.connect() as one:
        many.send(request_bytes("GET", "/refused", LOCAL) * 5000)
        one.send(request_bytes("GET", "/metrics", LAST))
        full.process.send_signal(signal.SIGCONT)
        assert refusals(one.rest()) - before < 500


def test_hundreds_of_connections_are_accepted_at_once(full: Hop) -> None:
    with contextlib.ExitStack() as stack:
        connections = found_at_once(stack, full, 500, query_bytes(ASK))
        assert {connection.answer().status for connection in connections} == {503}


# What is left of a connection


@pytest.mark.parametrize(
    "data",
    [b"", b"GET / HTTP", b"no request\r\n\r\n", query_bytes(ASK)[:-1], request_bytes("POST", "/query", CHUNKED) + b"z"],
    ids=["nothing", "half a head", "junk", "half a body", "a broken body"],
)
def test_a_lost_connection_leaves_no_garbage(hop: Hop, data: bytes) -> None:
    hop.get("/garbage")
    for _ in range(100):
        with hop.connect() as connection:
            connection.send(data)
            connection.sock.shutdown(socket.SHUT_WR)
            connection.rest()
    hop.get("/things")
    assert int(hop.get("/garbage").text) < 100 * 20
