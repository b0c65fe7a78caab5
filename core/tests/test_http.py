"""lambdalm.http over real servers: limits, errors, ids, budgets, streams and clients that misbehave."""

from __future__ import annotations

import contextlib
import json
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from lambdalm import timings
from lambdalm.errors import Code
from lambdalm.events import Finished, FinishReason, Started, TextDelta, Tokens

from .hop import WAIT, Connection, Hop, query_bytes, request_bytes, running

ASK = {"prompt": "hello"}
SSE = "text/event-stream"


@pytest.fixture(scope="module")
def hop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hop]:
    """Small in all but the calls in flight."""
    log = tmp_path_factory.mktemp("hop") / "log"
    limits: dict[str, Any] = {"header_bytes": 2048, "body_bytes": 4096, "header_seconds": 0.5, "body_seconds": 0.5}
    with running(log, **limits) as started:
        yield started


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hop]:
    """One call in flight, so 17 threads; patient with bodies, and with nothing else."""
    log = tmp_path_factory.mktemp("narrow") / "log"
    limits: dict[str, Any] = {"max_in_flight": 1, "header_seconds": 0.5, "body_seconds": 60, "write_seconds": 0.5}
    with running(log, **limits, default_timeout=20, max_timeout=20) as started:
        yield started


def error_of(response: requests.Response, status: int) -> dict[str, Any]:
    """The error in an answer of this status, which has the shape that all have."""
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert set(body) == {"error", "timings"}
    assert body["timings"]["hop"]["total_ms"] >= 0
    assert timings.decode(response.headers["Server-Timing"])["hop"].total_ms >= 0
    error: dict[str, Any] = body["error"]
    return error


# Answers


def test_a_plain_answer_is_the_whole_stream_collected(hop: Hop) -> None:
    response = hop.query({"prompt": "hello there λ"}, x_request_id="plain-1")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    answer = response.json()
    share = answer.pop("timings")["hop"]
    assert answer == {
        "id": "plain-1",
        "model": "echo",
        "text": "hello there λ",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    assert 0 < share["first_token_ms"] <= share["total_ms"]
    assert timings.decode(response.headers["Server-Timing"])["hop"].total_ms >= share["total_ms"] - 0.01


def test_a_stream_is_asked_for_by_its_field(hop: Hop) -> None:
    with hop.streaming(ASK, X_Request_Id="stream-1") as stream:
        assert stream.response.status == 200
        assert stream.response.headers.get_content_type() == SSE
        assert stream.response.headers["Cache-Control"] == "no-store"
        assert stream.response.headers["X-Accel-Buffering"] == "no"
        assert stream.response.headers["X-Request-Id"] == "stream-1"
        events = stream.rest()
    assert events[0] == Started("stream-1", "echo")
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "hello"
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage) == (FinishReason.STOP, Tokens(1, 1))
    assert end.timings["hop"].first_token_ms is not None


@pytest.mark.parametrize("accept", [SSE, f"{SSE}, application/json;q=0.5"])
def test_a_stream_is_asked_for_by_accept(hop: Hop, accept: str) -> None:
    response = hop.query(ASK, accept=accept)
    assert response.headers["Content-Type"].startswith(SSE)
    assert response.text.startswith("event: started\n")


def test_events_come_one_by_one_and_not_at_the_end(hop: Hop) -> None:
    with hop.streaming({"prompt": "x", "model": "stall"}) as stream:
        assert isinstance(stream.next(), Started)
        assert [stream.next() for _ in range(3)] == [TextDelta("once "), TextDelta("upon "), TextDelta("a ")]


def test_a_delta_of_a_mebibyte_arrives_whole(hop: Hop) -> None:
    with hop.streaming({"prompt": "x", "model": "huge"}) as stream:
        text = "".join(event.text for event in stream.rest() if isinstance(event, TextDelta))
    assert text == "λ" * 2**19


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_may_say_its_charset(hop: Hop, kind: str) -> None:
    assert hop.query(ASK, content_type=kind).status_code == 200


