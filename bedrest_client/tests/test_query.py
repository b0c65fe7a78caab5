"""One prompt over HTTP, against a real server."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from bedrest_client.query import Edge, Exchange
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, Heartbeat, ReasoningDelta, Started, TextDelta, Tokens, collect

QUESTION = ChatRequest(prompt="Say λ", model="m", max_tokens=7)


def ask(server: Any, timeout: float = 10.0, grace: float = 5.0) -> Exchange:
    return Edge(server.address, timeout, grace).ask(QUESTION)


def failure(exchange: Exchange) -> LlmError:
    with pytest.raises(LlmError) as raised:
        list(exchange.events())
    return raised.value


def test_it_posts_the_prompt_and_asks_for_a_stream(server: Any) -> None:
    server.whole("λ")
    exchange = ask(server, timeout=2.5)
    list(exchange.events())
    (asked,) = server.asked
    assert asked.path == "/query"
    assert asked.body == {"prompt": "Say λ", "model": "m", "max_tokens": 7, "stream": True}
    assert asked.headers["x-request-timeout"] == "2.5"
    assert asked.headers["x-request-id"] == exchange.id
    assert re.fullmatch("[0-9a-f]{32}", exchange.id)
    assert asked.headers["accept"] == "text/event-stream"
    assert asked.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("chunked", [True, False])
def test_a_whole_answer_comes_with_its_timings(server: Any, wire: Any, chunked: bool) -> None:
    server.stream(wire.started("Par", "is"), wire.end, chunked=chunked)
    exchange = ask(server)
    answer = collect(exchange.events())
    assert answer.text == "Paris"
    assert answer.usage == Tokens(4, 9)
    assert list(exchange.timings) == ["backend", "proxy", "edge"]
    assert exchange.clock.timings()["client"].first_token_ms is not None


@pytest.mark.parametrize("chunked", [True, False])
def test_bytes_that_dribble_in_one_by_one_are_the_same_answer(server: Any, wire: Any, chunked: bool) -> None:
    text = "Привет, 世界 🌍 λλM"
    whole = wire.started(text) + wire.event(Heartbeat()) + wire.end
    server.stream(*(whole[i : i + 1] for i in range(len(whole))), chunked=chunked)
    assert collect(ask(server).events()).text == text


@pytest.mark.parametrize("chunked", [True, False])
def test_events_come_out_as_they_come_in(server: Any, wire: Any, chunked: bool) -> None:
    server.held(wire.started("Par"), wire.started("is").partition(b"\n\n")[2] + wire.end)
    events = ask(server).events()
    assert next(events) == Started("r1", "lambdalm-demo")
    assert next(events) == TextDelta("Par")  # while the server waits
    server.go_on.set()
    assert next(events) == TextDelta("is")
    assert isinstance(next(events), Finished)
    events.close()


@pytest.mark.parametrize(("chunked", "unfinished"), [(True, True), (True, False), (False, False)])
def test_a_cut_stream_is_an_error_after_what_came(server: Any, wire: Any, chunked: bool, unfinished: bool) -> None:
    server.stream(wire.started("Par"), chunked=chunked, unfinished=unfinished)
    events = ask(server).events()
    assert [next(events), next(events)] == [Started("r1", "lambdalm-demo"), TextDelta("Par")]
    with pytest.raises(LlmError) as raised:
        next(events)
    assert raised.value.code is Code.UNAVAILABLE
    assert raised.value.origin == "connection"


def test_an_answer_that_came_whole_is_whole_though_the_farewell_is_missing(server: Any, wire: Any) -> None:
    server.stream(wire.started("Paris"), wire.end, chunked=True, unfinished=True)
    assert collect(ask(server).events()).text == "Paris"


def test_an_error_in_the_stream_keeps_its_origin_and_brings_timings(server: Any, wire: Any) -> None:
    server.stream(wire.started("Par"), wire.error(Code.UNAVAILABLE, "engine died", origin="llamacpp", retry_after=2))
    exchange = ask(server)
    error = failure(exchange)
    assert (error.code, error.message, error.origin, error.retry_after) == (
        Code.UNAVAILABLE,
        "engine died",
        "llamacpp",
        2,
    )
    assert exchange.timings["proxy"].total_ms == 5.0


def test_an_error_answer_of_a_hop_is_that_error(server: Any) -> None:
    body = (
        b'{"error":{"code":"RESOURCE_EXHAUSTED","message":"full","origin":"proxy","retry_after":3},'
        b'"timings":{"edge":{"total_ms":1.5,"own_ms":1.5}}}'
    )
    server.answer(429, "application/json", body)
    exchange = ask(server)
    error = failure(exchange)
    assert (error.code, error.message, error.origin, error.retry_after) == (
        Code.RESOURCE_EXHAUSTED,
        "full",
        "proxy",
        3,
    )
    assert exchange.timings["edge"].total_ms == 1.5


@pytest.mark.parametrize(
    ("status", "kind", "body", "code", "said"),
    [
        (
            502,
            "text/html",
            b"<html><title>502 Bad\nGateway</title><p>nginx</html>",
            Code.UNAVAILABLE,
            "“502 Bad Gateway”",
        ),
        (403, "application/json", b'{"message":"Forbidden"}', Code.PERMISSION_DENIED, '{"message":"Forbidden"}'),
        (503, "text/plain", b"", Code.UNAVAILABLE, "HTTP 503"),
        (500, "application/json", b"\xff\xfe", Code.INTERNAL, "HTTP 500"),
        (404, "text/plain", b"x" * 300_000, Code.NOT_FOUND, "…"),
        (200, "text/html", b"<title>Welcome</title>", Code.UNIMPLEMENTED, "Welcome"),
        (302, "text/html", b"", Code.UNIMPLEMENTED, "HTTP 302"),
    ],
)
def test_an_answer_of_somebody_else_is_an_error_that_says_so(
    server: Any, status: int, kind: str, body: bytes, code: Code, said: str
) -> None:
    server.answer(status, kind, body, Location="/elsewhere", Retry_After="7")
    error = failure(ask(server))
    assert error.code is code
    assert error.origin is None
    assert said in error.message
    assert "not from λλM" in error.message
    assert len(error.message) < 300
    assert error.retry_after == 7
    assert len(server.asked) == 1


def test_a_refused_connection_is_an_error_at_the_client() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = failure(Edge(address, 1).ask(QUESTION))
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "client")
    assert address in error.message
    assert "refused" in error.message


@pytest.mark.parametrize(
    ("host", "why"), [("no-such-host.invalid", "name is not known"), ("a..b", "not a host and a port")]
)
def test_a_host_that_is_none_is_an_error_at_the_client(host: str, why: str) -> None:
    error = failure(Edge(f"{host}:80", 1).ask(QUESTION))
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "client")
    assert why in error.message


def test_an_error_that_claims_to_be_a_stream_is_still_an_error(server: Any) -> None:
    server.answer(503, "text/event-stream", b'{"error":{"code":"UNAVAILABLE","message":"draining","origin":"edge"}}')
    assert failure(ask(server)).message == "draining"


def test_of_an_endless_error_answer_only_the_start_is_read(server: Any, wire: Any) -> None:
    server.held(b"x" * 100_000, status=404)
    assert failure(ask(server, timeout=60)).code is Code.NOT_FOUND
    assert server.hung_up.wait(wire.wait)


def test_a_connection_closed_without_an_answer_is_an_error(server: Any) -> None:
    server.drop()
    error = failure(ask(server))
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "connection")


def test_a_server_that_says_nothing_is_left_when_the_time_is_up(server: Any, wire: Any) -> None:
    server.silent()
    error = failure(ask(server, timeout=0.1, grace=0.1))
    assert (error.code, error.origin) == (Code.DEADLINE_EXCEEDED, "connection")
    assert server.hung_up.wait(wire.wait)


def test_a_stream_that_falls_silent_is_left_when_the_time_is_up(server: Any, wire: Any) -> None:
    server.held(wire.started("Par"))
    error = failure(ask(server, timeout=0.2, grace=0.1))
    assert error.code is Code.DEADLINE_EXCEEDED
    assert server.hung_up.wait(wire.wait)


def test_heartbeats_do_not_keep_it_waiting_for_ever(server: Any, wire: Any) -> None:
    server.stream(*[wire.event(Heartbeat())] * 2_000_000)
    error = failure(ask(server, timeout=0.2, grace=0.1))
    assert error.code is Code.DEADLINE_EXCEEDED


def test_closing_the_events_hangs_up(server: Any, wire: Any) -> None:
    server.held(wire.started("Par"))
    events = ask(server).events()
    next(events)
    assert not server.hung_up.is_set()
    events.close()
    assert server.hung_up.wait(wire.wait)


def test_nonsense_in_the_stream_is_an_error_of_the_connection(server: Any, wire: Any) -> None:
    server.stream(wire.started("Par"), b"data: {}\n\n")
    error = failure(ask(server))
    assert (error.code, error.origin) == (Code.INTERNAL, "connection")


def test_a_prompt_that_is_not_utf_8_is_not_sent(server: Any) -> None:
    error = failure(Edge(server.address, 1).ask(ChatRequest(prompt="\udcff")))
    assert (error.code, error.origin) == (Code.INVALID_ARGUMENT, "client")
    assert server.asked == []


def test_a_proxy_in_the_environment_gets_no_prompts(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    server.whole("here")
    assert collect(ask(server).events()).text == "here"


def test_reasoning_is_apart_from_the_text(server: Any, wire: Any) -> None:
    server.stream(wire.started(), wire.event(ReasoningDelta("hm")), wire.event(TextDelta("yes")), wire.end)
    answer = collect(ask(server).events())
    assert (answer.reasoning, answer.text) == ("hm", "yes")


def test_cookies_come_back_with_the_next_question_until_they_are_forgotten(server: Any, wire: Any) -> None:
    whole = wire.started("x") + wire.end
    server.answer(200, "text/event-stream", whole, Set_Cookie="LlmServiceStickiness=s1; Path=/; Max-Age=900; HttpOnly")
    edge = Edge(server.address, 10)
    for _ in range(2):
        collect(edge.ask(QUESTION).events())
    edge.forget()
    collect(edge.ask(QUESTION).events())
    collect(Edge(server.address, 10).ask(QUESTION).events())
    assert [asked.headers.get("cookie") for asked in server.asked] == [None, "LlmServiceStickiness=s1", None, None]


def test_an_error_sets_cookies_too(server: Any, wire: Any) -> None:
    server.answer(429, "application/json", b"{}", Set_Cookie="LlmServiceOwner=o1; Path=/")
    server.whole("x")
    edge = Edge(server.address, 10)
    failure(edge.ask(QUESTION))
    collect(edge.ask(QUESTION).events())
    assert server.asked[1].headers["cookie"] == "LlmServiceOwner=o1"


def test_a_key_goes_as_a_bearer_and_is_in_no_error(server: Any, wire: Any) -> None:
    key = "canary-key-0123456789"
    server.answer(401, "text/plain", f"I do not know {key}".encode())
    server.stream(wire.started("x"), wire.error(Code.UNAUTHENTICATED, f"no {key} here"))
    edge = Edge(server.address, 10, key=key)
    for _ in range(2):
        error = failure(edge.ask(QUESTION))
        assert error.code is Code.UNAUTHENTICATED
        assert "canary" not in error.message
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {key}"}


def test_without_a_key_none_is_sent(server: Any) -> None:
    server.whole("x")
    list(ask(server).events())
    assert "authorization" not in server.asked[0].headers
