"""The backend as the proxy sees it, when it keeps to the contract and in every way in which it may not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import msgspec
import pytest

from grpc_proxy.clients import Clients
from grpc_proxy.upstream import Upstream
from lambdalm import sse
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, ErrorBody, LlmError
from lambdalm.events import (
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    Tokens,
    ToolCallDelta,
    Usage,
)
from lambdalm.models import ModelInfo
from lambdalm.stream import ErrorAnswer
from lambdalm.testing.raw_http import OK_SSE, OK_SSE_CHUNKED, Peer, Play, RawServer, answer, chunk
from lambdalm.timings import HopTiming

from .conftest import DELTAS, END, STARTED, TIMINGS, USAGE, WAIT, WHOLE, failure, new_call, new_config, streamed

REQUEST = ChatRequest(prompt="What is λ?", model="tiny", max_tokens=7)
BEGUN = STARTED + DELTAS[0]
EVENTS: list[StreamEvent] = [
    Started("r1", "tiny"),
    TextDelta("Par"),
    TextDelta("is λ"),
    TextDelta("\u2028.\r\n"),
    Usage(3, 4),
    Finished(FinishReason.STOP, Tokens(3, 4), TIMINGS),
]
OURS = LlmError(Code.RESOURCE_EXHAUSTED, "no room: λ", retry_after=2.5, origin="llamacpp")


@contextlib.asynccontextmanager
async def upstream_of(url: str) -> AsyncIterator[Upstream]:
    config = new_config(url)
    async with Clients() as http:
        yield Upstream(http, config.upstreams["main"])


def sends(*pieces: bytes, reset: bool = False) -> Play:
    async def play(peer: Peer) -> None:
        await peer.send(*pieces)
        if reset:
            peer.reset()

    return play


async def read(play: Play, call: Call | None = None) -> tuple[list[StreamEvent], LlmError | None]:
    """The events that come of it, and how it fails if it does."""
    events: list[StreamEvent] = []
    async with RawServer(play) as backend, upstream_of(backend.url) as upstream:
        try:
            async for batch in streamed(upstream, REQUEST, call or new_call()):
                assert batch
                events += batch
        except LlmError as error:
            return events, error
    return events, None


async def fails(play: Play, code: Code, *events: StreamEvent) -> LlmError:
    """Check that it fails so, at the backend, after these events."""
    got, error = await read(play)
    assert got == list(events)
    assert error is not None
    assert (error.code, error.origin) == (code, "backend")
    return error


@pytest.mark.parametrize(
    "pieces",
    [
        [OK_SSE + WHOLE],
        [OK_SSE, *(WHOLE[at : at + 1] for at in range(len(WHOLE)))],
        [OK_SSE_CHUNKED, chunk(WHOLE), chunk(b"")],
        [OK_SSE_CHUNKED, *(chunk(WHOLE[at : at + 1]) for at in range(len(WHOLE))), chunk(b"")],
        [OK_SSE, sse.HEARTBEAT, STARTED, *(sse.HEARTBEAT + delta for delta in DELTAS), USAGE, END],
    ],
    ids=["at once", "byte by byte", "chunked", "chunk by byte", "with heartbeats"],
)
async def test_a_whole_stream_comes_as_it_was_sent_however_it_is_cut(pieces: list[bytes]) -> None:
    call = new_call()
    got, error = await read(sends(*pieces), call)
    assert error is None
    assert got == EVENTS
    assert call.clock.behind == TIMINGS


async def test_the_backend_is_asked_for_a_stream_with_less_time_than_the_call_has_and_its_id() -> None:
    async with RawServer(sends(OK_SSE + WHOLE)) as backend, upstream_of(backend.url) as upstream:
        async for _ in streamed(upstream, REQUEST, new_call(12.5)):
            pass
        (asked,) = backend.requests
    assert asked.target == "/query"
    assert asked.headers["x-request-id"] == "r1"
    assert 0 < float(asked.headers["x-request-timeout"]) < 12.5
    assert asked.headers["accept"] == "text/event-stream, application/json"
    assert asked.headers["content-type"] == "application/json"
    assert json.loads(asked.body) == {"prompt": "What is λ?", "model": "tiny", "max_tokens": 7, "stream": True}


async def test_a_connection_whose_stream_has_ended_is_used_again() -> None:
    connections = 0

    async def play(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await peer.send(OK_SSE_CHUNKED, chunk(WHOLE) + chunk(b""))
            if await peer.next_request() is None:
                return

    async with RawServer(play) as backend, upstream_of(backend.url) as upstream:
        for _ in range(2):
            got = [event async for batch in streamed(upstream, REQUEST, new_call()) for event in batch]
            assert got == EVENTS
    assert connections == 1


async def test_a_redirect_is_a_failure_and_not_followed() -> None:
    head = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with RawServer(sends(head)) as backend, upstream_of(backend.url) as upstream:
        with pytest.raises(LlmError, match="HTTP 307"):
            await anext(streamed(upstream, REQUEST, new_call()))
        assert [asked.target for asked in backend.requests] == ["/query"]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", OK_SSE[:-2]], ids=["nothing", "a word", "half the headers"])
async def test_a_connection_cut_before_the_stream_is_unavailable(sent: bytes, reset: bool) -> None:
    error = await fails(sends(sent, reset=reset), Code.UNAVAILABLE)
    assert "broke off" in error.message


@pytest.mark.parametrize(
    "sent",
    [
        OK_SSE + BEGUN,
        OK_SSE + BEGUN + DELTAS[1][:-1],
        OK_SSE_CHUNKED + chunk(BEGUN),
        OK_SSE_CHUNKED + chunk(BEGUN)[:-2],
    ],
    ids=["after an event", "inside an event", "between chunks", "inside a chunk"],
)
async def test_a_stream_that_just_stops_is_unavailable_after_what_has_come(sent: bytes) -> None:
    error = await fails(sends(sent), Code.UNAVAILABLE, *EVENTS[:2])
    assert "incomplete" in error.message


async def test_a_chunked_body_that_ends_well_without_an_end_event_is_unavailable() -> None:
    await fails(sends(OK_SSE_CHUNKED, chunk(BEGUN), chunk(b"")), Code.UNAVAILABLE, *EVENTS[:2])


@pytest.mark.parametrize("head", [OK_SSE, OK_SSE_CHUNKED], ids=["plain", "chunked"])
async def test_a_connection_reset_in_the_middle_is_unavailable_after_what_has_come(head: bytes) -> None:
    seen = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(head, BEGUN if head is OK_SSE else chunk(BEGUN))
        await seen.wait()
        peer.reset()

    async with RawServer(play) as backend, upstream_of(backend.url) as upstream:
        batches = streamed(upstream, REQUEST, new_call())
        got = list(await anext(batches))
        while len(got) < 2:
            got += await anext(batches)
        seen.set()
        with pytest.raises(LlmError, match="incomplete") as raised:
            await anext(batches)
    assert got == EVENTS[:2]
    assert (raised.value.code, raised.value.origin) == (Code.UNAVAILABLE, "backend")


async def test_broken_chunks_are_unavailable() -> None:
    got, error = await read(sends(OK_SSE_CHUNKED, chunk(BEGUN), b"zz\r\nwhat?\r\n"))
    assert got in ([], EVENTS[:2])  # aiohttp may throw away what came with the broken chunk
    assert error is not None
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "backend")


async def test_an_answer_is_whole_at_its_end_event_whatever_its_body_does_then() -> None:
    async def never_ends(peer: Peer) -> None:
        await peer.send(OK_SSE_CHUNKED + chunk(WHOLE))
        await peer.gone()

    for play in (sends(OK_SSE_CHUNKED, chunk(WHOLE)), never_ends):
        assert await read(play) == (EVENTS, None)


async def test_our_own_error_answer_in_pieces_is_passed_on_as_it_is() -> None:
    body = msgspec.json.encode(ErrorAnswer(ErrorBody.of(LlmError(Code.RESOURCE_EXHAUSTED, "no room", retry_after=2.5))))
    sent = answer("429 Too Many Requests", "application/json", body)

    async def in_pieces(peer: Peer) -> None:
        for at in range(len(sent)):
            await peer.send(sent[at : at + 1])

    error = await fails(in_pieces, Code.RESOURCE_EXHAUSTED)
    assert (error.message, error.retry_after) == ("no room", 2.5)


async def test_what_is_not_http_is_unavailable() -> None:
    await fails(sends(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), Code.UNAVAILABLE)


def plain(**parts: object) -> bytes:
    """A backend's answer in one piece."""
    body = {"id": "r1", "model": "tiny", "text": "Paris λ", "finish_reason": "stop", **parts}
    return answer("200 OK", "application/json", json.dumps(body).encode())


