"""The gRPC proxy as the edge sees it, over real gRPC."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, ErrorBody, LlmError
from lambdalm.events import (
    Finished,
    FinishReason,
    Heartbeat,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    Tokens,
    ToolCallDelta,
    Usage,
    collect,
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


@pytest.fixture
def grpc_proxy(proxy: Proxy) -> Iterator[GrpcProxy]:
    made = GrpcProxy(GrpcConfig(target=proxy.target))
    yield made
    made.close()


@pytest.fixture
def nowhere() -> Iterator[GrpcProxy]:
    """Of a port where nothing listens."""
    made = GrpcProxy(GrpcConfig(target=f"127.0.0.1:{free_ports().proxy}"))
    yield made
    made.close()


def new_call(budget: float = 10 * WAIT) -> Call:  # no deadline may be what ends a test
    return Call("r1", budget, HopClock("edge"))


def begin() -> Iterator[pb.LLMStreamEvent]:
    yield messages.event_to_proto(Started("r1", "tiny"))
    yield messages.event_to_proto(TextDelta("Par"))


def fails(stream: Iterator[StreamEvent]) -> tuple[list[StreamEvent], LlmError]:
    """The events until the stream fails, and how it does."""
    got: list[StreamEvent] = []

    def read() -> None:
        for event in stream:
            got.append(event)

    with pytest.raises(LlmError) as raised:
        read()
    return got, raised.value


def test_events_come_as_they_were_sent(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    proxy.play = lambda request, context: map(messages.event_to_proto, EVENTS)
    came = list(grpc_proxy.stream(REQUEST, new_call(), Caller()))  # deltas that came together are one
    assert list(join(came)) == list(join(EVENTS))


def test_the_request_goes_with_its_id_and_less_time_than_it_has(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    seen: list[tuple[dict[str, Any], float]] = []

    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        seen.append((dict(context.invocation_metadata()), context.time_remaining()))
        return map(messages.event_to_proto, EVENTS)

    proxy.play = play
    list(grpc_proxy.stream(REQUEST, new_call(20), Caller()))
    assert messages.request_from_proto(proxy.requests[0]) == REQUEST
    ((metadata, remaining),) = seen
    assert metadata["x-request-id"] == "r1"
    assert 0 < remaining < 20


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.UNAVAILABLE])
def test_a_status_with_details_is_the_error_that_it_was(proxy: Proxy, grpc_proxy: GrpcProxy, code: Code) -> None:
    sent = LlmError(code, "no: λ", retry_after=2.5, origin="llamacpp")
    timing = (("server-timing", encode(TIMINGS)),)

    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield from begin()
        context.set_trailing_metadata(timing + status.details(sent))
        context.abort(status.STATUS[code], sent.message)

    proxy.play = play
    call = new_call()
    got, error = fails(grpc_proxy.stream(REQUEST, call, Caller()))
    assert got == [Started("r1", "tiny"), TextDelta("Par")]
    assert ErrorBody.of(error) == ErrorBody.of(sent)
    assert call.clock.behind == TIMINGS


def test_an_unavailable_of_the_proxys_own_keeps_what_it_says(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    sent = LlmError(Code.UNAVAILABLE, "the LLM backend is gone", retry_after=7, origin="backend")

    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        context.set_trailing_metadata((("server-timing", encode(TIMINGS)), *status.details(sent)))
        context.abort(grpc.StatusCode.UNAVAILABLE, sent.message)
        yield from ()

    proxy.play = play
    _, error = fails(grpc_proxy.stream(REQUEST, new_call(), Caller()))
    assert ErrorBody.of(error) == ErrorBody.of(sent)


@pytest.mark.parametrize("code", [code for code in Code if code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)])
def test_a_status_that_says_no_more_is_the_proxys(proxy: Proxy, grpc_proxy: GrpcProxy, code: Code) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        context.abort(status.STATUS[code], "so it is")
        yield from ()

    proxy.play = play
    _, error = fails(grpc_proxy.stream(REQUEST, new_call(), Caller()))
    assert ErrorBody.of(error) == ErrorBody(code, "so it is", "proxy")


def test_when_nothing_listens_it_is_unavailable_and_names_the_target(nowhere: GrpcProxy) -> None:
    call = new_call()
    got, error = fails(nowhere.stream(REQUEST, call, Caller()))
    assert got == []
    assert (error.code, error.origin, error.retry_after) == (Code.UNAVAILABLE, "proxy", 1)
    assert nowhere._target in error.message
    assert call.clock.behind == {}


def test_a_stream_that_just_ends_is_no_answer(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    proxy.play = lambda request, context: begin()
    with pytest.raises(LlmError, match="incomplete") as raised:
        collect(grpc_proxy.stream(REQUEST, new_call(), Caller()))
    assert raised.value.code is Code.UNAVAILABLE


def test_an_event_of_a_later_version_is_internal_and_ends_the_call(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield from begin()
        yield pb.LLMStreamEvent()
        proxy.hold()

    proxy.play = play
    got, error = fails(grpc_proxy.stream(REQUEST, new_call(), Caller()))
    assert len(got) == 2
    assert error.code is Code.INTERNAL
    assert proxy.left.wait(WAIT)


def test_an_event_over_the_limit_is_resource_exhausted(proxy: Proxy) -> None:
    proxy.play = lambda request, context: iter([messages.event_to_proto(TextDelta("x" * 2000))])
    small = GrpcProxy(GrpcConfig(target=proxy.target, max_message_bytes=1000))
    try:
        _, error = fails(small.stream(REQUEST, new_call(), Caller()))
    finally:
        small.close()
    assert error.code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("said", [0, 2], ids=["before the first event", "mid-stream"])
def test_a_call_whose_time_is_up_ends_with_deadline_exceeded(proxy: Proxy, grpc_proxy: GrpcProxy, said: int) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield from [*begin()][:said]
        proxy.hold()

    proxy.play = play
    _, error = fails(grpc_proxy.stream(REQUEST, new_call(0.5), Caller()))
    assert (error.code, error.origin) == (Code.DEADLINE_EXCEEDED, "edge")
    assert "0.5 s" in error.message
    assert proxy.left.wait(WAIT)


@pytest.mark.parametrize("said", [0, 2], ids=["before the first event", "mid-stream"])
def test_a_cancelled_call_wakes_its_reader_and_the_proxy_sees_it(
    proxy: Proxy, grpc_proxy: GrpcProxy, said: int
) -> None:
    call = new_call()
    holds = threading.Event()

    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield from [*begin()][:said]
        holds.set()
        proxy.hold()

    def cancel() -> None:
        assert holds.wait(WAIT)
        call.cancel("the client hung up")

    proxy.play = play
    canceller = threading.Thread(target=cancel)
    canceller.start()
    got, error = fails(grpc_proxy.stream(REQUEST, call, Caller()))
    canceller.join()
    assert len(got) <= said
    assert (error.code, error.message, error.origin) == (Code.CANCELLED, "the client hung up", "edge")
    assert proxy.left.wait(WAIT)


def test_a_closed_stream_cancels_the_call(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield from begin()
        proxy.hold()

    proxy.play = play
    stream = grpc_proxy.stream(REQUEST, new_call(), Caller())
    assert next(stream) == Started("r1", "tiny")
    stream.close()
    assert proxy.left.wait(WAIT)


def test_it_is_healthy_while_the_proxy_is_serving(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    for _ in range(2):
        proxy.health.set("", health_pb2.HealthCheckResponse.SERVING)
        assert grpc_proxy.healthy(WAIT) is None
        proxy.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert grpc_proxy.healthy(WAIT) == (
            f"the gRPC proxy at {proxy.target} is up, but its LLM backend cannot answer"
        )


def test_it_is_not_healthy_when_nothing_listens(nowhere: GrpcProxy) -> None:
    assert (nowhere.healthy(WAIT) or "").startswith(f"the gRPC proxy at {nowhere._target} cannot be reached")


def test_it_is_not_healthy_when_the_proxy_never_answers(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    proxy.health.speaks.clear()
    assert grpc_proxy.healthy(0.5) == f"the gRPC proxy at {proxy.target} does not answer in time"
    proxy.health.speaks.set()


def test_it_is_not_healthy_when_what_listens_says_nothing_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        made = GrpcProxy(GrpcConfig(target=target))
        assert target in (made.healthy(0.3) or "")
        made.close()


def test_many_streams_at_a_time_keep_their_answers_apart(proxy: Proxy, grpc_proxy: GrpcProxy) -> None:
    def play(request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:
        yield messages.event_to_proto(Started("r1", "tiny"))
        for letter in request.prompt:
            yield messages.event_to_proto(TextDelta(letter))
        yield messages.event_to_proto(Finished(FinishReason.STOP))

    proxy.play = play
    found: dict[str, str] = {}

    def ask(prompt: str) -> None:
        found[prompt] = collect(grpc_proxy.stream(ChatRequest(prompt=prompt), new_call(), Caller())).text

    threads = [threading.Thread(target=ask, args=[f"call {number} λ"]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert all(prompt == text for prompt, text in found.items())
