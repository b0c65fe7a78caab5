"""Answers that go on without their caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from grpc_proxy.drain import Drains
from lambdalm import logs
from lambdalm.call import Call
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, StreamEvent, TextDelta

from .conftest import WAIT, new_call

Batches = AsyncGenerator[list[StreamEvent], None]
MANY = 100


@pytest.fixture(autouse=True)
def _logging() -> None:
    """As a server's: other tests may or may not have set it up."""
    logs.configure("proxy", logs.LogConfig())


class Source:
    """Batches of an answer, as fast as they are taken; it goes on from `pause_at` when `go` is set."""

    def __init__(self, pause_at: int = MANY + 1, error: Exception | None = None) -> None:
        self.made = 0
        self.closed = asyncio.Event()
        self.whole = False
        self.go = asyncio.Event()
        self._pause_at = pause_at
        self._error = error

    async def batches(self) -> Batches:
        try:
            yield [Started("r1", "tiny")]
            for number in range(MANY):
                if number == self._pause_at:
                    await self.go.wait()
                self.made += 1
                yield [TextDelta(f"{number}")]
            if self._error is not None:
                raise self._error
            yield [Finished(FinishReason.STOP)]
            self.whole = True
        finally:
            self.closed.set()


async def closed(source: Source) -> None:
    async with asyncio.timeout(WAIT):
        await source.closed.wait()


async def begun(drains: Drains, source: Source, call: Call) -> Batches:
    """One whose first batch has been read."""
    stream = drains.through(source.batches(), call)
    await anext(stream)
    return stream


async def test_who_stays_has_all_of_it_in_order() -> None:
    source = Source()
    found = [event async for batch in Drains().through(source.batches(), new_call()) for event in batch]
    assert found == [Started("r1", "tiny"), *(TextDelta(f"{n}") for n in range(MANY)), Finished(FinishReason.STOP)]


async def test_who_stays_has_the_error_it_ends_in() -> None:
    error = LlmError(Code.UNAVAILABLE, "died")
    with pytest.raises(LlmError) as raised:
        async for _ in Drains().through(Source(error=error).batches(), new_call()):
            pass
    assert raised.value is error


async def test_a_slow_reader_is_waited_for() -> None:
    source = Source()
    stream = await begun(Drains(), source, new_call())
    for _ in range(1000):
        await asyncio.sleep(0)
    assert source.made < MANY / 2
    async for _ in stream:
        pass
    assert source.whole


@pytest.mark.parametrize("pause_at", [3, MANY + 1], ids=["that waits", "whose pipe is full"])
async def test_an_answer_comes_to_its_end_when_its_reader_has_gone(pause_at: int) -> None:
    drains, source = Drains(), Source(pause_at)
    stream = await begun(drains, source, new_call())
    for _ in range(100):
        await asyncio.sleep(0)
    await stream.aclose()
    source.go.set()
    await drains.finish(WAIT)
    assert source.whole


async def test_a_reader_that_is_cancelled_leaves_it_going_on() -> None:
    drains, source = Drains(), Source(pause_at=0)

    async def read() -> None:
        async with contextlib.aclosing(drains.through(source.batches(), new_call())) as stream:
            async for _ in stream:
                reading.set()

    reading = asyncio.Event()
    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not source.closed.is_set()
    source.go.set()
    await closed(source)
    assert source.whole


async def test_an_error_that_nobody_reads_any_more_is_no_bug() -> None:
    drains, source = Drains(), Source(0, LlmError(Code.UNAVAILABLE, "died"))
    stream = await begun(drains, source, new_call())
    await stream.aclose()
    source.go.set()
    await drains.finish(WAIT)
    assert source.closed.is_set()


async def test_it_has_no_more_time_than_its_call() -> None:
    drains, source = Drains(), Source(pause_at=0)
    stream = await begun(drains, source, new_call(0.05))
    with pytest.raises(LlmError) as raised:
        async for _ in stream:
            pass
    assert raised.value.code is Code.DEADLINE_EXCEEDED
    assert source.closed.is_set()


async def test_when_the_server_stops_what_takes_too_long_is_stopped() -> None:
    drains, source = Drains(), Source(pause_at=0)
    stream = await begun(drains, source, new_call())
    await stream.aclose()
    await drains.finish(0)
    assert source.closed.is_set()
    assert not source.whole


async def test_a_reader_is_told_when_its_answer_is_stopped() -> None:
    drains, source = Drains(), Source(pause_at=0)
    stream = await begun(drains, source, new_call())
    await drains.finish(0)
    with pytest.raises(LlmError) as raised:
        await asyncio.wait_for(_rest(stream), WAIT)
    assert raised.value.code is Code.UNAVAILABLE


async def _rest(stream: Batches) -> None:
    async for _ in stream:
        pass
