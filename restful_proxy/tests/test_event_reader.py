"""EventReader: it reads a call ahead of its consumer; the call is played by an async generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from lambdalm.events import Heartbeat, StreamEvent, TextDelta, join
from lambdalm.rpc import messages
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy.event_reader import EventReader

MANY = 1000


class Numbers:
    """A call that streams the texts 0, 1, … up to `count` and a heartbeat, then raises, stays silent, or ends."""

    def __init__(self, count: int, silent: bool = False, error: Exception | None = None) -> None:
        self.count = count
        self.silent = silent
        self.error = error
        self.read = 0
        self.cancelled = asyncio.Event()

    async def initial_metadata(self) -> str:
        return "head"

    async def __aiter__(self) -> AsyncIterator[pb.LLMStreamEvent]:
        for event in events(self.count):
            self.read += 1
            yield messages.event_to_proto(event)
        if self.error is not None:
            raise self.error
        if self.silent:
            await asyncio.Event().wait()

    def cancel(self) -> bool:
        self.cancelled.set()
        return True


def events(count: int) -> list[StreamEvent]:
    return [*(TextDelta(f"{number} ") for number in range(count)), Heartbeat()]


def reader(numbers: Numbers) -> EventReader:
    return EventReader(numbers, lambda metadata: None)


async def taken(made: EventReader) -> list[StreamEvent]:
    found: list[StreamEvent] = []
    while batch := await made.take():
        found += batch
    return found


async def let_it_run() -> None:
    """As many turns of the loop as a stream of MANY could need."""
    for _ in range(2 * MANY):
        await asyncio.sleep(0)


async def test_every_event_comes_once_and_in_order() -> None:
    assert list(join(await taken(reader(Numbers(MANY))))) == list(join(events(MANY)))


async def test_deltas_that_wait_are_joined() -> None:
    made = reader(Numbers(3, silent=True))
    await let_it_run()
    assert await made.take() == [TextDelta("0 1 2 "), Heartbeat()]
    made.close()


async def test_the_head_is_there_before_any_event() -> None:
    heads: list[str] = []
    made = EventReader(Numbers(1), heads.append)
    await made.take()
    assert heads == ["head"]


async def test_a_consumer_that_takes_nothing_holds_the_reading_back() -> None:
    numbers = Numbers(MANY)
    made = reader(numbers)
    await let_it_run()
    assert 0 < numbers.read < 50
    assert list(join(await taken(made))) == list(join(events(MANY)))


@pytest.mark.parametrize(("count", "silent"), [(MANY, False), (3, True)], ids=["without room", "in silence"])
async def test_closing_cancels_the_call_and_ends_the_reading(count: int, silent: bool) -> None:
    numbers = Numbers(count, silent)
    made = reader(numbers)
    await let_it_run()
    made.close()
    assert numbers.cancelled.is_set()
    await asyncio.wait([made._task])


async def test_an_error_comes_after_what_came_before_it() -> None:
    made = reader(Numbers(2, error=ValueError("no more")))
    await let_it_run()
    assert await made.take() == [TextDelta("0 1 "), Heartbeat()]
    with pytest.raises(ValueError, match="no more"):
        await made.take()
