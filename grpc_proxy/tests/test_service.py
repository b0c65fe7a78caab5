"""LlmService over real gRPC, in front of a backend that sends what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec
import pytest
from google.rpc import error_details_pb2, status_pb2

from grpc_proxy import door
from lambdalm import timings
from lambdalm.errors import Code, ErrorBody, LlmError
from lambdalm.events import Answer, Delta, Finished, FinishReason, ReasoningDelta, TextDelta, ToolCall, ToolCallDelta
from lambdalm.stream import ErrorAnswer, encode_event
from lambdalm.testing.raw_http import OK_SSE, Peer, Play, RawServer, answer
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import (
    DELTAS,
    END,
    SOON,
    STARTED,
    TEXT,
    TIMINGS,
    USAGE,
    WAIT,
    WHOLE,
    all_ended,
    failure,
    new_config,
    proxy_here,
    whole_proxy_here,
)

BEGUN = STARTED + DELTAS[0]
NO_ROOM = LlmError(Code.RESOURCE_EXHAUSTED, "no room: λ", retry_after=2.5, origin="llamacpp")
HELLO = pb.LLMRequest(prompt="Hello!")


class Wire:
    """The proxy with a raw backend behind it; `play` is what that does next."""

    def __init__(self, backend: RawServer, channel: grpc.aio.Channel) -> None:
        self.backend = backend
        self.stub: Any = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]

    def sends(self, *pieces: bytes) -> None:
        self.backend.play = lambda peer: peer.send(*pieces)

    def asked(self) -> dict[str, Any]:
        """The one request that has come to the backend."""
        (request,) = self.backend.requests
        body: dict[str, Any] = json.loads(request.body)
        return body


def wired(**parts: Any) -> pytest.MarkDecorator:
    """Marks a test whose proxy has this config."""
    return pytest.mark.parametrize("parts", [parts], ids=[""])


@pytest.fixture
def parts() -> dict[str, Any]:
    return {}


@pytest.fixture
async def wire(parts: dict[str, Any]) -> AsyncIterator[Wire]:
    async def whole(peer: Peer) -> None:
        await peer.send(OK_SSE + WHOLE)

    async with RawServer(whole) as backend, proxy_here(new_config(backend.url, **parts)) as channel:
        yield Wire(backend, channel)


def kinds(events: list[pb.LLMStreamEvent]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


def said(events: list[pb.LLMStreamEvent]) -> str:
    return "".join(event.text_delta.text for event in events)


async def fails(call: Any) -> tuple[list[pb.LLMStreamEvent], grpc.aio.AioRpcError]:
    """The events of a stream until it fails, and how it does."""
    events: list[pb.LLMStreamEvent] = []

    async def read() -> None:
        async for event in call:
            events.append(event)

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read()
    return events, raised.value


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """How a call with one answer fails."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


def trailing_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    metadata: Any = error.trailing_metadata()
    return dict(metadata)


def details(error: grpc.aio.AioRpcError) -> tuple[str, float | None]:
    """Origin and seconds to wait, read as any client would that knows google.rpc."""
    raw = trailing_of(error)["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    origin, seconds = "", None
    for detail in status.details:
        if detail.Unpack(info):
            assert (info.domain, info.reason) == ("lambdalm", error.code().name)
            origin = info.metadata["origin"]
        elif detail.Unpack(retry):
            seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return origin, seconds


def held(first: bytes) -> tuple[Play, asyncio.Event]:
    """A backend that sends this and then nothing, and the event that its caller has hung up."""
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(first)
        await peer.gone()
        left.set()

    return play, left


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT):
        await event.wait()


async def test_a_stream_has_its_start_its_text_and_its_end_with_all_hops_times(wire: Wire) -> None:
    call = wire.stub.GenerateStream(HELLO, metadata=(("x-request-id", "my-id"),))
    events = [event async for event in call]
    assert kinds(events)[0] == "started"
    assert kinds(events)[-2:] == ["usage", "finished"]
    assert set(kinds(events)[1:-2]) == {"text_delta"}
    assert (events[0].started.id, events[0].started.model) == ("r1", "tiny")
    assert said(events) == TEXT
    end = events[-1].finished
    assert end.reason == pb.FINISH_REASON_STOP
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (3, 4)
    assert [share.hop for share in end.timings] == ["backend", "proxy"]
    assert wire.backend.requests[0].headers["x-request-id"] == "my-id"
    trailing = dict(await call.trailing_metadata())
    assert trailing["x-request-id"] == "my-id"
    assert timings.decode(trailing["server-timing"])["backend"] == TIMINGS["backend"]
    assert timings.decode(trailing["server-timing"])["proxy"].first_token_ms is not None


