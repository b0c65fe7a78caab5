"""Reading: streams read by the loop, taken by threads; the calls are played by async generators."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from lambdalm.call import Call
from lambdalm.errors import Code, LlmError
from lambdalm.timings import HopClock
from restful_proxy.channel import LoopThread, Reading

MANY = 1000


class Numbers:
    """A call that streams 0, 1, … up to `count`, then stays silent if it is to; notes how far it was read."""

    def __init__(self, count: int, silent: bool = False) -> None:
        self.count = count
        self.silent = silent
        self.read = 0
        self.cancelled = threading.Event()

    async def initial_metadata(self) -> str:
        return "head"

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(self.count):
            self.read += 1
            yield number
        if self.silent:
            await asyncio.Event().wait()

    def cancel(self) -> bool:
        self.cancelled.set()
        return True


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.stop()


def new_call() -> Call:
    return Call("r1", 600, HopClock("edge"))


async def let_it_run() -> None:
    """As many turns of the loop as a stream of MANY could need."""
    for _ in range(2 * MANY):
        await asyncio.sleep(0)


def test_every_message_comes_once_and_in_order(thread: LoopThread) -> None:
    batches = list(Reading(thread, lambda: Numbers(MANY)).batches(new_call()))
    assert [number for batch in batches for number in batch] == list(range(MANY))
    assert all(batches)


def test_the_head_is_there_before_any_message(thread: LoopThread) -> None:
    heads: list[str] = []
    batches = Reading(thread, lambda: Numbers(1), heads.append).batches(new_call())
    assert next(batches) == [0]
    assert heads == ["head"]
    assert list(batches) == []


def test_a_caller_who_takes_nothing_holds_the_reading_back_and_loses_nothing(thread: LoopThread) -> None:
    numbers = Numbers(MANY)
    reading = Reading(thread, lambda: numbers)
    thread.run(let_it_run())
    assert 0 < numbers.read < 50
    assert [number for batch in reading.batches(new_call()) for number in batch] == list(range(MANY))


@pytest.mark.parametrize("numbers", [Numbers(MANY), Numbers(3, silent=True)], ids=["without room", "in silence"])
def test_cancel_ends_the_call_whatever_it_waits_for(thread: LoopThread, numbers: Numbers) -> None:
    reading = Reading(thread, lambda: numbers)
    thread.run(let_it_run())
    reading.cancel()
    assert numbers.cancelled.wait(60)


def test_a_call_that_cannot_even_begin_is_the_callers_error(thread: LoopThread) -> None:
    def begin() -> Numbers:
        raise ValueError("no such channel")

    with pytest.raises(ValueError, match="no such channel"):
        next(Reading(thread, begin).batches(new_call()))


def test_a_stopped_call_wakes_its_thread(thread: LoopThread) -> None:
    call = new_call()
    batches = Reading(thread, lambda: Numbers(1, silent=True)).batches(call)
    assert next(batches) == [0]
    timer = threading.Timer(0.01, call.cancel, ("the client has left",))
    timer.start()
    with pytest.raises(LlmError, match="the client has left"):
        next(batches)
    timer.join()


def test_a_call_without_time_is_out_of_time(thread: LoopThread) -> None:
    with pytest.raises(LlmError) as raised:
        next(Reading(thread, lambda: Numbers(0, silent=True)).batches(Call("r1", 0.0, HopClock("edge"))))
    assert raised.value.code is Code.DEADLINE_EXCEEDED