# Errors


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json5", ""])
def test_a_body_that_does_not_say_json_is_a_415(hop: Hop, kind: str) -> None:
    error = error_of(hop.query(ASK, content_type=kind), 415)
    assert error["code"] == "INVALID_ARGUMENT"
    assert "Content-Type: application/json" in error["message"]


def test_a_body_over_the_limit_is_a_413(hop: Hop) -> None:
    limit = b'{"prompt":"%b"}' % (b"x" * (4096 - 13))
    assert hop.query(limit).status_code == 200
    error = error_of(hop.query(limit + b" "), 413)
    assert error == {
        "code": "INVALID_ARGUMENT",
        "message": "the body is larger than 4096 bytes",
        "origin": "hop",
    }


def test_answer_before_a_body_that_is_too_large_says_close(hop: Hop) -> None:
    head = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": "4097"}
    with hop.connect() as connection:
        connection.send(request_bytes("POST", "/query", head))
        answer = connection.answer()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")


def test_a_chunked_body_over_the_limit_is_a_413(hop: Hop) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"prompt":"'
        for _ in range(100):
            yield b"x" * 100

    headers = {"Content-Type": "application/json"}
    error_of(hop.session.post(f"{hop.url}/query", data=body(), headers=headers, timeout=WAIT), 413)


def test_a_chunked_body_within_the_limit_is_read(hop: Hop) -> None:
    headers = {"Content-Type": "application/json"}
    pieces = iter([b'{"prompt":', b'"hello"}'])
    response = hop.session.post(f"{hop.url}/query", data=pieces, headers=headers, timeout=WAIT)
    assert response.json()["text"] == "hello"


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_headers_over_the_limit_are_a_431(hop: Hop, end: bytes) -> None:
    with hop.connect() as connection:
        connection.send(b"GET /things HTTP/1.1\r\nX-Long: " + b"x" * 2048 + end)
        assert connection.rest().startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


def test_headers_within_the_limit_are_read(hop: Hop) -> None:
    assert hop.get("/things", x_long="x" * 1500).status_code == 200


def test_a_long_body_does_not_count_as_headers(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes({"prompt": "x" * 3000}))
        assert connection.answer().status == 200


def test_a_path_that_is_none_is_a_404(hop: Hop) -> None:
    error = error_of(hop.get("/nothing"), 404)
    assert error == {"code": "NOT_FOUND", "message": "there is no GET /nothing here", "origin": "hop"}


def test_a_wrong_method_is_a_405_that_names_the_right_one(hop: Hop) -> None:
    response = hop.get("/query")
    assert "there is no GET /query here" in error_of(response, 405)["message"]
    assert set(response.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "x", "temperature": 3}, "temperature: "),
        ({"prompt": "x", "colour": "red"}, "unknown field `colour`"),
        ({"prompt": ""}, "prompt: "),
        (b"", "the body is not JSON"),
        (b"hello", "the body is not JSON"),
        (b'{"prompt":"\\ud800"}', "the body is not JSON"),
        (b'{"prompt":' + b"[" * 4000, "prompt: "),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", SSE])
def test_a_bad_request_is_a_400_that_names_the_field(
    hop: Hop, body: dict[str, Any] | bytes, words: str, accept: str
) -> None:
    error = error_of(hop.query(body, accept=accept), 400)
    assert error["code"] == "INVALID_ARGUMENT"
    assert error["origin"] == "hop"
    assert words in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("gpt-99", 404, "NOT_FOUND"),
        ("error-before", 503, "UNAVAILABLE"),
        ("throttle", 429, "RESOURCE_EXHAUSTED"),
    ],
)
def test_a_failure_before_the_first_event_has_its_status(
    hop: Hop, model: str, status: int, code: str, stream: bool
) -> None:
    error = error_of(hop.query({"prompt": "x", "model": model, "stream": stream}), status)
    assert (error["code"], error["origin"]) == (code, "scripted")


def test_when_to_come_back_is_a_header_too(hop: Hop) -> None:
    response = hop.query({"prompt": "x", "model": "throttle"})
    assert error_of(response, 429)["retry_after"] == 2
    assert response.headers["Retry-After"] == "2"