async def test_an_answer_in_one_piece_gives_the_events_of_a_stream() -> None:
    tools = [{"id": "c1", "name": "look_up", "arguments": "{}"}, {"name": "stop"}]
    usage, times = {"prompt_tokens": 3, "completion_tokens": 4}, {"backend": {"total_ms": 7.5, "own_ms": 0.5}}
    sent = plain(reasoning="Hm.", tool_calls=tools, finish_reason="tool_calls", usage=usage, timings=times)
    events, error = await read(sends(sent))
    assert error is None
    assert events == [
        Started("r1", "tiny"),
        ReasoningDelta("Hm."),
        TextDelta("Paris λ"),
        ToolCallDelta(0, "c1", "look_up", "{}"),
        ToolCallDelta(1, None, "stop"),
        Usage(3, 4),
        Finished(FinishReason.TOOL_CALLS, Tokens(3, 4), {"backend": HopTiming(7.5, own_ms=0.5)}),
    ]


async def test_an_answer_in_one_piece_leaves_unknown_what_it_does_not_say() -> None:
    events, error = await read(sends(plain(text="")))
    assert error is None
    assert events == [Started("r1", "tiny"), Finished(FinishReason.STOP)]


async def test_an_answer_in_one_piece_may_come_in_any_pieces_and_late() -> None:
    sent = plain()

    async def in_pieces(peer: Peer) -> None:
        for at in range(len(sent)):
            await peer.send(sent[at : at + 1])

    events, error = await read(in_pieces)
    assert error is None
    assert TextDelta("Paris λ") in events