async def test_every_kind_of_delta_passes(wire: Wire) -> None:
    tool = [ToolCallDelta(0, "c1", "look_up", '{"q":'), ToolCallDelta(0, arguments='"λ"}')]
    deltas: list[Delta] = [ReasoningDelta("Hm. "), *tool, TextDelta("So.")]
    wire.sends(
        OK_SSE + STARTED,
        *(encode_event(delta) for delta in deltas),
        encode_event(Finished(FinishReason.TOOL_CALLS)),
    )
    whole = await wire.stub.Generate(HELLO)
    assert (whole.reasoning, whole.text) == ("Hm. ", "So.")
    assert [(call.id, call.name, call.arguments) for call in whole.tool_calls] == [("c1", "look_up", '{"q":"λ"}')]
    assert whole.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert not whole.HasField("usage")


async def test_generate_gives_the_whole_answer(wire: Wire) -> None:
    found = await wire.stub.Generate(HELLO)
    assert (found.id, found.model, found.text, found.finish_reason) == ("r1", "tiny", TEXT, pb.FINISH_REASON_STOP)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 4)
    assert [share.hop for share in found.timings] == ["backend", "proxy"]


async def test_generate_text_passes_prompt_and_max_tokens_on_and_gives_the_text(wire: Wire) -> None:
    found = await wire.stub.generateText(pb.LlmQueryRequest(prompt="λ?", max_tokens=9))
    assert found.text == TEXT
    assert wire.asked() == {"prompt": "λ?", "max_tokens": 9}


async def test_all_of_a_request_is_passed_on(wire: Wire) -> None:
    given = pb.LLMRequest.Parameters(
        temperature=0.7, max_tokens=5, top_p=0.9, presence_penalty=-1.5, frequency_penalty=0, stop=["\n", "λ"], seed=-3
    )
    turns = [pb.ChatMessage(role="system", content="Be brief."), pb.ChatMessage(role="user", content="λ?")]
    await wire.stub.Generate(pb.LLMRequest(messages=turns, model="tiny", parameters=given))
    assert wire.asked() == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "λ?"}],
        "model": "tiny",
        "temperature": 0.7,
        "max_tokens": 5,
        "top_p": 0.9,
        "presence_penalty": -1.5,
        "frequency_penalty": 0,
        "stop": ["\n", "λ"],
        "seed": -3,
    }


async def test_list_models_gives_those_of_the_backend(wire: Wire) -> None:
    listed = b'{"models":[{"id":"a","provider":"p","context_window":64},{"id":"b","provider":"q"}]}'
    wire.sends(answer("200 OK", "application/json", listed))
    found = await wire.stub.ListModels(pb.ListModelsRequest())
    assert [(model.id, model.provider) for model in found.models] == [("a", "p"), ("b", "q")]
    assert found.models[0].context_window == 64
    assert not found.models[1].HasField("context_window")


@wired(stream={"heartbeat_seconds": SOON})
async def test_the_start_is_held_back_until_the_first_delta_and_heartbeats_go_before_it(wire: Wire) -> None:
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE + STARTED)
        await go_on.wait()
        await peer.send(*DELTAS, USAGE, END)

    wire.backend.play = play
    events: list[pb.LLMStreamEvent] = []
    async for event in wire.stub.GenerateStream(HELLO):
        events.append(event)
        if kinds(events) == ["heartbeat"] * 3:
            go_on.set()
    assert kinds(events)[:3] == ["heartbeat"] * 3
    assert [kind for kind in kinds(events) if kind != "heartbeat"][:2] == ["started", "text_delta"]
    assert said(events) == TEXT


async def test_a_failure_before_the_first_delta_is_a_status_and_no_event(wire: Wire) -> None:
    wire.sends(OK_SSE + STARTED + USAGE, failure(NO_ROOM))
    events, error = await fails(wire.stub.GenerateStream(HELLO))
    assert events == []
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room: λ")