@pytest.mark.parametrize(
    ("model", "status", "code", "origin"),
    [
        ("error-in-stream", 503, Code.UNAVAILABLE, "scripted"),
        ("cut", 503, Code.UNAVAILABLE, "hop"),
        ("garbage", 500, Code.INTERNAL, "hop"),
    ],
)
def test_a_failure_after_the_first_event_is_the_streams_last_event(
    hop: Hop, model: str, status: int, code: Code, origin: str
) -> None:
    assert error_of(hop.query({"prompt": "x", "model": model}), status)["code"] == code
    with hop.streaming({"prompt": "x", "model": model}) as stream:
        assert stream.response.status == 200
        assert [type(stream.next()) for _ in range(4)] == [Started, TextDelta, TextDelta, TextDelta]
        error = stream.failure()
    assert (error.code, error.origin) == (code, origin)
    assert stream.reader.timings["hop"].first_token_ms is not None


def test_a_heartbeat_is_an_answer_already(hop: Hop) -> None:
    body = {"prompt": "x", "model": "beating"}
    assert hop.query(body).status_code == 404
    response = hop.query(body, accept=SSE)
    assert response.status_code == 200
    assert response.text.startswith(": heartbeat\n\nevent: error\n")


def test_a_bug_is_a_500_that_tells_nothing_of_it(hop: Hop) -> None:
    response = hop.get("/bug")
    assert error_of(response, 500)["code"] == "INTERNAL"
    plain = hop.query({"prompt": "x", "model": "bug"})
    assert error_of(plain, 500)["code"] == "INTERNAL"
    assert "secret" not in response.text + plain.text


def test_a_bug_in_a_stream_is_an_error_event_that_tells_nothing_of_it(hop: Hop) -> None:
    with hop.streaming({"prompt": "x", "model": "bug"}) as stream:
        assert isinstance(stream.next(), Started)
        error = stream.failure()
    assert (error.code, error.origin) == (Code.INTERNAL, "hop")
    assert "secret" not in error.message


# Ids and budgets


def test_the_callers_request_id_is_taken_over(hop: Hop) -> None:
    response = hop.query(ASK, x_request_id="my.id:7_x-Y")
    assert response.headers["X-Request-Id"] == response.json()["id"] == "my.id:7_x-Y"
    assert hop.query({"prompt": ""}, x_request_id="bad-1").headers["X-Request-Id"] == "bad-1"
    assert hop.get("/nothing", x_request_id="bad-2").headers["X-Request-Id"] == "bad-2"


def test_a_request_without_an_id_gets_one(hop: Hop) -> None:
    first, second = hop.query(ASK), hop.query(ASK)
    assert first.headers["X-Request-Id"] == first.json()["id"]
    assert first.json()["id"] != second.json()["id"]


@pytest.mark.parametrize("id", ["a b", "x" * 129, "a/b", '"'])
def test_an_id_that_cannot_be_passed_on_is_refused(hop: Hop, id: str) -> None:
    assert error_of(hop.query(ASK, x_request_id=id), 400)["message"].startswith("X-Request-Id: ")


