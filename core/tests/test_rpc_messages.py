from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, Finished, FinishReason, StreamEvent, Tokens, ToolCall, Usage
from lambdalm.rpc.messages import (
    answer_from_proto,
    answer_to_proto,
    event_from_proto,
    event_to_proto,
    request_from_proto,
    request_to_proto,
)
from lambdalm.timings import HopTiming
from lambdalm_proto.v1 import llm_pb2 as pb

from . import strategies

Parameters = pb.LLMRequest.Parameters


def over_the_wire(request: ChatRequest) -> ChatRequest:
    return request_from_proto(pb.LLMRequest.FromString(request_to_proto(request).SerializeToString()))


def refused(message: pb.LLMRequest) -> str:
    with pytest.raises(LlmError) as caught:
        request_from_proto(message)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


@given(strategies.requests())
def test_any_request_arrives_as_it_was(request: ChatRequest) -> None:
    assert over_the_wire(request) == request


@given(strategies.events)
def test_any_event_arrives_as_it_was(event: StreamEvent) -> None:
    wire = event_to_proto(event).SerializeToString()
    assert event_from_proto(pb.LLMStreamEvent.FromString(wire)) == event


@given(st.floats(0, 2, width=32))
def test_a_float_keeps_seven_digits(temperature: float) -> None:
    back = over_the_wire(ChatRequest(prompt="x", temperature=temperature)).temperature
    assert back is not None
    assert back == float(f"{temperature:.7g}")


def test_a_decimal_is_not_the_float_of_32_bits() -> None:
    assert over_the_wire(ChatRequest(prompt="x", temperature=0.7)).temperature == 0.7


def test_zero_is_not_none() -> None:
    back = over_the_wire(ChatRequest(prompt="x", temperature=0, presence_penalty=0, seed=0))
    assert (back.temperature, back.presence_penalty, back.seed) == (0, 0, 0)
    back = over_the_wire(ChatRequest(prompt="x"))
    assert (back.temperature, back.presence_penalty, back.seed) == (None, None, None)


def test_no_tokens_are_not_unknown_tokens() -> None:
    for usage in (Usage(0, 0), Usage(None, 0), Usage()):
        assert event_from_proto(event_to_proto(usage)) == usage
    for tokens in (None, Tokens(), Tokens(0, None)):
        end = Finished(FinishReason.STOP, tokens)
        assert event_from_proto(event_to_proto(end)) == end


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_p": -0.5}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -math.inf}, "frequency_penalty"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["x"] * 17}, "stop"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(parameters: dict[str, Any], field: str) -> None:
    assert refused(pb.LLMRequest(prompt="x", parameters=Parameters(**parameters))).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "x", "messages": [pb.ChatMessage(role="user", content="x")]}, "messages"),
        ({"messages": [pb.ChatMessage(role="user", content="x")], "session_id": "s"}, "messages"),
        ({"messages": [pb.ChatMessage(role="boss", content="x")]}, "messages[0].role"),
        ({"messages": [pb.ChatMessage(content="x")]}, "messages[0].role"),
        ({"prompt": "x", "model": "x" * 257}, "model"),
        ({"prompt": "x", "session_id": "x" * 257}, "session_id"),
        ({"prompt": "x", "memory": 7}, "memory"),
        ({"prompt": "x", "on_disconnect": 7}, "on_disconnect"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(fields: dict[str, Any], field: str) -> None:
    assert refused(pb.LLMRequest(**fields)).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "message",
    [
        pb.LLMStreamEvent(),
        pb.LLMStreamEvent(finished=pb.Finished()),
        pb.LLMStreamEvent.FromString(b"\x3a\x02\x08\x63"),  # finished, for the reason 99
    ],
)
def test_an_event_of_a_later_version_is_internal(message: pb.LLMStreamEvent) -> None:
    with pytest.raises(LlmError) as caught:
        event_from_proto(message)
    assert caught.value.code is Code.INTERNAL


def test_a_whole_answer_as_a_message() -> None:
    answer = Answer(
        id="r1",
        model="m",
        text="Paris",
        finish_reason=FinishReason.TOOL_CALLS,
        reasoning="hm",
        tool_calls=(ToolCall("c", "f", "{}"), ToolCall()),
        usage=Tokens(1, None),
        timings={"backend": HopTiming(total_ms=1.5, own_ms=0), "proxy": HopTiming(total_ms=2)},
    )
    message = answer_to_proto(answer)
    assert answer_from_proto(message) == answer
    assert message == pb.LLMResponse(
        id="r1",
        model="m",
        text="Paris",
        finish_reason=pb.FINISH_REASON_TOOL_CALLS,
        reasoning="hm",
        tool_calls=[pb.ToolCall(id="c", name="f", arguments="{}"), pb.ToolCall()],
        usage=pb.Usage(prompt_tokens=1),
        timings=[pb.HopTiming(hop="backend", total_ms=1.5, own_ms=0), pb.HopTiming(hop="proxy", total_ms=2)],
    )


def test_an_answer_that_ends_for_an_unknown_reason_is_internal() -> None:
    with pytest.raises(LlmError) as caught:
        answer_from_proto(pb.LLMResponse(text="Par"))
    assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize("reason", FinishReason)
def test_every_reason_to_finish_has_its_number(reason: FinishReason) -> None:
    assert event_from_proto(event_to_proto(Finished(reason))) == Finished(reason)
