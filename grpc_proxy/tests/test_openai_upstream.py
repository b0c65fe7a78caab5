"""The dialect `openai`: the proxy straight on an OpenAI-style server, real or raw.

That all of its faults come out as from our own backend is shown in `tests/test_dialects.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest

from grpc_proxy.clients import Clients
from grpc_proxy.upstream import Upstream
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, Message
from lambdalm.errors import Code, LlmError
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
from lambdalm.testing.fake_openai import FakeOpenAI
from lambdalm.testing.raw_http import OK_SSE, OK_SSE_CHUNKED, Peer, Play, RawServer, answer, chunk
from lambdalm.timings import HopClock
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import SOON, WAIT, new_call, new_config, proxy_here, streamed

REQUEST = ChatRequest(prompt="What is λ?")
EVERYTHING = ChatRequest(
    messages=(Message("developer", "Be brief."), Message("user", "λ?")),
    model="tiny",
    max_tokens=7,
    temperature=0.5,
    top_p=0.9,
    presence_penalty=1,
    frequency_penalty=-1,
    stop=("\n",),
    seed=3,
)


def data(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)


def says(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"model": "tiny-1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


WHOLE = data(says("Par"), says("is", "stop"), {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
WHOLE += b"data: [DONE]\n\n"
END: list[StreamEvent] = [Usage(3, 2), Finished(FinishReason.STOP, Tokens(3, 2))]


def sends(*pieces: bytes) -> Play:
    return lambda peer: peer.send(*pieces)


def base(backend: RawServer) -> str:
    return backend.url.replace("/query", "/v1")


@contextlib.asynccontextmanager
async def upstream_of(url: str, **upstream: Any) -> AsyncIterator[Upstream]:
    config = new_config(url, upstream={"dialect": "openai", **upstream})
    async with Clients() as http:
        yield Upstream(http, config.upstreams["main"])


async def read(
    play: Play, request: ChatRequest = REQUEST, call: Call | None = None
) -> tuple[list[StreamEvent], LlmError | None]:
    """The events that come of it, and how it fails if it does."""
    events: list[StreamEvent] = []
    async with RawServer(play) as backend, upstream_of(base(backend)) as upstream:
        try:
            async for batch in streamed(upstream, request, call or new_call()):
                events += batch
        except LlmError as error:
            return events, error
    return events, None


async def failure(asking: Awaitable[object]) -> LlmError:
    with pytest.raises(LlmError) as raised:
        await asking
    return raised.value


@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_server_is_asked_in_its_own_words(slash: str) -> None:
    async with RawServer(sends(OK_SSE + WHOLE)) as backend, upstream_of(base(backend) + slash) as upstream:
        async for _ in streamed(upstream, EVERYTHING, new_call()):
            pass
        (asked,) = backend.requests
    assert asked.target == "/v1/chat/completions"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["x-request-id"] == "r1"
    assert "authorization" not in asked.headers
    assert json.loads(asked.body) == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "λ?"}],
        "model": "tiny",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "stop": ["\n"],
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_the_configured_model_is_asked_for_where_a_request_names_none() -> None:
    async with RawServer(sends(OK_SSE + WHOLE)) as backend:
        for configured, named, model in (("a", None, "a"), ("a", "b", "b"), (None, "b", "b"), (None, None, None)):
            async with upstream_of(base(backend), model=configured) as upstream:
                async for _ in streamed(upstream, ChatRequest(prompt="λ", model=named), new_call()):
                    pass
            assert json.loads(backend.requests[-1].body).get("model") == model


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_stream_is_read_however_it_is_cut(size: int) -> None:
    pieces = [chunk(WHOLE[at : at + size]) for at in range(0, len(WHOLE), size)]
    events, error = await read(sends(OK_SSE_CHUNKED, *pieces, chunk(b"")))
    assert error is None
    assert events == [Started("r1", "tiny-1"), TextDelta("Par"), TextDelta("is"), *END]


async def test_a_server_that_does_not_stream_gives_the_same_events() -> None:
    tool = {"id": "c1", "function": {"name": "look_up", "arguments": "{}"}}
    message = {"content": "So.", "reasoning_content": "Hm.", "tool_calls": [tool]}
    whole = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    events, error = await read(sends(answer("200 OK", "application/json", json.dumps(whole).encode())))
    assert error is None
    assert events == [
        Started("r1", "default"),
        ReasoningDelta("Hm."),
        TextDelta("So."),
        ToolCallDelta(0, "c1", "look_up", "{}"),
        Usage(3),
        Finished(FinishReason.STOP, Tokens(3)),
    ]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (answer("200 OK", "application/json", b"{}"), Code.UNAVAILABLE),
        (answer("200 OK", "application/json", b"{"), Code.INTERNAL),
        (answer("200 OK", "application/json", b'{"error": {"message": "no", "code": 429}}'), Code.RESOURCE_EXHAUSTED),
        (answer("200 OK", "text/html", b"<html>"), Code.INTERNAL),
        (answer("302 Found", "text/html", b"<html>"), Code.UNAVAILABLE),
        (answer("404 Not Found", "application/json", b'{"error": {"message": "no tiny"}}'), Code.NOT_FOUND),
        (answer("401 Unauthorized", "application/json", b'{"error": "who?"}'), Code.UNAUTHENTICATED),
        (b"", Code.UNAVAILABLE),
    ],
)
async def test_what_is_no_answer_is_an_error_of_the_server(sent: bytes, code: Code) -> None:
    events, error = await read(sends(sent))
    assert events == []
    assert error is not None
    assert (error.code, error.origin) == (code, "openai")


async def test_a_refusal_for_want_of_a_key_says_where_to_give_one() -> None:
    _, error = await read(sends(answer("401 Unauthorized", "application/json", b'{"error": "who?"}')))
    assert error is not None
    assert "answered HTTP 401: who?; its auth in the config (BACKEND_AUTH, BACKEND_TOKEN_FILE)" in error.message


async def test_what_came_before_the_connection_broke_is_not_lost_on_a_slow_reader() -> None:
    has_begun, has_left = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE_CHUNKED + chunk(data(says("Par"))))
        await has_begun.wait()
        await peer.send(chunk(data(says("is"))))
        has_left.set()

    async with RawServer(play) as backend, upstream_of(base(backend)) as upstream:
        batches = streamed(upstream, REQUEST, new_call())
        assert await anext(batches) == [Started("r1", "tiny-1"), TextDelta("Par")]
        has_begun.set()
        await has_left.wait()
        for _ in range(100):  # turns of the loop: that the connection has closed is seen in one of the first
            await asyncio.sleep(0)
        assert await anext(batches) == [TextDelta("is")]
        error = await failure(anext(batches))
    assert (error.code, error.origin, error.retry_after) == (Code.UNAVAILABLE, "openai", 1)
    assert "broke off" in error.message


async def test_when_nothing_listens_it_is_unavailable_and_says_where() -> None:
    async with RawServer(sends()) as backend:
        url = base(backend)
    async with upstream_of(url) as upstream:
        with pytest.raises(LlmError, match=rf"openai at {url} cannot be reached: Connection refused") as raised:
            await anext(streamed(upstream, REQUEST, new_call()))
        assert (raised.value.code, raised.value.origin, raised.value.retry_after) == (Code.UNAVAILABLE, "openai", 1)
        assert "cannot be reached" in ((await upstream.look()).why or "")


async def test_the_retry_after_of_a_refusal_is_kept() -> None:
    for given, seconds in (("7", 7), ("0", 0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("nan", None)):
        head = (
            f"HTTP/1.1 429 Too Many Requests\r\nRetry-After: {given}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        _, error = await read(sends(head.encode()))
        assert error is not None
        assert (given, error.retry_after) == (given, seconds)


async def test_the_time_of_a_server_that_tells_none_is_not_the_proxys_own() -> None:
    now = 100.0
    clock = HopClock("proxy", lambda: now)
    call = Call("r1", WAIT, clock)
    now = 101.0
    async with RawServer(sends(OK_SSE + WHOLE)) as backend, upstream_of(base(backend)) as upstream:
        async for _ in streamed(upstream, REQUEST, call):
            now = 105.0
    share = clock.timings()["proxy"]
    assert (share.total_ms, share.own_ms) == (5000, 1000)


async def test_models_are_those_that_the_server_lists_and_the_configured_one_is_first() -> None:
    listed = b'{"object":"list","data":[{"id":"a","max_model_len":64,"owned_by":"x"},{"id":"b"}]}'
    async with RawServer(sends(answer("200 OK", "application/json", listed))) as backend:
        async with upstream_of(base(backend)) as upstream:
            assert await upstream.models() == [ModelInfo("a", "openai", 64), ModelInfo("b", "openai")]
        async with upstream_of(base(backend), model="b") as upstream:
            assert [model.id for model in await upstream.models()] == ["b", "a"]
        assert {asked.target for asked in backend.requests} == {"/v1/models"}


@pytest.mark.parametrize("body", [b"{}", b'{"data": [{}]}', b"<html>", b"[" * 5000])
async def test_models_that_make_no_sense_are_an_error_of_the_server(body: bytes) -> None:
    play = sends(answer("200 OK", "application/json", body))
    async with RawServer(play) as backend, upstream_of(base(backend)) as upstream:
        error = await failure(upstream.models())
    assert (error.code, error.origin) == (Code.INTERNAL, "openai")


async def test_it_is_healthy_while_it_lists_its_models() -> None:
    play = sends(answer("200 OK", "application/json", b"{}"))
    async with RawServer(play) as backend, upstream_of(base(backend)) as upstream:
        assert (await upstream.look()).why is None
        backend.play = sends(answer("503 Service Unavailable", "application/json", b"{}"))
        assert (await upstream.look()).why == "its /models answers HTTP 503"
        backend.play = Peer.gone
        assert "no answer in time" in ((await upstream.look()).why or "")
        assert {asked.target for asked in backend.requests} == {"/v1/models"}


async def test_a_server_that_lists_no_models_lives() -> None:
    play = sends(answer("404 Not Found", "application/json", b"{}"))
    async with RawServer(play) as backend, upstream_of(base(backend)) as upstream:
        assert (await upstream.look()).why is None


@contextlib.asynccontextmanager
async def proxy_on(fake: FakeOpenAI, **parts: Any) -> AsyncIterator[Any]:
    config = new_config(f"{fake.url}/v1", upstream={"dialect": "openai"}, **parts)
    async with proxy_here(config) as channel:
        yield llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]


async def has(semaphore: Any) -> bool:
    return await asyncio.to_thread(semaphore.acquire, timeout=WAIT)


STALLS = pytest.mark.parametrize("model", ["stall-headers", "stall-first", "stall"])


@STALLS
async def test_when_the_caller_leaves_the_server_notices(model: str) -> None:
    with FakeOpenAI() as fake:
        async with proxy_on(fake) as stub:
            call = stub.GenerateStream(pb.LLMRequest(prompt="λ", model=model))
            assert await has(fake.stalling)
            call.cancel()
            assert await has(fake.hung_up)


@STALLS
async def test_when_the_time_is_up_the_server_notices(model: str) -> None:
    with FakeOpenAI() as fake:
        async with proxy_on(fake, limits={"default_timeout": 0.5}) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Generate(pb.LLMRequest(prompt="λ", model=model))
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert await has(fake.hung_up)


@STALLS
async def test_while_the_server_is_silent_there_are_heartbeats(model: str) -> None:
    with FakeOpenAI() as fake:
        async with proxy_on(fake, stream={"heartbeat_seconds": SOON}) as stub:
            call = stub.GenerateStream(pb.LLMRequest(prompt="λ", model=model))
            beats = 0
            while beats < 3:
                beats += (await call.read()).HasField("heartbeat")
            call.cancel()
            assert await has(fake.hung_up)


async def test_llama_servers_error_field_is_the_same_error() -> None:
    details = []
    for error_field in (False, True):
        with FakeOpenAI(error_field=error_field) as fake:
            async with proxy_on(fake) as stub:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.Generate(pb.LLMRequest(prompt="λ", model="error-in-stream"))
            assert raised.value.code() is grpc.StatusCode.INTERNAL
            details.append((raised.value.details() or "").partition(" failed ")[2])
    assert details == ["in the middle of its answer: the engine died"] * 2
