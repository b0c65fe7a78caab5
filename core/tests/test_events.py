from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm.errors import Code, LlmError
from lambdalm.events import (
    Answer,
    Finished,
    FinishReason,
    Heartbeat,
    ReasoningDelta,
    Started,
    StreamContract,
    StreamEvent,
    TextDelta,
    Tokens,
    ToolCall,
    ToolCallDelta,
    Usage,
    checked,
    collect,
    join,
)
from lambdalm.timings import HopTiming

from . import strategies

BEGIN = Started("r1", "echo")
END = Finished(FinishReason.STOP)


def broken(*events: StreamEvent) -> LlmError:
    """How the stream of these events breaks the contract."""
    with pytest.raises(LlmError) as caught:
        list(checked(events))
    return caught.value


def test_a_stream_that_keeps_the_contract_passes_unchanged() -> None:
    events: list[StreamEvent] = [
        BEGIN,
        ReasoningDelta("hm"),
        TextDelta("a"),
        ToolCallDelta(0, "c", "f", "{}"),
        Usage(1, 2),
        Finished(FinishReason.LENGTH, Tokens(1, 2)),
    ]
    assert list(checked(events)) == events


@pytest.mark.parametrize("event", [TextDelta("x"), ReasoningDelta("x"), ToolCallDelta(0), Usage(1), END])
def test_nothing_may_come_before_started(event: StreamEvent) -> None:
    error = broken(event)
    assert error.code is Code.INTERNAL
    assert "before started" in error.message


def test_started_may_come_only_once() -> None:
    assert "started twice" in broken(BEGIN, BEGIN).message


def test_usage_may_come_only_once() -> None:
    assert "usage twice" in broken(BEGIN, Usage(1), TextDelta("x"), Usage(1)).message


@pytest.mark.parametrize("event", [BEGIN, TextDelta("x"), Usage(1), Heartbeat(), END])
def test_nothing_may_come_after_finished(event: StreamEvent) -> None:
    error = broken(BEGIN, END, event)
    assert error.code is Code.INTERNAL
    assert "after finished" in error.message


def test_a_heartbeat_may_come_anywhere_before_the_end() -> None:
    beat = Heartbeat()
    events: list[StreamEvent] = [beat, BEGIN, beat, TextDelta("x"), beat, beat, END]
    assert list(checked(events)) == events


@pytest.mark.parametrize("events", [[], [BEGIN], [BEGIN, TextDelta("x"), Usage(1)], [Heartbeat()]])
def test_a_stream_that_just_stops_is_unavailable(events: list[StreamEvent]) -> None:
    assert broken(*events).code is Code.UNAVAILABLE


def test_events_before_the_breach_are_delivered() -> None:
    stream = checked([BEGIN, TextDelta("x"), BEGIN])
    assert [next(stream), next(stream)] == [BEGIN, TextDelta("x")]
    with pytest.raises(LlmError):
        next(stream)


def test_an_error_of_the_source_comes_out_as_it_is() -> None:
    def source() -> Iterator[StreamEvent]:
        yield BEGIN
        raise LlmError(Code.RESOURCE_EXHAUSTED, "no room")

    with pytest.raises(LlmError, match="no room") as caught:
        collect(source())
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_finished_repeats_the_usage() -> None:
    contract = StreamContract()
    for event in (BEGIN, Usage(3, None)):
        contract.accept(event)
    assert contract.accept(END) == Finished(FinishReason.STOP, Tokens(3, None))


def test_the_usage_that_finished_has_itself_stays() -> None:
    contract = StreamContract()
    for event in (BEGIN, Usage(3, 4)):
        contract.accept(event)
    assert contract.accept(Finished(FinishReason.STOP, Tokens(5, 6))) == Finished(FinishReason.STOP, Tokens(5, 6))


def test_collect_folds_a_stream_into_one_answer() -> None:
    timings = {"backend": HopTiming(total_ms=3.0)}
    assert collect(
        [
            Heartbeat(),
            BEGIN,
            ReasoningDelta("h"),
            ReasoningDelta("m"),
            TextDelta("Par"),
            ToolCallDelta(1, "c1", "g"),
            ToolCallDelta(0, "c0", "f", '{"a"'),
            TextDelta("is"),
            ToolCallDelta(0, None, None, ":1}"),
            Usage(7, 8),
            Finished(FinishReason.TOOL_CALLS, timings=timings),
        ]
    ) == Answer(
        id="r1",
        model="echo",
        text="Paris",
        finish_reason=FinishReason.TOOL_CALLS,
        reasoning="hm",
        tool_calls=(ToolCall("c0", "f", '{"a":1}'), ToolCall("c1", "g", "")),
        usage=Tokens(7, 8),
        timings=timings,
    )


def test_an_answer_without_reasoning_or_usage_says_so() -> None:
    answer = collect([BEGIN, END])
    assert (answer.text, answer.reasoning, answer.usage, answer.tool_calls) == ("", None, None, ())


def test_collect_takes_no_incomplete_answer() -> None:
    with pytest.raises(LlmError) as caught:
        collect([BEGIN, TextDelta("x")])
    assert caught.value.code is Code.UNAVAILABLE


@given(strategies.streams())
def test_the_answer_has_the_texts_exactly(events: list[StreamEvent]) -> None:
    answer = collect(events)
    assert answer.text == "".join(event.text for event in events if isinstance(event, TextDelta))
    assert (answer.reasoning or "") == "".join(event.text for event in events if isinstance(event, ReasoningDelta))


def _runs(events: list[StreamEvent]) -> list[tuple[type, object]]:
    """What `join` must keep: the order, the texts of each run, and everything else as it is."""
    kept: list[tuple[type, object]] = []
    for kind, run in groupby(events, type):
        if kind in (TextDelta, ReasoningDelta):
            kept.append((kind, "".join(getattr(event, "text") for event in run)))  # noqa: B009
        else:
            kept.extend((kind, event) for event in run)
    return kept


@given(st.lists(strategies.events, max_size=12))
def test_join_keeps_texts_and_order_exactly(events: list[StreamEvent]) -> None:
    joined = list(join(events))
    assert _runs(joined) == _runs(events)
    assert len(joined) == len(_runs(events))


def test_join_makes_neighbouring_deltas_one() -> None:
    events: list[StreamEvent] = [
        TextDelta("a"),
        TextDelta("b"),
        ReasoningDelta("c"),
        TextDelta("d"),
        Heartbeat(),
        TextDelta("e"),
    ]
    assert list(join(events)) == [
        TextDelta("ab"),
        ReasoningDelta("c"),
        TextDelta("d"),
        Heartbeat(),
        TextDelta("e"),
    ]


def test_join_gives_what_came_before_a_failure() -> None:
    def failing() -> Iterator[StreamEvent]:
        yield TextDelta("a")
        yield TextDelta("b")
        raise LlmError(Code.UNAVAILABLE, "gone")

    joined = join(failing())
    assert next(joined) == TextDelta("ab")
    with pytest.raises(LlmError, match="gone"):
        next(joined)
