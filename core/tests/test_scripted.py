"""The model that plays a part: each behaviour, in a thread and on a loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from hypothesis import given

from lambdalm.call import Call
from lambdalm.chat import ChatRequest, Message
from lambdalm.errors import Code, LlmError
from lambdalm.events import FinishReason, Started, StreamEvent, TextDelta, checked, collect
from lambdalm.testing.scripted import BEHAVIOURS, play, play_on_loop
from lambdalm.timings import HopClock

from . import strategies

WAIT = 20  # seconds until a test that waits has failed


def new_call() -> Call:
    return Call("r1", 100, HopClock("backend"))


def ask(model: str, max_tokens: int | None = None) -> ChatRequest:
    return ChatRequest(prompt="hello there", model=model, max_tokens=max_tokens)


@given(strategies.texts)
def test_echo_says_the_last_message_back_exactly(text: str) -> None:
    turns = (Message("user", "first"), Message("user", text))
    request = ChatRequest(messages=turns, model="echo")
    if text:
        assert collect(play(request, new_call())).text == text


def test_echo_of_nothing_is_nothing() -> None:
    request = ChatRequest(messages=(Message("user", ""),), model="echo")
    assert collect(play(request, new_call())).text == ""


@pytest.mark.parametrize("model", ["echo", "slow", "flood", "huge", "thinking", "empty", "filtered", "no-usage"])
def test_a_behaviour_that_is_no_fault_keeps_the_contract(model: str) -> None:
    answer = collect(play(ask(model, max_tokens=2), new_call()))
    assert (answer.id, answer.model) == ("r1", model)
    assert (answer.usage is None) == (model == "no-usage")


def test_the_behaviours_end_as_they_say() -> None:
    assert collect(play(ask("flood", 3), new_call())).finish_reason is FinishReason.LENGTH
    assert collect(play(ask("filtered"), new_call())).finish_reason is FinishReason.CONTENT_FILTER
    assert collect(play(ask("thinking"), new_call())).reasoning
    assert collect(play(ask("empty"), new_call())).text == ""
    assert len(collect(play(ask("huge"), new_call())).text.encode()) == 2**20


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("error-before", Code.UNAVAILABLE, 0),
        ("error-in-stream", Code.UNAVAILABLE, 3),
        ("throttle", Code.RESOURCE_EXHAUSTED, 0),
        ("cut", Code.UNAVAILABLE, 3),
        ("garbage", Code.INTERNAL, 3),
    ],
)
def test_a_fault_fails_where_it_says(model: str, code: Code, words: int) -> None:
    got: list[StreamEvent] = []
    with pytest.raises(LlmError) as caught:
        got.extend(_all(model, got))
    assert caught.value.code is code
    assert len([event for event in got if isinstance(event, TextDelta)]) == words


def _all(model: str, got: list[StreamEvent]) -> list[StreamEvent]:
    for event in checked(play(ask(model), new_call())):
        got.append(event)
    return []


@pytest.mark.parametrize("model", ["stall-first", "stall", "slow", "flood"])
def test_a_cancelled_call_wakes_the_engine(model: str) -> None:
    call = new_call()
    ended: list[LlmError] = []
    started = threading.Event()

    def run() -> None:
        try:
            for event in play(ask(model), call):
                if isinstance(event, Started):
                    started.set()
        except LlmError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    if model != "stall-first":
        assert started.wait(WAIT)
    call.cancel("the client hung up")
    thread.join(WAIT)
    assert [error.code for error in ended] == [Code.CANCELLED]


def test_an_engine_that_stalls_stops_at_the_deadline() -> None:
    call = Call("r1", 0.01, HopClock("backend"))
    with pytest.raises(LlmError) as caught:
        collect(play(ask("stall-first"), call))
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_a_model_that_is_none_is_not_found_and_the_others_are_named() -> None:
    with pytest.raises(LlmError, match="stall-first") as caught:
        collect(play(ask("gpt-99"), new_call()))
    assert caught.value.code is Code.NOT_FOUND


def test_every_behaviour_says_what_it_does() -> None:
    assert all(behaviour.__doc__ for behaviour in BEHAVIOURS.values())


def texts(events: list[StreamEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, TextDelta)]


async def said_on_loop(request: ChatRequest) -> tuple[list[StreamEvent], Code | None]:
    """All that comes, and how it fails."""
    said: list[StreamEvent] = []
    try:
        async for batch in play_on_loop(request, new_call()):
            said += batch
    except LlmError as error:
        return said, error.code
    return said, None


def said_in_thread(request: ChatRequest) -> tuple[list[StreamEvent], Code | None]:
    said: list[StreamEvent] = []
    try:
        for event in play(request, new_call()):
            said.append(event)  # what came before a failure stays
    except LlmError as error:
        return said, error.code
    return said, None


@pytest.mark.parametrize("model", [*sorted(BEHAVIOURS.keys() - {"stall", "stall-first", "slow"}), "no-such-model"])
async def test_a_behaviour_is_the_same_on_a_loop(model: str) -> None:
    request = ask(model, max_tokens=1000)
    assert await said_on_loop(request) == said_in_thread(request)


async def test_slow_says_its_tokens_on_a_loop_too() -> None:
    said, failure = await said_on_loop(ask("slow", max_tokens=2))
    assert "".join(texts(said)) == "once upon "
    assert failure is None


@pytest.mark.parametrize("model", ["stall-first", "stall", "slow", "flood"])
async def test_a_cancelled_task_stops_the_engine_on_a_loop(model: str) -> None:
    said = asyncio.Event()

    async def read() -> None:
        async with contextlib.aclosing(play_on_loop(ask(model), new_call())) as batches:
            async for _ in batches:
                said.set()

    reading = asyncio.create_task(read())
    if model != "stall-first":
        await asyncio.wait_for(said.wait(), WAIT)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reading, WAIT)


@pytest.mark.parametrize("model", ["flood", "echo"])
async def test_a_long_answer_leaves_the_loop_to_others(model: str) -> None:
    """Between any two batches another task has its turn."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    others = asyncio.create_task(other())
    request = ChatRequest(prompt="x" * 5000, model=model, max_tokens=10_000)
    seen: list[int] = []
    async for batch in play_on_loop(request, new_call()):
        assert len(batch) <= 64
        seen.append(turns)
    others.cancel()
    assert len(seen) > 10
    assert len(set(seen)) >= len(seen) - 1  # the other task begins after the first