async def test_an_answer_in_one_piece_that_is_cut_is_no_answer() -> None:
    await fails(sends(plain()[:-1]), Code.UNAVAILABLE)


async def test_an_answer_in_one_piece_that_is_too_large_is_internal() -> None:
    error = await fails(sends(plain(text="x" * 2**24)), Code.INTERNAL)
    assert "16 MiB" in error.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"[" * 5000, b'{"text": "Paris"}', b'{"id":"r","model":"m","text":"\xff"}']
)
async def test_an_answer_in_one_piece_that_makes_no_sense_is_internal(body: bytes) -> None:
    error = await fails(sends(answer("200 OK", "application/json", body)), Code.INTERNAL)
    assert "cannot be read" in error.message


async def test_an_error_of_the_api_gateway_before_the_backend_says_so() -> None:
    status = "504 Gateway Timeout\r\nApigw-Requestid: a\r\nRetry-After: 3"
    body = b'{"message": "Endpoint request timed out"}'
    error = await fails(sends(answer(status, "application/json", body)), Code.DEADLINE_EXCEEDED)
    assert error.message.startswith("the API gateway answered HTTP 504: Endpoint request timed out; ")
    assert error.retry_after == 3


async def test_the_configured_model_is_asked_for_where_a_request_names_none() -> None:
    async with RawServer(sends(OK_SSE + WHOLE)) as backend:
        config = new_config(backend.url, upstream={"model": "a"})
        async with Clients() as http:
            upstream = Upstream(http, config.upstreams["main"])
            for request in (ChatRequest(prompt="λ"), REQUEST):
                async for _ in streamed(upstream, request, new_call()):
                    pass
        assert [json.loads(asked.body)["model"] for asked in backend.requests] == ["a", "tiny"]


@pytest.mark.parametrize("kind", ["application/json", "text/html", "text/plain"])
async def test_a_200_that_is_no_event_stream_is_internal_and_names_its_type(kind: str) -> None:
    error = await fails(sends(answer("200 OK", kind, b'{"text": "Paris"}')), Code.INTERNAL)
    assert kind in error.message


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("302 Found", Code.UNAVAILABLE),
        ("404 Not Found", Code.NOT_FOUND),
        ("418 I'm a teapot", Code.INVALID_ARGUMENT),
        ("502 Bad Gateway", Code.UNAVAILABLE),
        ("504 Gateway Timeout", Code.DEADLINE_EXCEEDED),
    ],
)
@pytest.mark.parametrize("body", [b"<html>secret-canary</html>", b"", b"{", b'{"error": "x"}', b"[" * 5000])
async def test_a_failure_that_is_not_ours_is_its_status_and_its_body_stays_here(
    status: str, code: Code, body: bytes
) -> None:
    error = await fails(sends(answer(status, "text/html", body)), code)
    assert f"HTTP {status[:3]}" in error.message
    assert "secret-canary" not in error.message


async def test_our_own_error_answer_is_passed_on_as_it_is() -> None:
    call = new_call()
    body = msgspec.json.encode(ErrorAnswer(ErrorBody.of(OURS), TIMINGS))
    got, error = await read(sends(answer("429 Too Many Requests", "application/json", body)), call)
    assert got == []
    assert error is not None
    assert ErrorBody.of(error) == ErrorBody.of(OURS)
    assert call.clock.behind == TIMINGS


async def test_our_own_error_event_is_passed_on_as_it_is_after_what_came_before() -> None:
    call = new_call()
    got, error = await read(sends(OK_SSE + BEGUN, failure(OURS)), call)
    assert got == EVENTS[:2]
    assert error is not None
    assert ErrorBody.of(error) == ErrorBody.of(OURS)
    assert call.clock.behind == TIMINGS


