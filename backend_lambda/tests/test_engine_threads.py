"""A provider's generator in a thread, its events on the loop: batches, back-pressure, and an end that does
not wait for long."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator

import pytest

from backend_lambda.engine_threads import EngineThreads
from backend_lambda.slots import Slot
from lambdalm.call import Call
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, StreamEvent, TextDelta, ToolCallDelta

from .conftest import WAIT, new_call

Events = Generator[StreamEvent, None, None]


@pytest.fixture
def threads() -> Iterator[EngineThreads]:
    made = EngineThreads(2)
    yield made
    made.close()


async def on_loop(wait: Callable[[float], bool]) -> None:
    """Wait for a threading.Event without stopping the loop."""
    assert await asyncio.to_thread(wait, WAIT)


async def all_of(batches: AsyncGenerator[list[StreamEvent], None]) -> list[list[StreamEvent]]:
    return [batch async for batch in batches]


async def test_what_came_meanwhile_is_one_batch_with_its_deltas_joined(threads: EngineThreads) -> None:
    first, rest, said = threading.Event(), threading.Event(), threading.Event()

    def stream(call: Call) -> Events:
        first.wait(WAIT)
        yield Started("r1", "m")
        rest.wait(WAIT)
        yield from map(TextDelta, "abc")
        yield ToolCallDelta(0, "id", "name")
        yield from map(TextDelta, "de")
        yield Finished(FinishReason.STOP)
        said.set()

    batches = threads.batches(stream, new_call(), Slot())
    first.set()
    assert await anext(batches) == [Started("r1", "m")]
    rest.set()
    await on_loop(said.wait)
    assert await all_of(batches) == [
        [TextDelta("abc"), ToolCallDelta(0, "id", "name"), TextDelta("de"), Finished(FinishReason.STOP)]
    ]


async def test_each_event_comes_while_the_engine_waits_for_the_next(threads: EngineThreads) -> None:
    go_on = threading.Semaphore(0)

    def stream(call: Call) -> Events:
        for letter in "abc":
            yield TextDelta(letter)
            go_on.acquire(timeout=WAIT)

    got = []
    async for batch in threads.batches(stream, new_call(), Slot()):
        got.append(batch)
        go_on.release()
    assert got == [[TextDelta("a")], [TextDelta("b")], [TextDelta("c")]]


async def test_an_error_of_the_provider_crosses_after_what_it_said(threads: EngineThreads) -> None:
    error = LlmError(Code.UNAVAILABLE, "the engine broke", retry_after=3, origin="engine")

    def stream(call: Call) -> Events:
        yield TextDelta("a")
        raise error

    batches = threads.batches(stream, new_call(), Slot())
    assert await anext(batches) == [TextDelta("a")]
    with pytest.raises(LlmError) as raised:
        await anext(batches)
    assert raised.value is error


async def test_an_engine_far_ahead_of_its_reader_waits(threads: EngineThreads) -> None:
    said, behind = 0, threading.Event()

    def stream(call: Call) -> Events:
        nonlocal said
        for said in range(1, 1001):
            if said == 64:
                behind.set()
            yield ToolCallDelta(said)

    batches = threads.batches(stream, new_call(), Slot())
    first = await anext(batches)
    await on_loop(behind.wait)
    assert said <= len(first) + 65
    sizes = [len(first), *[len(batch) async for batch in batches]]
    assert max(sizes) <= 65
    assert sum(sizes) == 1000


class Stalling:
    """A provider's generator that says one word and blocks; it may take a while to stop."""

    def __init__(self, may_stop: bool = True) -> None:
        self.may_stop = threading.Event()
        self.asked_to_stop = threading.Event()
        self.stopped = threading.Event()
        self.why: LlmError | None = None
        if may_stop:
            self.may_stop.set()

    def __call__(self, call: Call) -> Events:
        woken = threading.Event()
        try:
            yield TextDelta("a")
            with call.on_cancel(woken.set):
                woken.wait(WAIT)
            call.check()
        except LlmError as error:
            self.why = error
            raise
        finally:
            self.asked_to_stop.set()
            self.may_stop.wait(WAIT)
            self.stopped.set()


async def test_a_reader_that_leaves_stops_the_engine_but_not_the_call(threads: EngineThreads) -> None:
    engine, call = Stalling(), new_call()
    batches = threads.batches(engine, call, Slot())
    await anext(batches)
    await batches.aclose()
    await on_loop(engine.stopped.wait)
    assert not call.cancelled


async def test_a_stopped_call_stops_the_engine_with_the_same_reason(threads: EngineThreads) -> None:
    engine, call = Stalling(), new_call()
    batches = threads.batches(engine, call, Slot())
    await anext(batches)
    call.cancel("the server is shutting down", Code.UNAVAILABLE)
    with pytest.raises(LlmError, match="shutting down") as raised:
        await anext(batches)
    assert raised.value.code is Code.UNAVAILABLE
    assert engine.stopped.is_set()


async def test_cancelled_task_ends_although_its_engine_does_not(threads: EngineThreads) -> None:
    engine, slot = Stalling(may_stop=False), Slot()

    async def read() -> None:
        async with contextlib.aclosing(threads.batches(engine, new_call(), slot)) as batches:
            async for _ in batches:
                pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    reading.cancel()
    await on_loop(engine.asked_to_stop.wait)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reading, WAIT)
    assert slot.engine is not None
    assert not slot.engine.done()
    engine.may_stop.set()
    await asyncio.wait_for(slot.engine, WAIT)
    assert engine.stopped.is_set()


async def test_leaving_wakes_an_engine_that_waits_for_its_reader(threads: EngineThreads) -> None:
    closed, behind = threading.Event(), threading.Event()

    def stream(call: Call) -> Events:
        try:
            for number in range(10_000):
                if number == 63:
                    behind.set()
                yield ToolCallDelta(number)
        finally:
            closed.set()

    batches = threads.batches(stream, new_call(), Slot())
    await anext(batches)
    await on_loop(behind.wait)
    await batches.aclose()
    await on_loop(closed.wait)


async def test_a_reader_that_leaves_before_any_event_stops_the_engine(threads: EngineThreads) -> None:
    began, stopped = threading.Event(), threading.Event()

    def stream(call: Call) -> Events:
        began.set()
        woken = threading.Event()
        with call.on_cancel(woken.set):
            woken.wait(WAIT)
        stopped.set()
        call.check()
        yield TextDelta("never")

    async def read() -> None:
        await anext(threads.batches(stream, new_call(), Slot()))

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    await on_loop(began.wait)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reading, WAIT)
    await on_loop(stopped.wait)


async def test_an_engine_that_never_waits_leaves_the_loop_to_others(threads: EngineThreads) -> None:
    turns = 0

    def stream(call: Call) -> Events:
        yield from map(TextDelta, "x" * 5000)

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    others = asyncio.create_task(other())
    seen = [turns async for _ in threads.batches(stream, new_call(), Slot())]
    others.cancel()
    assert len(set(seen)) >= len(seen) - 1
    assert len(seen) > 1
