"""Cookies, keys and sessions through the edge as a process, in front of a proxy that remembers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from lambdalm.testing.chain import Chain, free_ports
from lambdalm_proto.v1 import llm_pb2 as pb

from .conftest import LINES, WAIT, edge_process
from .fake_proxy import OWNER, SESSION, FakeProxy, running

CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeProxy, Chain]]:
    fake = FakeProxy()
    with running(fake) as port, edge_process(GRPC_PORT=str(port), LOG_LEVEL="DEBUG") as chain:
        yield fake, chain


@pytest.fixture
def fake(served: tuple[FakeProxy, Chain]) -> FakeProxy:
    return served[0]


@pytest.fixture
def url(served: tuple[FakeProxy, Chain]) -> str:
    return served[1].url


@pytest.fixture
def browser() -> Iterator[requests.Session]:
    """A client that keeps cookies."""
    with requests.Session() as session:
        yield session


def ask(client: Any, url: str, prompt: str, **more: Any) -> requests.Response:
    body = {"prompt": prompt, **more}
    answer: requests.Response = client.post(f"{url}/query", json=body, timeout=WAIT, stream=bool(more.get("stream")))
    return answer


def test_a_client_with_a_cookie_jar_is_remembered(url: str, browser: requests.Session) -> None:
    first = ask(browser, url, "one")
    assert set(browser.cookies.keys()) == {SESSION, OWNER}
    assert first.json()["text"] == "before: nothing"
    assert first.json()["session_id"] == browser.cookies[SESSION]
    assert ask(browser, url, "two").json()["text"] == "before: one"


def test_cookies_are_set_as_the_proxy_says(url: str) -> None:
    found = ask(requests, url, "one").raw.headers.getlist("Set-Cookie")
    assert [cookie.partition("=")[0] for cookie in found] == [SESSION, OWNER]
    assert all(cookie.endswith("; Path=/; Max-Age=900; HttpOnly") for cookie in found)


def test_a_stream_sets_cookies_before_its_first_delta_and_names_the_session(
    fake: FakeProxy, url: str, browser: requests.Session
) -> None:
    fake.go_on.clear()
    answer = ask(browser, url, "hold on", stream=True)  # its headers are here, with a heartbeat
    session = browser.cookies[SESSION]
    fake.go_on.set()
    lines = [line.removeprefix(b"data: ") for line in answer.iter_lines() if line.startswith(b"data: ")]
    assert json.loads(lines[0])["session_id"] == session
    assert ask(browser, url, "then", stream=True).text.count("before: hold on") == 1


def test_the_field_session_id_names_the_session_too(url: str, browser: requests.Session) -> None:
    made = ask(browser, url, "one").json()["session_id"]
    owner = {OWNER: browser.cookies[OWNER]}
    answer = requests.post(f"{url}/query", json={"prompt": "two", "session_id": made}, cookies=owner, timeout=WAIT)
    assert answer.json()["text"] == "before: one"


def test_without_memory_there_is_no_session_and_no_cookie(url: str) -> None:
    answer = ask(requests, url, "one", memory="off")
    assert "session_id" not in answer.json()
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_event_sets_cookies_too(url: str, browser: requests.Session, stream: bool) -> None:
    assert ask(browser, url, "refuse me", stream=stream).status_code == 429
    assert set(browser.cookies.keys()) == {SESSION, OWNER}


def test_a_limit_of_a_key_is_a_429_that_says_when_to_come_back(url: str) -> None:
    refused = ask(requests, url, "refuse me")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "30")
    assert refused.json()["error"] == {
        "code": "RESOURCE_EXHAUSTED",
        "message": "this key may ask 2 times a minute",
        "origin": "proxy",
        "retry_after": 29.5,
    }


def test_a_store_without_room_is_no_fault_of_the_callers(url: str) -> None:
    assert ask(requests, url, "no room").status_code == 503


def test_who_calls_reaches_the_proxy_with_every_call_and_no_log(fake: FakeProxy, url: str) -> None:
    who = {
        "Cookie": f"x={CANARY}",
        "Authorization": f"Bearer {CANARY}",
        "X-API-Key": CANARY,
        "X-Request-Id": "r-7",
    }
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b"}
    headers = who | trace
    del fake.seen[:]
    requests.post(f"{url}/query", json={"prompt": "one"}, headers=headers, timeout=WAIT)
    for path in ("/sessions", "/sessions/none", "/chain", "/stats"):
        requests.get(f"{url}{path}", headers=headers, timeout=WAIT)
    requests.delete(f"{url}/sessions/none", headers=headers, timeout=WAIT)
    assert len(fake.seen) == 6
    for seen in fake.seen:
        assert {name.lower(): value for name, value in who.items()}.items() <= seen.items()
    assert trace.items() <= fake.seen[0].items()
    assert any("r-7" in line for line in LINES)
    assert not [line for line in LINES if CANARY in line]


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_header_that_cannot_go_on_is_a_400_that_names_it(url: str, method: str) -> None:
    headers = {"Cookie": b"x=" + CANARY.encode() + b"\xce\xbb"}
    path = "/query" if method == "post" else "/sessions"
    answer = requests.request(method, f"{url}{path}", json={"prompt": "x"}, headers=headers, timeout=WAIT)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("Cookie: ")
    assert CANARY not in answer.text


def test_sessions_are_listed_read_and_forgotten(url: str, browser: requests.Session) -> None:
    made = ask(browser, url, "one").json()["session_id"]
    ask(browser, url, "two")
    listed = browser.get(f"{url}/sessions", timeout=WAIT)
    at = "2023-11-14T22:13:20Z"
    assert listed.json() == {"sessions": [{"id": made, "created": at, "last_used": at, "turns": 2, "title": "one"}]}
    assert "proxy;dur=2" in listed.headers["Server-Timing"]

    session = browser.get(f"{url}/sessions/{made}", timeout=WAIT).json()
    first, second, last = session.pop("turns")
    assert session == {"id": made, "created": at, "last_used": at, "system": "be kind"}
    assert first == {
        "request_id": "r1",
        "prompt": "one",
        "text": "…",
        "state": "complete",
        "created": "2023-11-14T22:13:20.500000Z",
        "finish_reason": "tool_calls",
        "usage": {"completion_tokens": 5},
    }
    assert "finish_reason" not in second
    assert last["state"] == "cancelled"

    gone = browser.delete(f"{url}/sessions/{made}", timeout=WAIT)
    assert (gone.status_code, gone.content) == (204, b"")
    assert not {"Content-Length", "Content-Type", "Transfer-Encoding"} & gone.headers.keys()
    assert gone.headers["X-Request-Id"]
    assert browser.get(f"{url}/sessions/{made}", timeout=WAIT).status_code == 404
    assert browser.get(f"{url}/sessions", timeout=WAIT).json() == {"sessions": []}


def test_another_ones_session_is_not_there(url: str, browser: requests.Session) -> None:
    made = ask(browser, url, "one").json()["session_id"]
    for method in ("get", "delete"):
        refused = requests.request(method, f"{url}/sessions/{made}", timeout=WAIT)
        assert refused.status_code == 404
        assert refused.json()["error"] == {
            "code": "NOT_FOUND",
            "message": "there is no such session",
            "origin": "proxy",
        }


def test_models_are_what_the_proxy_names(url: str) -> None:
    assert requests.get(f"{url}/models", timeout=WAIT).json() == {
        "models": [
            {"id": "tiny", "provider": "llamacpp", "context_window": 2048},
            {"id": "big", "provider": "ollama"},
        ]
    }


def test_stats_have_the_shape_of_seed_002(url: str) -> None:
    assert requests.get(f"{url}/stats", timeout=WAIT).json() == {
        "connections": {"active_connections": 3, "total_connections": 127, "total_tokens_generated": 45678},
        "conversations": {
            "active_sessions": 4,
            "total_sessions": 7,
            "total_turns": 89,
            "total_tokens_generated": 45678,
        },
        "errors": {"total_errors": 3, "by_category": {"CANCELLED": 1, "UNAVAILABLE": 2}},
        "uptime_seconds": 9.5,
    }


def test_the_chain_is_every_hop_and_its_first_broken_one(fake: FakeProxy, url: str) -> None:
    whole = requests.get(f"{url}/chain", timeout=WAIT)
    assert whole.status_code == 200
    assert whole.json() == {"hops": [{"hop": "edge", "ok": True}, {"hop": "proxy", "ok": True}], "first_broken": None}
    fake.chain = pb.GetChainResponse(
        hops=[pb.HopStatus(hop="proxy", ok=True), pb.HopStatus(hop="backend", name="a", detail="no answer")],
        first_broken="backend",
    )
    broken = requests.get(f"{url}/chain", timeout=WAIT)
    assert broken.status_code == 503
    assert broken.json()["first_broken"] == "backend"
    assert broken.json()["hops"][2] == {"hop": "backend", "ok": False, "name": "a", "detail": "no answer"}


def test_a_proxy_that_is_not_there_is_the_first_broken_hop_and_the_reason_is_told() -> None:
    with edge_process(GRPC_PORT=str(free_ports().proxy)) as chain:
        found = requests.get(f"{chain.url}/chain", timeout=WAIT)
        assert found.status_code == 503
        assert found.json()["first_broken"] == "proxy"
        edge, proxy = found.json()["hops"]
        assert (edge["hop"], edge["ok"], proxy["hop"], proxy["ok"]) == ("edge", True, "proxy", False)
        assert "cannot be reached" in proxy["detail"]
        for path in ("/sessions", "/stats", "/models"):
            assert requests.get(f"{chain.url}{path}", timeout=WAIT).status_code == 503


def test_a_proxy_that_wants_a_key_says_so_at_every_route() -> None:
    with running(FakeProxy(key="k")) as port, edge_process(GRPC_PORT=str(port)) as chain:
        for path in ("/sessions", "/chain", "/stats"):
            refused = requests.get(f"{chain.url}{path}", timeout=WAIT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        key = {"Authorization": "Bearer k"}
        assert requests.get(f"{chain.url}/sessions", headers=key, timeout=WAIT).json() == {"sessions": []}