async def test_a_failure_after_the_first_delta_follows_what_was_said(wire: Wire) -> None:
    wire.sends(OK_SSE + BEGUN, failure(NO_ROOM))
    events, error = await fails(wire.stub.GenerateStream(HELLO))
    assert kinds(events) == ["started", "text_delta"]
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_that_just_stops_is_never_an_answer(wire: Wire) -> None:
    wire.sends(OK_SSE + BEGUN)
    events, error = await fails(wire.stub.GenerateStream(HELLO))
    assert kinds(events) == ["started", "text_delta"]
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert (await refused(wire.stub.Generate(HELLO))).code() is grpc.StatusCode.UNAVAILABLE


async def test_an_answer_without_text_is_whole(wire: Wire) -> None:
    wire.sends(OK_SSE + STARTED, END)
    assert kinds([event async for event in wire.stub.GenerateStream(HELLO)]) == ["started", "finished"]


async def test_a_failure_says_where_it_happened_when_to_come_back_and_where_the_time_went(wire: Wire) -> None:
    wire.sends(
        answer(
            "429 Too Many Requests",
            "application/json",
            msgspec.json.encode(ErrorAnswer(ErrorBody.of(NO_ROOM), TIMINGS)),
        )
    )
    for call in (wire.stub.GenerateStream(HELLO), wire.stub.Generate(HELLO)):
        error = await refused(call.read() if hasattr(call, "read") else call)
        assert details(error) == ("llamacpp", 2.5)
        trailing = trailing_of(error)
        assert list(timings.decode(trailing["server-timing"])) == ["backend", "proxy"]
        assert len(trailing["x-request-id"]) == 32


async def test_what_the_backend_leaves_unsaid_is_its_fault(wire: Wire) -> None:
    wire.sends(OK_SSE + BEGUN)
    assert details(await refused(wire.stub.Generate(HELLO))) == ("backend", None)