@pytest.mark.parametrize(
    "nonsense",
    [
        sse.encode("text_delta", b'{"type":"text_delta","text":1}'),
        sse.encode("text_delta", b"{"),
        sse.encode("video", b'{"type":"video"}'),
        b'data: {"type":"text_delta","text":"\xff"}\n\n',
        STARTED,
    ],
    ids=["a wrong type", "no JSON", "an unknown event", "no UTF-8", "a second start"],
)
async def test_nonsense_in_the_stream_is_internal_after_what_came_before(nonsense: bytes) -> None:
    await fails(sends(OK_SSE + BEGUN, nonsense, END), Code.INTERNAL, *EVENTS[:2])


async def test_closing_the_stream_closes_the_connection() -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE + BEGUN)
        await peer.gone()
        left.set()

    async with RawServer(play) as backend, upstream_of(backend.url) as upstream:
        incoming = upstream.stream(REQUEST, new_call())
        await incoming.next()
        incoming.close()
        async with asyncio.timeout(WAIT):
            await left.wait()


async def test_a_task_cancelled_while_it_waits_closes_the_connection() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        asked.set()
        await peer.gone()
        left.set()

    async with RawServer(play) as backend, upstream_of(backend.url) as upstream:
        reading = asyncio.create_task(anext(streamed(upstream, REQUEST, new_call())))
        await asked.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async with asyncio.timeout(WAIT):
            await left.wait()


async def test_when_nothing_listens_it_is_unavailable_and_says_where_and_when_to_come_back() -> None:
    async with RawServer(sends()) as backend:
        url = backend.url
    async with upstream_of(url) as upstream:
        with pytest.raises(LlmError, match=r"http://127\.0\.0\.1:\d+ cannot be reached") as raised:
            await anext(streamed(upstream, REQUEST, new_call()))
        assert (raised.value.code, raised.value.origin, raised.value.retry_after) == (Code.UNAVAILABLE, "backend", 1)
        assert "cannot be reached" in ((await upstream.look()).why or "")
        with pytest.raises(LlmError, match="cannot be reached"):
            await upstream.models()


async def test_a_backend_is_healthy_only_if_its_health_is_200() -> None:
    async with RawServer(sends(answer("200 OK", "application/json", b"{}"))) as backend:
        async with upstream_of(backend.url) as upstream:
            assert (await upstream.look()).why is None
            backend.play = sends(answer("503 Service Unavailable", "application/json", b"{}"))
            assert "HTTP 503" in ((await upstream.look()).why or "")
            backend.play = sends(b"")
            assert "broke off" in ((await upstream.look()).why or "")
        assert {asked.target for asked in backend.requests} == {"/health"}


async def test_a_backend_that_never_answers_is_not_healthy() -> None:
    async with RawServer(Peer.gone) as backend, upstream_of(backend.url) as upstream:
        assert "no answer in time" in ((await upstream.look()).why or "")


async def test_models_are_those_that_the_backend_lists() -> None:
    listed = b'{"models":[{"id":"a","provider":"p","context_window":64,"later":1},{"id":"b","provider":"p"}]}'
    async with RawServer(sends(answer("200 OK", "application/json", listed))) as backend:
        async with upstream_of(backend.url) as upstream:
            assert await upstream.models() == [ModelInfo("a", "p", 64), ModelInfo("b", "p")]
        assert {asked.target for asked in backend.requests} == {"/models"}


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (answer("200 OK", "application/json", b'{"models":[{}]}'), Code.INTERNAL),
        (answer("200 OK", "text/html", b"<html>"), Code.INTERNAL),
        (answer("502 Bad Gateway", "text/html", b"<html>"), Code.UNAVAILABLE),
        (b"", Code.UNAVAILABLE),
    ],
)
async def test_models_that_make_no_sense_are_an_error_of_the_backend(sent: bytes, code: Code) -> None:
    async with RawServer(sends(sent)) as backend, upstream_of(backend.url) as upstream:
        with pytest.raises(LlmError) as raised:
            await upstream.models()
    assert (raised.value.code, raised.value.origin) == (code, "backend")


async def test_an_error_whose_body_does_not_come_is_told_by_its_status() -> None:
    async def stalls(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 100\r\n\r\nhalf")
        await peer.gone()

    events, error = await read(stalls)
    assert events == []
    assert error is not None
    assert (error.code, error.retry_after) == (Code.UNAVAILABLE, 7)


async def test_a_backend_that_wants_a_token_says_what_the_proxy_lacks() -> None:
    body = b'{"error": {"code": "UNAUTHENTICATED", "message": "who?", "origin": "backend"}}'
    refuses = answer("401 Unauthorized", "application/json", body)
    _, error = await read(sends(refuses))
    assert error is not None
    assert (error.code, error.origin) == (Code.UNAUTHENTICATED, "backend")
    assert "BACKEND_TOKEN_FILE" in error.message