@pytest.mark.parametrize("seconds", ["0.2", "0"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_runs_out_of_its_time_is_a_504(hop: Hop, seconds: str, stream: bool) -> None:
    body = {"prompt": "x", "model": "stall-first", "stream": stream}
    error = error_of(hop.query(body, x_request_timeout=seconds), 504)
    assert error["code"] == "DEADLINE_EXCEEDED"
    assert "X-Request-Timeout" in error["message"]


def test_a_stream_that_runs_out_of_its_time_ends_with_an_error_event(hop: Hop) -> None:
    with hop.streaming({"prompt": "x", "model": "stall"}, X_Request_Timeout="0.2") as stream:
        assert stream.failure().code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf", ""])
def test_a_timeout_that_is_none_is_a_400(hop: Hop, seconds: str) -> None:
    assert error_of(hop.query(ASK, x_request_timeout=seconds), 400)["message"].startswith("X-Request-Timeout: ")


def test_budgets_have_a_default_and_a_maximum(tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("brief") / "log"
    body = {"prompt": "x", "model": "stall-first"}
    with running(log, default_timeout=0.1, max_timeout=0.2) as brief:
        assert "0.1 s" in error_of(brief.query(body), 504)["message"]
        assert "0.2 s" in error_of(brief.query(body, x_request_timeout="1000"), 504)["message"]


# Connections


def test_a_connection_carries_one_request_after_another(hop: Hop) -> None:
    with hop.connect() as connection:
        for status, body in [(200, ASK), (400, {"prompt": ""}), (200, ASK)]:
            connection.send(query_bytes(body))
            response = connection.answer()
            response.read()
            assert response.status == status


def test_requests_sent_ahead_are_answered_in_their_order(hop: Hop) -> None:
    with hop.connect() as connection:
        last = {"Host": "localhost", "Connection": "close"}
        connection.send(
            query_bytes(ASK, X_Request_Id="a") + query_bytes(ASK, X_Request_Id="b") + request_bytes("GET", "/", last)
        )
        received = connection.rest()
    assert received.count(b"HTTP/1.1 ") == 3
    assert received.index(b"x-request-id: a") < received.index(b"x-request-id: b") < received.index(b"404 Not Found")


def test_a_request_that_comes_byte_by_byte_is_whole(hop: Hop) -> None:
    with hop.connect() as connection:
        for byte in query_bytes(ASK):
            connection.send(bytes([byte]))
        assert json.load(connection.answer())["text"] == "hello"


@pytest.mark.parametrize("path", ["/nothing", "/query"])
def test_the_unread_body_of_a_request_is_not_taken_for_the_next(hop: Hop, path: str) -> None:
    hidden = request_bytes("GET", "/bug", {"Host": "localhost"})
    head = {"Host": "localhost", "Content-Type": "text/plain", "Content-Length": str(len(hidden))}
    with hop.connect() as connection:
        connection.send(request_bytes("POST", path, head) + hidden)
        connection.send(request_bytes("GET", "/things", {"Host": "localhost", "Connection": "close"}))
        received = connection.rest()
    assert received.count(b"HTTP/1.1 ") == 2
    assert b'{"things":[]}' in received


@pytest.mark.parametrize("junk", [b"\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 5000])
def test_junk_is_refused_and_the_connection_closed(hop: Hop, junk: bytes) -> None:
    with hop.connect() as connection:
        connection.send(junk)
        assert b" 200 " not in connection.rest()


def test_headers_that_are_not_whole_by_their_deadline_are_a_408(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(b"GET /things HTTP/1.1\r\nHost: localhost\r\n")
        assert connection.rest().startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.rest()


def trickle(connection: Connection, data: bytes) -> bytes:
    """Send byte by byte, ten a second, until the server answers and closes."""
    for byte in data:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(bytes([byte]))
        if select.select([connection.sock], [], [], 0.1)[0]:
            return connection.rest()
    raise AssertionError("the server has no deadline")


def test_the_deadline_of_headers_is_for_all_of_them(hop: Hop) -> None:
    with hop.connect() as connection:
        assert trickle(connection, b"GET /things HTTP/1.1\r\n" + b"X: y\r\n" * 40).startswith(b"HTTP/1.1 408 ")


def test_half_sent_headers_hold_no_thread(narrow: Hop) -> None:
    with contextlib.ExitStack() as stack:
        half = [stack.enter_context(narrow.connect()) for _ in range(60)]  # the server has 17 threads
        for connection in half:
            connection.send(b"POST /query HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for _ in range(20):
            assert narrow.get("/things").status_code == 200
        assert all(connection.rest().startswith(b"HTTP/1.1 408 ") for connection in half)
    assert narrow.get("/things").status_code == 200


def test_a_body_that_does_not_come_is_a_408(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes(ASK)[:-1])
        response = connection.answer()
        body = json.load(response)
    assert response.status == 408
    assert body["error"] == {
        "code": "DEADLINE_EXCEEDED",
        "message": "the body did not come within 0.5 s",
        "origin": "hop",
    }


def test_the_deadline_of_a_body_is_for_all_of_it(hop: Hop) -> None:
    with hop.connect() as connection:
        head = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": "4000"}
        connection.send(request_bytes("POST", "/query", head))
        assert trickle(connection, b"x" * 300).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("body", [b"zz\r\nhello\r\n", b"5\r\nhello world\r\n", b"-1\r\n\r\n"])
def test_a_chunk_that_makes_no_sense_is_a_400(hop: Hop, body: bytes) -> None:
    head = {"Host": "localhost", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    with hop.connect() as connection:
        connection.send(request_bytes("POST", "/query", head) + body)
        assert connection.answer().status == 400


def test_a_body_that_breaks_off_is_no_request(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes({"prompt": "x", "model": "flood", "max_tokens": 3}, X_Request_Id="half")[:-1])
        connection.sock.shutdown(1)
        assert b" 200 " not in connection.rest()


# Calls in flight


def ends(hop: Hop, id: str) -> str:
    """How the stream of the request `id` has ended; waits for it."""
    return hop.get(f"/ends?id={id}").text


@pytest.mark.parametrize("model", ["stall", "slow", "flood"])
def test_a_client_that_leaves_a_stream_stops_the_engine(hop: Hop, model: str) -> None:
    with hop.streaming({"prompt": "x", "model": model, "max_tokens": 2**31 - 1}, X_Request_Id=f"left-{model}") as left:
        left.next()
    assert ends(hop, f"left-{model}") in ("CANCELLED", "closed")


@pytest.mark.parametrize("model", ["stall-first", "stall", "flood"])
def test_a_client_that_leaves_before_its_plain_answer_stops_the_engine(hop: Hop, model: str) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes({"prompt": "x", "model": model}, X_Request_Id=f"plain-{model}"))
    assert ends(hop, f"plain-{model}") == "CANCELLED"


def test_a_client_that_leaves_before_the_first_event_stops_the_engine(hop: Hop) -> None:
    with hop.connect() as connection:
        connection.send(query_bytes({"prompt": "x", "model": "stall-first", "stream": True}, X_Request_Id="early"))
    assert ends(hop, "early") == "CANCELLED"


def test_a_client_that_sends_its_next_request_ahead_has_not_left(hop: Hop) -> None:
    with hop.connect() as connection:
        slow = {"prompt": "x", "model": "slow", "max_tokens": 3}
        connection.send(query_bytes(slow) + query_bytes(ASK, Connection="close"))
        received = connection.rest()
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.index(b'"text":"once upon a "') < received.index(b'"text":"hello"')


def eventually(hop: Hop, status: int) -> None:
    """Ask until the answer has this status."""
    end = time.monotonic() + WAIT
    while hop.query(ASK).status_code != status:
        assert time.monotonic() < end


def test_calls_above_the_limit_are_refused_at_once_and_others_are_answered(narrow: Hop) -> None:
    eventually(narrow, 200)
    with narrow.streaming({"prompt": "x", "model": "stall"}) as held:
        held.next()
        for accept in ("application/json", SSE):
            response = narrow.query(ASK, accept=accept)
            error = error_of(response, 503)
            assert error["code"] == "RESOURCE_EXHAUSTED"
            assert int(response.headers["Retry-After"]) >= 1
        assert narrow.get("/things").status_code == 200
    eventually(narrow, 200)


@pytest.mark.parametrize("body_apart", [False, True], ids=["body with the head", "body after the head"])
def test_a_reader_that_takes_nothing_is_given_up(narrow: Hop, body_apart: bool) -> None:
    eventually(narrow, 200)
    stuck = f"stuck-{body_apart}"
    body = {"prompt": "x", "model": "flood", "stream": True}
    with narrow.connect(receive_buffer=4096) as connection:
        if body_apart:
            request = query_bytes(body, X_Request_Id=stuck, Expect="100-continue")
            head = request.index(b"\r\n\r\n") + 4
            connection.send(request[:head])
            assert connection.sock.recv(1000).startswith(b"HTTP/1.1 100 ")
            connection.send(request[head:])
        else:
            connection.send(query_bytes(body, X_Request_Id=stuck))
        assert ends(narrow, stuck) == "closed"
