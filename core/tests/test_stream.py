from __future__ import annotations

import pytest
from hypothesis import example, given

from lambdalm import sse
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Heartbeat, Started, StreamEvent, TextDelta, Tokens, Usage
from lambdalm.stream import EventReader, encode_error, encode_event
from lambdalm.timings import HopTiming, Timings

from . import strategies

BEGIN = encode_event(Started("r1", "echo"))
END = encode_event(Finished(FinishReason.STOP))


def fails(reader: EventReader, stream: bytes) -> tuple[list[StreamEvent], LlmError]:
    """The events until the stream fails, and how it does."""
    got: list[StreamEvent] = []
    try:
        for event in reader.feed(stream):
            got.append(event)
        reader.close()
    except LlmError as error:
        return got, error
    raise AssertionError(f"the stream did not fail, but gave {got}")


@given(strategies.streams(), strategies.cuts)
@example(
    [Started("a", "b"), TextDelta("\u2028\x00\ufeff\r\n\n\U0001f469\u200d\U0001f467"), Finished(FinishReason.STOP)], []
)
def test_any_events_arrive_as_they_were_however_the_bytes_are_cut(events: list[StreamEvent], cuts: list[int]) -> None:
    stream = b"".join(map(encode_event, events))
    for chunks in (strategies.pieces(stream, cuts), [stream[at : at + 1] for at in range(len(stream))]):
        reader = EventReader()
        assert [event for chunk in chunks for event in reader.feed(chunk)] == events
        reader.close()
        assert reader.finished
        end = events[-1]
        assert isinstance(end, Finished)
        assert reader.timings == end.timings


def test_each_event_is_a_message_of_its_name() -> None:
    assert encode_event(TextDelta("λ\n")) == 'event: text_delta\ndata: {"type":"text_delta","text":"λ\\n"}\n\n'.encode()


def test_heartbeats_are_comments_and_no_events() -> None:
    beat = encode_event(Heartbeat())
    assert beat.startswith(b":")
    assert list(sse.Decoder().feed(beat + b"data: 1\n\n")) == [sse.Message("message", "1")]
    assert list(EventReader().feed(beat + BEGIN + beat + END + beat)) == [
        Started("r1", "echo"),
        Finished(FinishReason.STOP),
    ]


def test_the_end_repeats_the_usage_that_went_before() -> None:
    events = list(EventReader().feed(BEGIN + encode_event(Usage(3, 4)) + END))
    assert events[-1] == Finished(FinishReason.STOP, Tokens(3, 4))


def test_an_error_event_raises_the_same_error_after_what_came_before_it() -> None:
    timings: Timings = {"backend": HopTiming(total_ms=41.25, own_ms=0.5), "proxy": HopTiming(total_ms=42)}
    sent = LlmError(Code.RESOURCE_EXHAUSTED, "no room: λ\u2028\n", retry_after=2.5, origin="llamacpp")
    reader = EventReader()
    got, error = fails(reader, BEGIN + encode_event(TextDelta("Par")) + encode_error(sent, timings))
    assert got == [Started("r1", "echo"), TextDelta("Par")]
    assert (error.code, error.message, error.retry_after, error.origin) == (
        Code.RESOURCE_EXHAUSTED,
        "no room: λ\u2028\n",
        2.5,
        "llamacpp",
    )
    assert reader.timings == timings
    assert not reader.finished


def test_an_error_that_knows_little_says_little() -> None:
    error = encode_error(LlmError(Code.UNAVAILABLE, "gone"), {})
    assert error == b'event: error\ndata: {"type":"error","error":{"code":"UNAVAILABLE","message":"gone"}}\n\n'


@pytest.mark.parametrize(
    "stream", [b"", BEGIN, BEGIN + encode_event(TextDelta("x")), BEGIN + encode_event(Usage(1, 1)), BEGIN + END[:-1]]
)
def test_a_stream_that_just_stops_is_unavailable(stream: bytes) -> None:
    _, error = fails(EventReader(), stream)
    assert error.code is Code.UNAVAILABLE
    assert "incomplete" in error.message


NONSENSE = {
    "an event after the end": BEGIN + END + encode_event(TextDelta("x")),
    "a second end": BEGIN + END + END,
    "a second start": BEGIN + BEGIN,
    "a delta before the start": encode_event(TextDelta("x")),
    "an end before the start": END,
    "a second usage": BEGIN + encode_event(Usage(1)) + encode_event(Usage(1)),
    "no JSON": BEGIN + sse.encode("text_delta", b"{"),
    "no object": BEGIN + sse.encode("text_delta", b"7"),
    "an empty text": BEGIN + sse.encode("text_delta", b""),
    "an unknown type": BEGIN + sse.encode("text_delta", b'{"type":"video_delta","text":"x"}'),
    "no type": BEGIN + sse.encode("text_delta", b'{"text":"x"}'),
    "a missing field": BEGIN + sse.encode("text_delta", b'{"type":"text_delta"}'),
    "a wrong type": BEGIN + sse.encode("text_delta", b'{"type":"text_delta","text":1}'),
    "a negative count": BEGIN + sse.encode("usage", b'{"type":"usage","prompt_tokens":-1}'),
    "a count without end": BEGIN + sse.encode("usage", b'{"type":"usage","prompt_tokens":9223372036854775808}'),
    "a tool call's number that is none": BEGIN + sse.encode("x", b'{"type":"tool_call_delta","index":2147483648}'),
    "a lone surrogate": BEGIN + sse.encode("text_delta", b'{"type":"text_delta","text":"\\ud800"}'),
    "deep nesting": BEGIN + sse.encode("text_delta", b'{"type":"text_delta","x":' + b"[" * 100_000),
    "an error that is none": BEGIN + sse.encode("error", b'{"type":"error"}'),
    "an unknown code": BEGIN + sse.encode("error", b'{"type":"error","error":{"code":"NO","message":"x"}}'),
    "bytes that are not UTF-8": BEGIN + sse.encode("text_delta", b'{"type":"text_delta","text":"\xff"}'),
}


@pytest.mark.parametrize("stream", NONSENSE.values(), ids=NONSENSE)
def test_a_stream_that_makes_no_sense_is_internal(stream: bytes) -> None:
    _, error = fails(EventReader(), stream)
    assert error.code is Code.INTERNAL


def test_an_error_after_the_end_is_internal() -> None:
    got, error = fails(EventReader(), BEGIN + END + encode_error(LlmError(Code.UNAVAILABLE, "late"), {}))
    assert got[-1] == Finished(FinishReason.STOP)
    assert error.code is Code.INTERNAL


def test_fields_of_a_later_version_are_passed_over() -> None:
    later = sse.encode("text_delta", b'{"type":"text_delta","text":"x","color":"red"}')
    assert list(EventReader().feed(BEGIN + later))[-1] == TextDelta("x")
