"""The gRPC proxy as the edge sees it, over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, ErrorBody, LlmError
from lambdalm.events import (
    Answer,
    Finished,
    FinishReason,
    Heartbeat,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    Tokens,
    ToolCall,
    ToolCallDelta,
    Usage,
    join,
)
from lambdalm.rpc import messages, status
from lambdalm.testing.chain import free_ports
from lambdalm.timings import HopClock, HopTiming, Timings, encode
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy.caller import Caller
from restful_proxy.config import GrpcConfig
from restful_proxy.upstream import GrpcProxy

from .conftest import WAIT, Proxy

REQUEST = ChatRequest(prompt="What is λ?", model="tiny", max_tokens=7, temperature=0.7, stop=("\n",), seed=-1)
TIMINGS: Timings = {"backend": HopTiming(total_ms=7.5, queue_ms=0.25), "proxy": HopTiming(total_ms=9, own_ms=1.5)}
EVENTS: list[StreamEvent] = [
    Heartbeat(),
    Started("r1", "tiny"),
    ReasoningDelta("Hm.\n"),
    TextDelta("Par"),
    TextDelta("is \u2028\x00\r\n λ\U0001f469\u200d\U0001f467"),
    ToolCallDelta(0, "c1", "look_up", '{"q":'),
    ToolCallDelta(0, arguments="1}"),
    Usage(3, None),
    Finished(FinishReason.TOOL_CALLS, Tokens(3), TIMINGS),
]
ANSWER = Answer(
    id="r1",
    model="tiny",
    text="Paris \u2028\x00\r\n λ\U0001f469\u200d\U0001f467",
    finish_reason=FinishReason.TOOL_CALLS,
    reasoning="Hm.\n",
    tool_calls=(ToolCall("c1", "look_up", '{"q":1}'),),
    usage=Tokens(3, None),
    timings=TIMINGS,
    session_id="s1",
)

Ask = Callable[[GrpcProxy, Call, Caller], Awaitable[object]]


async def whole(made: GrpcProxy, call: Call, caller: Caller) -> Answer:
    return await made.generate(REQUEST, call, caller)


async def streamed(made: GrpcProxy, call: Call, caller: Caller) -> list[StreamEvent]:
    return [event async for batch in made.stream(REQUEST, call, caller) for event in batch]


BOTH = pytest.mark.parametrize("ask", [whole, streamed])


@contextlib.asynccontextmanager
async def edge(target: str, **section: Any) -> AsyncIterator[GrpcProxy]:
    made = GrpcProxy(GrpcConfig(target=target, **section))
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def grpc_proxy(proxy: Proxy) -> AsyncIterator[GrpcProxy]:
    async with edge(proxy.target) as made:
        yield made


@pytest.fixture
async def nowhere() -> AsyncIterator[GrpcProxy]:
    """Of a port where nothing listens."""
    async with edge(f"127.0.0.1:{free_ports().proxy}") as made:
        yield made


@pytest.fixture
def program() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gRPC proxy in a process of its own, and its address."""
    command = [sys.executable, str(Path(__file__).with_name("fake_proxy.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, f"127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def new_call(budget: float = 10 * WAIT) -> Call:  # no deadline may be what ends a test
    return Call("r1", budget, HopClock("edge"))


def begin() -> Iterator[pb.LLMStreamEvent]:
    yield messages.event_to_proto(Started("r1", "tiny"))
    yield messages.event_to_proto(TextDelta("Par"))


async def fails(ask: Ask, made: GrpcProxy, call: Call | None = None) -> LlmError:
    with pytest.raises(LlmError) as raised:
        await ask(made, call or new_call(), Caller())
    return raised.value


async def events_until_failure(made: GrpcProxy, call: Call) -> tuple[list[StreamEvent], LlmError]:
    """The events until the stream fails, and how it does."""
    got: list[StreamEvent] = []
    try:
        async for batch in made.stream(REQUEST, call, Caller()):
            got += batch
    except LlmError as error:
        return got, error
    raise AssertionError("it did not fail")


async def set_by_a_thread(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, WAIT)


async def test_an_answer_comes_as_it_was_sent(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    proxy.answer = lambda request, context: messages.answer_to_proto(ANSWER)
    call = new_call()
    assert await grpc_proxy.generate(REQUEST, call, Caller()) == ANSWER
    assert call.clock.behind == TIMINGS


async def test_events_come_as_they_were_sent(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    proxy.play = lambda request, context: map(messages.event_to_proto, EVENTS)
    came = await streamed(grpc_proxy, new_call(), Caller())  # deltas that came together are one
    assert list(join(came)) == list(join(EVENTS))


@BOTH
async def test_the_request_goes_with_id_and_less_time(proxy: Proxy, grpc_proxy: GrpcProxy, ask: Ask) -> None:
    seen: list[tuple[dict[str, Any], float]] = []

    def note(context: Any) -> None:
        seen.append((dict(context.invocation_metadata()), context.time_remaining()))

    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        note(context)
        return map(messages.event_to_proto, EVENTS)

    def answer(request: pb.LLMRequest, context: Any) -> pb.LLMResponse:
        note(context)
        return messages.answer_to_proto(ANSWER)

    proxy.play, proxy.answer = play, answer
    await ask(grpc_proxy, new_call(20), Caller((("x-api-key", "k"),)))
    assert messages.request_from_proto(proxy.requests[0]) == REQUEST
    ((metadata, remaining),) = seen
    assert (metadata["x-request-id"], metadata["x-api-key"]) == ("r1", "k")
    assert 0 < remaining < 20


COOKIES = (("set-cookie", "a=1"), ("set-cookie", "b=2"))


async def test_an_answers_cookies_are_in_its_trailing_metadata(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    def answer(request: pb.LLMRequest, context: Any) -> pb.LLMResponse:
        context.set_trailing_metadata(COOKIES)
        return messages.answer_to_proto(ANSWER)

    proxy.answer = answer
    caller = Caller()
    await grpc_proxy.generate(REQUEST, new_call(), caller)
    assert caller.cookies == ("a=1", "b=2")


async def test_a_streams_cookies_are_known_with_its_first_event(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        context.send_initial_metadata(COOKIES)
        yield from begin()
        proxy.hold()

    proxy.play = play
    caller = Caller()
    async with contextlib.aclosing(grpc_proxy.stream(REQUEST, new_call(), caller)) as stream:
        assert await anext(stream)
        assert caller.cookies == ("a=1", "b=2")


def failing(proxy: Proxy, fail: Callable[[Any], object], after: int = 0) -> None:
    """Let both kinds of calls fail in this way, a stream after these events."""

    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield from [*begin()][:after]
        fail(context)

    def answer(request: pb.LLMRequest, context: Any) -> pb.LLMResponse:
        fail(context)
        raise AssertionError("abort raises")

    proxy.play, proxy.answer = play, answer


@BOTH
@pytest.mark.parametrize("code", Code)
async def test_a_status_with_details_is_its_error(proxy: Proxy, grpc_proxy: GrpcProxy, code: Code, ask: Ask) -> None:
    sent = LlmError(code, "no: λ", retry_after=2.5, origin="llamacpp")

    def fail(context: Any) -> None:
        context.set_trailing_metadata((("server-timing", encode(TIMINGS)), *status.details(sent)))
        context.abort(status.STATUS[code], sent.message)

    failing(proxy, fail)
    call = new_call()
    assert ErrorBody.of(await fails(ask, grpc_proxy, call)) == ErrorBody.of(sent)
    assert call.clock.behind == TIMINGS


async def test_a_failing_streams_events_come_before_its_error(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    failing(proxy, lambda context: context.abort(grpc.StatusCode.ABORTED, "so it is"), after=2)
    got, error = await events_until_failure(grpc_proxy, new_call())
    assert list(join(got)) == [Started("r1", "tiny"), TextDelta("Par")]
    assert error.code is Code.ABORTED


@BOTH
@pytest.mark.parametrize("code", [code for code in Code if code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)])
async def test_a_status_without_details_is_the_proxys(
    proxy: Proxy, grpc_proxy: GrpcProxy, code: Code, ask: Ask
) -> None:
    failing(proxy, lambda context: context.abort(status.STATUS[code], "so it is"))
    assert ErrorBody.of(await fails(ask, grpc_proxy)) == ErrorBody(code, "so it is", "proxy")


@BOTH
async def test_where_nothing_listens_the_error_names_the_target(nowhere: GrpcProxy, ask: Ask) -> None:
    call = new_call()
    error = await fails(ask, nowhere, call)
    assert (error.code, error.origin, error.retry_after) == (Code.UNAVAILABLE, "proxy", 1)
    assert nowhere._target in error.message
    assert call.clock.behind == {}


async def test_an_event_of_a_later_version_is_internal(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield from begin()
        yield pb.LLMStreamEvent()
        proxy.hold()

    proxy.play = play
    got, error = await events_until_failure(grpc_proxy, new_call())
    assert list(join(got)) == [Started("r1", "tiny"), TextDelta("Par")]
    assert error.code is Code.INTERNAL
    await set_by_a_thread(proxy.left)


@BOTH
async def test_a_message_that_cannot_be_read_is_internal(proxy: Proxy, grpc_proxy: GrpcProxy, ask: Ask) -> None:
    proxy.play = lambda request, context: iter([b"\xff\xff\xff"])
    proxy.answer = lambda request, context: b"\xff\xff\xff"
    error = await fails(ask, grpc_proxy)
    assert (error.code, error.origin) == (Code.INTERNAL, "proxy")


@BOTH
async def test_a_message_over_the_limit_is_resource_exhausted(proxy: Proxy, ask: Ask) -> None:
    proxy.play = lambda request, context: iter([messages.event_to_proto(TextDelta("x" * 2000))])
    proxy.answer = lambda request, context: pb.LLMResponse(text="x" * 2000)
    async with edge(proxy.target, max_message_bytes=1000) as small:
        assert (await fails(ask, small)).code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("said", [0, 2], ids=["before the first event", "mid-stream"])
async def test_a_stream_out_of_time_is_deadline_exceeded(proxy: Proxy, grpc_proxy: GrpcProxy, said: int) -> None:
    failing(proxy, lambda context: proxy.hold(), after=said)
    _, error = await events_until_failure(grpc_proxy, new_call(0.5))
    assert (error.code, error.origin) == (Code.DEADLINE_EXCEEDED, "edge")
    assert "0.5 s" in error.message
    await set_by_a_thread(proxy.left)


async def test_an_answer_out_of_time_is_deadline_exceeded(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    failing(proxy, lambda context: proxy.hold())
    error = await fails(whole, grpc_proxy, new_call(0.5))
    assert (error.code, error.origin) == (Code.DEADLINE_EXCEEDED, "edge")
    await set_by_a_thread(proxy.left)


@BOTH
@pytest.mark.parametrize("said", [0, 2], ids=["before the first event", "mid-stream"])
async def test_a_cancelled_task_cancels_its_call(proxy: Proxy, grpc_proxy: GrpcProxy, ask: Ask, said: int) -> None:
    holds = threading.Event()

    def hold(context: Any) -> None:
        holds.set()
        proxy.hold()

    failing(proxy, hold, after=said)
    task = asyncio.ensure_future(ask(grpc_proxy, new_call(), Caller()))
    await set_by_a_thread(holds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await set_by_a_thread(proxy.left)


@BOTH
async def test_a_task_cancelled_at_its_start_asks_nothing(proxy: Proxy, grpc_proxy: GrpcProxy, ask: Ask) -> None:
    failing(proxy, lambda context: proxy.hold())
    task = asyncio.ensure_future(ask(grpc_proxy, new_call(), Caller()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if proxy.requests:
        await set_by_a_thread(proxy.left)


async def test_a_closed_stream_cancels_its_call(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    failing(proxy, lambda context: proxy.hold(), after=2)
    stream = grpc_proxy.stream(REQUEST, new_call(), Caller())
    assert (await anext(stream))[0] == Started("r1", "tiny")
    await stream.aclose()
    await set_by_a_thread(proxy.left)


@BOTH
async def test_calls_open_when_the_edge_stops_are_unavailable(proxy: Proxy, ask: Ask) -> None:
    holds = threading.Event()

    def hold(context: Any) -> None:
        holds.set()
        proxy.hold()

    failing(proxy, hold, after=2)
    async with edge(proxy.target) as made:
        task = asyncio.ensure_future(ask(made, new_call(), Caller()))
        await set_by_a_thread(holds)
    with pytest.raises(LlmError, match="was closed") as raised:
        await task
    assert raised.value.code is Code.UNAVAILABLE


@pytest.mark.slow
@BOTH
async def test_a_proxy_that_hangs_is_noticed_before_the_deadline(
    program: tuple[subprocess.Popen[str], str], ask: Ask
) -> None:
    process, target = program
    async with edge(target) as made:
        await ask(made, new_call(), Caller())
        process.send_signal(signal.SIGSTOP)
        error = await fails(ask, made, new_call(50))  # the pings take 15 s
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "proxy")


async def test_it_is_healthy_while_the_proxy_is_serving(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    for _ in range(2):
        proxy.health.set("", health_pb2.HealthCheckResponse.SERVING)
        assert await grpc_proxy.healthy(WAIT) is None
        proxy.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await grpc_proxy.healthy(WAIT) == (
            f"the gRPC proxy at {proxy.target} is up, but its LLM backend cannot answer"
        )


async def test_it_is_not_healthy_when_nothing_listens(nowhere: GrpcProxy) -> None:
    found = await nowhere.healthy(WAIT)
    assert (found or "").startswith(f"the gRPC proxy at {nowhere._target} cannot be reached")


async def test_it_is_not_healthy_when_the_proxy_never_answers(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    proxy.health.speaks.clear()
    assert await grpc_proxy.healthy(0.5) == f"the gRPC proxy at {proxy.target} does not answer in time"
    proxy.health.speaks.set()


async def test_it_is_not_healthy_when_what_listens_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        async with edge(target) as made:
            assert target in (await made.healthy(0.3) or "")


async def test_many_streams_keep_their_answers_apart(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield messages.event_to_proto(Started("r1", "tiny"))
        for letter in request.prompt:
            yield messages.event_to_proto(TextDelta(letter))
        yield messages.event_to_proto(Finished(FinishReason.STOP))

    async def text(prompt: str) -> str:
        stream = grpc_proxy.stream(ChatRequest(prompt=prompt), new_call(), Caller())
        return "".join([event.text async for batch in stream for event in batch if isinstance(event, TextDelta)])

    proxy.play = play
    prompts = [f"call {number} λ" for number in range(16)]
    assert await asyncio.gather(*map(text, prompts)) == prompts