@pytest.mark.parametrize("given", ["", "two words", "a/b", "x" * 129])
async def test_an_id_that_could_not_be_passed_on_is_refused(wire: Wire, given: str) -> None:
    error = await refused(wire.stub.Generate(HELLO, metadata=(("x-request-id", given),)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "X-Request-Id" in (error.details() or "")
    assert wire.backend.requests == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.LLMRequest(), "prompt"),
        (pb.LLMRequest(messages=[pb.ChatMessage(role="user", content="hi")], session_id="s1"), "messages"),
        (pb.LLMRequest(prompt="hi", messages=[pb.ChatMessage(role="user", content="hi")]), "messages"),
        (pb.LLMRequest(messages=[pb.ChatMessage(role="wizard", content="hi")]), "messages[0].role"),
        (pb.LLMRequest(prompt="hi", parameters=pb.LLMRequest.Parameters(temperature=2.1)), "temperature"),
        (pb.LLMRequest(prompt="hi", parameters=pb.LLMRequest.Parameters(max_tokens=0)), "max_tokens"),
        (pb.LLMRequest(prompt="hi", parameters=pb.LLMRequest.Parameters(top_p=float("nan"))), "top_p"),
    ],
    ids=["nothing", "messages in a session", "both", "a role", "temperature", "max_tokens", "NaN"],
)
async def test_a_request_that_cannot_be_answered_is_refused_by_its_field(
    wire: Wire, request_: pb.LLMRequest, field: str
) -> None:
    error = await refused(wire.stub.Generate(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith(f"{field}:")
    assert details(error) == ("proxy", None)
    assert wire.backend.requests == []


@wired(limits={"max_in_flight": 1}, stream={"heartbeat_seconds": SOON})
async def test_above_max_in_flight_a_call_is_refused_at_once_until_another_has_ended(wire: Wire) -> None:
    wire.backend.play, left = held(b"")
    running = wire.stub.GenerateStream(HELLO)
    assert (await running.read()).WhichOneof("event") == "heartbeat"
    error = await refused(wire.stub.Generate(HELLO))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(error) == ("proxy", 1)
    running.cancel()
    await soon(left)
    wire.sends(OK_SSE + WHOLE)
    assert (await wire.stub.Generate(HELLO)).text == TEXT


@wired(limits={"max_message_bytes": 1000})
@pytest.mark.parametrize("size", [2000, 10_000_000])
async def test_a_message_over_the_limit_is_resource_exhausted(wire: Wire, size: int) -> None:
    error = await refused(wire.stub.Generate(pb.LLMRequest(prompt="x" * size)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert wire.backend.requests == []


@wired(limits={"default_timeout": 0.8})
@pytest.mark.parametrize("sent", [b"", OK_SSE, OK_SSE + BEGUN], ids=["before the headers", "after them", "mid-stream"])
async def test_a_call_without_a_deadline_ends_at_the_default_one(wire: Wire, sent: bytes) -> None:
    wire.backend.play, left = held(sent)
    _, error = await fails(wire.stub.GenerateStream(HELLO))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details(error) == ("proxy", None)
    await soon(left)
    assert float(wire.backend.requests[0].headers["x-request-timeout"]) < 0.8


@wired(limits={"max_timeout": 0.8})
async def test_no_deadline_is_later_than_the_maximum(wire: Wire) -> None:
    wire.backend.play, left = held(b"")
    error = await refused(wire.stub.Generate(HELLO, timeout=WAIT))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details(error) == ("proxy", None)  # it was not the caller's own
    await soon(left)


async def test_the_callers_deadline_ends_the_generation(wire: Wire) -> None:
    wire.backend.play, left = held(OK_SSE + BEGUN)
    error = await refused(wire.stub.Generate(HELLO, timeout=1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await soon(left)
    assert float(wire.backend.requests[0].headers["x-request-timeout"]) < 1


@wired(stream={"heartbeat_seconds": SOON})
@pytest.mark.parametrize("sent", [b"", OK_SSE, OK_SSE + BEGUN], ids=["before the headers", "after them", "mid-stream"])
async def test_when_the_caller_leaves_the_connection_to_the_backend_closes(wire: Wire, sent: bytes) -> None:
    wire.backend.play, left = held(sent)
    call = wire.stub.GenerateStream(HELLO)
    await call.read()
    while not wire.backend.requests:
        await call.read()
    call.cancel()
    await soon(left)


async def test_a_backend_that_is_gone_is_unavailable_with_a_time_to_come_back(wire: Wire) -> None:
    async with RawServer(Peer.gone) as gone:
        url = gone.url
    async with proxy_here(new_config(url)) as channel:
        stub: Any = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
        for call in (stub.Generate(HELLO), stub.ListModels(pb.ListModelsRequest())):
            error = await refused(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert details(error) == ("backend", 1)


@wired(stream={"frames_per_second": 1})
async def test_over_the_budget_of_frames_no_text_is_lost(wire: Wire) -> None:
    words = [f"{number} " for number in range(3000)]
    wire.sends(OK_SSE + STARTED, *(encode_event(TextDelta(word)) for word in words), END)
    events = [event async for event in wire.stub.GenerateStream(HELLO)]
    assert said(events) == "".join(words)
    assert len(events) < len(words)


async def test_many_calls_at_a_time_keep_their_answers_apart(wire: Wire) -> None:
    async def play(peer: Peer) -> None:
        prompt = json.loads(peer.request.body)["prompt"]
        await peer.send(OK_SSE + STARTED)
        for letter in prompt:
            await peer.send(encode_event(TextDelta(letter)))
        await peer.send(END)

    wire.backend.play = play
    prompts = [f"call {number} λ" for number in range(50)]
    found = await asyncio.gather(*(wire.stub.Generate(pb.LLMRequest(prompt=prompt)) for prompt in prompts))
    assert [whole.text for whole in found] == prompts


def plain(text: str, *tools: ToolCall, model: str = "tiny") -> bytes:
    found = Answer("r1", model, text, FinishReason.STOP, tool_calls=tools, timings=TIMINGS)
    body = msgspec.json.encode(found)
    return answer("200 OK", "application/json", body)


async def test_generate_asks_for_the_answer_in_one_piece(wire: Wire) -> None:
    wire.sends(plain("So."))
    call = wire.stub.Generate(HELLO)
    found = await call
    assert (found.text, found.model, found.finish_reason) == ("So.", "tiny", pb.FINISH_REASON_STOP)
    assert [share.hop for share in found.timings] == ["backend", "proxy"]
    assert list(timings.decode(dict(await call.trailing_metadata())["server-timing"])) == ["backend", "proxy"]
    assert wire.asked() == {"prompt": "Hello!"}


async def test_when_the_caller_of_a_plain_answer_leaves_its_connection_closes(wire: Wire) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        asked.set()
        await peer.gone()
        left.set()

    wire.backend.play = play
    call = wire.stub.Generate(HELLO)
    waiting = asyncio.create_task(refused(call))
    await soon(asked)
    waiting.cancel()
    await soon(left)


@wired(limits={"max_message_bytes": 20_000})
@pytest.mark.parametrize("memory", [pb.MEMORY_ON, pb.MEMORY_OFF])
async def test_an_answer_over_the_message_limit_says_what_to_do(wire: Wire, memory: pb.Memory) -> None:
    wire.sends(plain("λ" * 10_000))
    request = pb.LLMRequest(prompt="Hello!", memory=memory)
    error = await refused(wire.stub.Generate(request))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert "stream" in (error.details() or "")
    assert "max_tokens" in (error.details() or "")
    assert details(error) == ("proxy", None)
    wire.sends(plain("λ" * 7_000))
    assert (await wire.stub.Generate(request)).text == "λ" * 7_000


@wired(limits={"max_message_bytes": 20_000})
@pytest.mark.parametrize(
    "sent",
    [
        plain("", *[ToolCall("x" * 50, "y" * 50)] * 200),
        plain("", *[ToolCall()] * 20_000),
        plain("", model="x" * 20_000),
    ],
    ids=["tool calls", "empty tool calls", "its model's name"],
)
async def test_all_of_an_answer_counts_to_the_message_limit(wire: Wire, sent: bytes) -> None:
    wire.sends(sent)
    assert (await refused(wire.stub.Generate(HELLO))).code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_text_over_the_message_limit_comes_as_a_stream(wire: Wire) -> None:
    text = "λ" * 3_000_000
    wire.sends(plain(text))
    assert said([event async for event in wire.stub.GenerateStream(HELLO)]) == text


async def test_a_tool_call_over_the_message_limit_comes_as_a_stream(wire: Wire) -> None:
    arguments = "λ" * 3_000_000
    wire.sends(plain("", ToolCall("c1", "add", arguments), ToolCall("c2", "sub", "{}")))
    found = [event.tool_call_delta async for event in wire.stub.GenerateStream(HELLO)]
    called = [delta for delta in found if delta.arguments]
    assert "".join(delta.arguments for delta in called if delta.index == 0) == arguments
    assert [(delta.index, delta.id, delta.name) for delta in called if delta.id] == [(0, "c1", "add"), (1, "c2", "sub")]


@wired(stream={"write_seconds": 0.5})
async def test_a_reader_that_takes_nothing_ends_the_generation(wire: Wire) -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE + BEGUN)
        with contextlib.suppress(ConnectionError):
            while True:
                await peer.send(encode_event(TextDelta("x" * 60_000)))
        left.set()

    wire.backend.play = play
    call = wire.stub.GenerateStream(HELLO)
    await call.read()
    await soon(left)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _to_its_end(call)
    assert raised.value.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    "parts",
    [{"stream": {"write_seconds": 0.5}}, {"limits": {"default_timeout": 0.5}}],
    ids=["it reads nothing", "its time is up"],
)
async def test_a_call_ends_though_its_reader_takes_no_error(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(peer: Peer) -> None:
        await peer.send(OK_SSE + BEGUN)
        with contextlib.suppress(ConnectionError):
            while True:
                await peer.send(encode_event(TextDelta("x" * 60_000)))

    monkeypatch.setattr(door, "_ERROR_SECONDS", SOON)
    async with RawServer(play) as backend, whole_proxy_here(new_config(backend.url, **parts)) as here:
        call: Any = llm_pb2_grpc.LlmServiceStub(here.channel).GenerateStream(HELLO)  # type: ignore[no-untyped-call]
        await call.read()
        await all_ended(here.proxy)


async def _to_its_end(call: Any) -> None:
    while await call.read():
        pass
