"""OpenAI's chat completions: requests as their fields, chunks as our events, however servers differ."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm.chat import ChatRequest, Message
from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
    checked,
    join,
)
from lambdalm.openai import ChunkReader, encode_request, request_fields, whole_answer

from . import strategies

DONE = b"data: [DONE]\n\n"


def data(value: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


def chunk(delta: Any = None, reason: str | None = None, **more: Any) -> bytes:
    return data({"model": "m1", "choices": [{"index": 0, "delta": delta or {}, "finish_reason": reason}], **more})


def read(*pieces: bytes) -> tuple[list[StreamEvent], LlmError | None]:
    """The events of a stream, and the error in which it ends."""
    reader = ChunkReader("r1", "asked", "the server")
    events: list[StreamEvent] = []
    try:
        for piece in pieces:
            events.extend(reader.feed(piece))
        events.extend(reader.close())
    except LlmError as error:
        return events, error
    return events, None


def failed(*pieces: bytes) -> LlmError:
    _, error = read(*pieces)
    assert error is not None
    return error


def test_a_request_goes_out_with_all_its_parameters_streamed_and_with_usage() -> None:
    request = ChatRequest(
        messages=(Message("developer", "Be brief."), Message("user", "Hi"), Message("assistant", "Ho")),
        max_tokens=7,
        temperature=0.0,
        top_p=0.5,
        presence_penalty=-1.0,
        frequency_penalty=1.5,
        stop=("a", "b"),
        seed=3,
    )
    assert json.loads(encode_request(request, "m")) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.5,
        "stop": ["a", "b"],
        "seed": 3,
    }


def test_what_a_request_leaves_open_stays_open() -> None:
    assert set(request_fields(ChatRequest(prompt="Hi"), None)) == {"messages", "stream", "stream_options"}


def test_an_answer_is_started_deltas_usage_finished() -> None:
    usage = data({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
    stream = [chunk({"role": "assistant", "content": ""}), chunk({"content": "a"}), chunk({"content": "b"})]
    assert read(*stream, chunk(reason="stop"), usage, DONE) == (
        [Started("r1", "m1"), TextDelta("a"), TextDelta("b"), Usage(3, 2), Finished(FinishReason.STOP)],
        None,
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_apart(name: str) -> None:
    events, error = read(chunk({name: "hm"}), chunk({"content": "a"}), chunk(reason="stop"), DONE)
    assert (events[1:3], error) == ([ReasoningDelta("hm"), TextDelta("a")], None)


def test_tool_calls_come_in_pieces() -> None:
    first = {"tool_calls": [{"index": 1, "id": "c1", "function": {"name": "f", "arguments": ""}}]}
    second = {"tool_calls": [{"index": 1, "function": {"arguments": '{"a":1}'}}]}
    events, _ = read(chunk(first), chunk(second), chunk(reason="tool_calls"), DONE)
    assert events[1:] == [
        ToolCallDelta(1, "c1", "f", ""),
        ToolCallDelta(1, None, None, '{"a":1}'),
        Finished(FinishReason.TOOL_CALLS),
    ]


def test_only_the_first_choice_counts() -> None:
    other = data({"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": "stop"}]})
    events, _ = read(chunk({"content": "a"}), other, chunk(reason="length"), DONE)
    assert events[1:] == [TextDelta("a"), Finished(FinishReason.LENGTH)]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("eos", FinishReason.STOP),
    ],
)
def test_why_an_answer_ended(said: str, reason: FinishReason) -> None:
    assert read(chunk(reason=said), DONE)[0][-1] == Finished(reason)


@pytest.mark.parametrize("said", ["abort", "error"])
def test_an_answer_that_the_server_gave_up_is_none(said: str) -> None:
    events, error = read(chunk({"content": "a"}), chunk(reason=said), DONE)
    assert events == [Started("r1", "m1"), TextDelta("a")]
    assert error is not None
    assert error.code is Code.UNAVAILABLE


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}])
def test_usage_that_is_missing_is_unknown(usage: Any) -> None:
    events, error = read(chunk(reason="stop", usage=usage), DONE)
    assert error is None
    assert Usage(0, 0) not in events
    assert all(event == Usage(None, None) for event in events if isinstance(event, Usage))


def test_the_last_usage_counts_and_comes_once() -> None:
    """vLLM can repeat it in each chunk."""
    early = chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": 1})
    events, _ = read(early, chunk(reason="stop", usage={"prompt_tokens": 3, "completion_tokens": 2}), DONE)
    assert [event for event in events if isinstance(event, Usage)] == [Usage(3, 2)]


def test_the_end_may_come_without_done_but_not_without_a_reason() -> None:
    assert read(chunk({"content": "a"}), chunk(reason="stop"))[1] is None
    for stream in ([chunk({"content": "a"})], [chunk({"content": "a"}), DONE], [DONE], []):
        assert failed(*stream).code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(data({"error": {"message": "it died", "code": 500}}), id="vLLM"),
        pytest.param(b'error: {"code": 500, "message": "it died"}\n\n', id="llama-server of 2025"),
        pytest.param(b'event: error\ndata: {"message": "it died"}\n\n', id="an event named error"),
        pytest.param(b'event: error\ndata: {"error": {"message": "it died"}}\n\n', id="both"),
        pytest.param(b"event: error\ndata: it died\n\n", id="no JSON"),
        pytest.param(data({"error": "it died"}), id="a text"),
    ],
)
def test_an_error_in_the_stream_ends_it_also_with_done_after_it(error: bytes) -> None:
    for rest in (b"", DONE, chunk(reason="stop") + DONE):
        events, found = read(chunk({"content": "a"}) + error + rest)
        assert events == [Started("r1", "m1"), TextDelta("a")]
        assert found is not None
        assert found.code is Code.INTERNAL
        assert found.message == "the server failed in the middle of its answer: it died"


def test_what_comes_after_the_end_is_not_looked_at() -> None:
    events, error = read(chunk(reason="stop") + DONE + b"data: {\n\n")
    assert (events[-1], error) == (Finished(FinishReason.STOP), None)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"data: {\n\n",
        b"data: 7\n\n",
        data({"choices": 7}),
        data({"usage": {"prompt_tokens": -1}}),
        b"data: \xff\n\n",
    ],
)
def test_nonsense_is_an_internal_error(nonsense: bytes) -> None:
    assert failed(nonsense).code is Code.INTERNAL


def test_a_refusal_of_the_model_is_its_text() -> None:
    assert read(chunk({"refusal": "No."}), chunk(reason="stop"), DONE)[0][1] == TextDelta("No.")


def test_an_answer_in_one_piece_is_the_same_events() -> None:
    tools = [{"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for n in range(2)]
    message = {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": tools}
    body: dict[str, Any] = {"model": "m1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    body["usage"] = {"prompt_tokens": 3, "completion_tokens": 2}
    assert list(whole_answer(json.dumps(body).encode(), "r1", "asked", "the server")) == [
        Started("r1", "m1"),
        ReasoningDelta("hm"),
        TextDelta("a"),
        ToolCallDelta(0, "c0", "f", "{}"),
        ToolCallDelta(1, "c1", "f", "{}"),
        Usage(3, 2),
        Finished(FinishReason.STOP),
    ]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"choices": []}', b'{"error": "dead"}'])
def test_an_answer_in_one_piece_that_is_none_is_an_error(body: bytes) -> None:
    with pytest.raises(LlmError):
        list(whole_answer(body, "r1", "asked", "the server"))


_pieces = st.one_of(
    st.builds(lambda text: chunk({"content": text}), strategies.texts),
    st.builds(lambda text: chunk({"reasoning_content": text}), strategies.texts),
    st.builds(lambda text: chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}), strategies.texts),
    st.builds(lambda reason: chunk(reason=reason), st.sampled_from(["stop", "length", "abort", "eos"])),
    st.builds(lambda n: data({"choices": [], "usage": {"prompt_tokens": n}}), st.integers(0, 2**63 - 1)),
    st.sampled_from([DONE, b": ping\n\n", b"error: dead\n\n", b"data: {}\n\n", b"data: {\n\n", b"\xff\n\n", b"\r\n"]),
)


@given(st.lists(_pieces, max_size=8).map(b"".join), st.lists(st.integers(0, 2**16), max_size=12))
def test_however_the_bytes_are_cut_the_events_are_the_same(stream: bytes, cuts: list[int]) -> None:
    places = sorted(cut % (len(stream) + 1) for cut in cuts)
    pieces = [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]
    events, error = read(stream)
    for cut in (pieces, [stream[at : at + 1] for at in range(len(stream))]):
        found, failure = read(*cut)
        assert list(join(found)) == list(join(events))
        assert repr(failure) == repr(error)
    if error is None:
        assert list(checked(events)) is not None


_names = "model choices index delta message content tool_calls function arguments finish_reason usage error"
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_names.split()), inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(st.binary(max_size=40) | _json.map(lambda value: data(value)), max_size=6))
def test_any_bytes_give_events_or_an_llm_error(pieces: list[bytes]) -> None:
    events, error = read(*pieces)
    assert error is not None or isinstance(events[-1], Finished)
    assert events[:1] == [] or isinstance(events[0], Started)


@given(st.binary(max_size=40) | _json.map(lambda value: msgspec.json.encode(json.loads(json.dumps(value)))))
def test_any_body_gives_events_or_an_llm_error(body: bytes) -> None:
    with contextlib.suppress(LlmError):
        assert isinstance(list(whole_answer(body, "r1", "asked", "the server"))[-1], Finished)
