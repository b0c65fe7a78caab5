"""Answers that go on without their caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from grpc_proxy.callers import Caller
from grpc_proxy.detached import DetachedRuns
from grpc_proxy.exchange import Exchange
from lambdalm import logs
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, StreamEvent, TextDelta

from .conftest import WAIT, new_call

Batches = AsyncGenerator[list[StreamEvent], None]
MANY = 100
ADA, BOB = Caller("ada", b""), Caller("bob", b"")


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


def new_exchange(caller: Caller = ADA, budget: float = WAIT) -> Exchange:
    return Exchange(ChatRequest(prompt="Long?"), caller, new_call(budget))


async def closed(source: Source) -> None:
    async with asyncio.timeout(WAIT):
        await source.closed.wait()


async def begun(runs: DetachedRuns, source: Source, exchange: Exchange) -> Batches:
    """One whose first batch has been read."""
    stream = runs.relay(source.batches(), exchange)
    await anext(stream)
    return stream


async def test_who_stays_has_all_of_it_in_order() -> None:
    source = Source()
    found = [event async for batch in DetachedRuns(4).relay(source.batches(), new_exchange()) for event in batch]
    assert found == [Started("r1", "tiny"), *(TextDelta(f"{n}") for n in range(MANY)), Finished(FinishReason.STOP)]


async def test_who_stays_has_the_error_it_ends_in() -> None:
    error = LlmError(Code.UNAVAILABLE, "died")
    with pytest.raises(LlmError) as raised:
        async for _ in DetachedRuns(4).relay(Source(error=error).batches(), new_exchange()):
            pass
    assert raised.value is error


async def test_a_slow_reader_is_waited_for() -> None:
    source = Source()
    stream = await begun(DetachedRuns(4), source, new_exchange())
    for _ in range(1000):
        await asyncio.sleep(0)
    assert source.made < MANY / 2
    async for _ in stream:
        pass
    assert source.whole


@pytest.mark.parametrize("pause_at", [3, MANY + 1], ids=["that waits", "whose pipe is full"])
async def test_an_answer_comes_to_its_end_when_its_reader_has_gone(pause_at: int) -> None:
    runs, source = DetachedRuns(4), Source(pause_at)
    stream = await begun(runs, source, new_exchange())
    for _ in range(100):
        await asyncio.sleep(0)
    await stream.aclose()
    source.go.set()
    await runs.finish(WAIT)
    assert source.whole


async def test_a_reader_that_is_cancelled_leaves_it_going_on() -> None:
    runs, source = DetachedRuns(4), Source(pause_at=0)

    async def read() -> None:
        async with contextlib.aclosing(runs.relay(source.batches(), new_exchange())) as stream:
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
    runs, source = DetachedRuns(4), Source(0, LlmError(Code.UNAVAILABLE, "died"))
    stream = await begun(runs, source, new_exchange())
    await stream.aclose()
    source.go.set()
    await runs.finish(WAIT)
    assert source.closed.is_set()


async def test_it_has_no_more_time_than_its_call() -> None:
    runs, source = DetachedRuns(4), Source(pause_at=0)
    stream = await begun(runs, source, new_exchange(budget=0.05))
    with pytest.raises(LlmError) as raised:
        async for _ in stream:
            pass
    assert raised.value.code is Code.DEADLINE_EXCEEDED
    assert source.closed.is_set()


async def test_when_the_server_stops_what_takes_too_long_is_stopped() -> None:
    runs, source = DetachedRuns(4), Source(pause_at=0)
    stream = await begun(runs, source, new_exchange())
    await stream.aclose()
    await runs.finish(0)
    assert source.closed.is_set()
    assert not source.whole


async def test_a_reader_is_told_when_its_answer_is_stopped() -> None:
    runs, source = DetachedRuns(4), Source(pause_at=0)
    stream = await begun(runs, source, new_exchange())
    await runs.finish(0)
    with pytest.raises(LlmError) as raised:
        await asyncio.wait_for(_rest(stream), WAIT)
    assert raised.value.code is Code.UNAVAILABLE


async def _rest(stream: Batches) -> None:
    async for _ in stream:
        pass


async def left(runs: DetachedRuns, exchange: Exchange) -> Source:
    """One whose caller has gone."""
    source = Source(pause_at=0)
    stream = await begun(runs, source, exchange)
    await stream.aclose()
    return source


async def test_owner_leaves_at_most_so_many() -> None:
    runs = DetachedRuns(2)
    sources = [await left(runs, new_exchange(caller)) for caller in (ADA, ADA, ADA, BOB)]
    await closed(sources[2])
    assert [source.closed.is_set() for source in sources] == [False, False, True, False]
    assert len(runs) == 3
    for source in sources:
        source.go.set()
    await runs.finish(WAIT)
    assert [source.whole for source in sources] == [True, True, False, True]
    assert len(runs) == 0
    await left(runs, new_exchange())
    assert len(runs) == 1, "there is room again"
    await runs.finish(0)


async def test_newcomers_share_one_owners_limit() -> None:
    runs = DetachedRuns(1)
    first, second = [await left(runs, new_exchange(Caller(name, b"", is_new=True))) for name in ("new-1", "new-2")]
    await closed(second)
    assert not first.closed.is_set()
    await runs.finish(0)


async def test_oldest_run_makes_room() -> None:
    runs, exchanges = DetachedRuns(4), [new_exchange(), new_exchange()]
    first, second = [await left(runs, exchange) for exchange in exchanges]
    assert runs.make_room()
    assert len(runs) == 1
    await closed(first)
    assert exchanges[0].call.cancelled, "its caller had not cancelled it"
    assert not second.closed.is_set()
    assert runs.make_room()
    assert not runs.make_room()
    await closed(second)


async def test_runs_at_other_upstreams_make_no_room() -> None:
    runs, exchanges = DetachedRuns(4), [new_exchange(), new_exchange()]
    exchanges[0].upstream, exchanges[1].upstream = "a", "b"
    first, second = [await left(runs, exchange) for exchange in exchanges]
    assert not runs.make_room({"c"})
    assert runs.make_room({"b", "c"})
    await closed(second)
    assert not first.closed.is_set()
    await runs.finish(0)


async def test_run_that_has_a_reader_makes_no_room() -> None:
    runs, source = DetachedRuns(4), Source(pause_at=0)
    stream = await begun(runs, source, new_exchange())
    assert not runs.make_room()
    source.go.set()
    await _rest(stream)
    assert source.whole
