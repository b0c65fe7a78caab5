"""Outlet: heartbeats, readers that take nothing, frames that leave together."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from grpc_proxy.config import StreamConfig
from grpc_proxy.outlet import Outlet, Ticks, Watchdog
from lambdalm.coalesce import Coalescer
from lambdalm.errors import Code, LlmError
from lambdalm.events import Heartbeat, ReasoningDelta, StreamEvent, TextDelta
from lambdalm.rpc import messages
from lambdalm_proto.v1 import llm_pb2 as pb

from .conftest import SOON, WAIT


class Reader:
    """Where an outlet writes to; it can take its time."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.came: asyncio.Queue[StreamEvent] = asyncio.Queue()

    async def write(self, message: bytes) -> None:
        await self.reads.wait()
        self.came.put_nowait(messages.event_from_proto(pb.LLMStreamEvent.FromString(message)))

    async def next(self) -> StreamEvent:
        return await asyncio.wait_for(self.came.get(), WAIT)

    def all(self) -> list[StreamEvent]:
        return [self.came.get_nowait() for _ in range(self.came.qsize())]


def watchdog(**parts: float) -> Watchdog:
    return Watchdog(StreamConfig(**parts))  # type: ignore[arg-type]


async def test_neighbouring_deltas_leave_as_one() -> None:
    reader = Reader()
    with Outlet(reader, watchdog()) as outlet:
        await outlet.send([TextDelta("a"), TextDelta("b"), ReasoningDelta("c"), TextDelta("d")])
    assert reader.all() == [TextDelta("ab"), ReasoningDelta("c"), TextDelta("d")]


async def test_text_longer_than_a_message_leaves_in_pieces() -> None:
    reader, text = Reader(), "aλ" * 1_000_000
    with Outlet(reader, watchdog()) as outlet:
        await outlet.send([TextDelta(text)])
    came = reader.all()
    assert len(came) > 1
    assert "".join(event.text for event in came if isinstance(event, TextDelta)) == text


async def test_a_silent_stream_sends_heartbeats_once_it_may() -> None:
    reader = Reader()
    with Outlet(reader, watchdog(heartbeat_seconds=SOON)) as outlet:
        await asyncio.sleep(3 * SOON)
        assert reader.all() == []
        outlet.may_beat()
        assert [await reader.next(), await reader.next()] == [Heartbeat(), Heartbeat()]


async def test_a_heartbeat_that_is_being_written_goes_before_what_comes() -> None:
    reader = Reader()
    with Outlet(reader, watchdog(heartbeat_seconds=SOON)) as outlet:
        outlet.may_beat()
        reader.reads.clear()
        await asyncio.sleep(3 * SOON)
        sending = asyncio.create_task(outlet.send([TextDelta("a")]))
        await asyncio.sleep(0)
        reader.reads.set()
        await sending
    assert [event for event in reader.all() if event != Heartbeat()] == [TextDelta("a")]


async def test_a_reader_that_takes_nothing_is_closed() -> None:
    reader = Reader()
    reader.reads.clear()
    with pytest.raises(LlmError) as raised, Outlet(reader, watchdog(write_seconds=SOON)) as outlet:
        await outlet.send([TextDelta("a")])
    assert raised.value.code is Code.CANCELLED
    assert "read nothing" in raised.value.message


async def test_a_reader_that_takes_no_heartbeat_is_closed() -> None:
    reader = Reader()
    reader.reads.clear()

    async def silent() -> None:
        with Outlet(reader, watchdog(heartbeat_seconds=SOON, write_seconds=SOON)) as outlet:
            outlet.may_beat()
            await asyncio.sleep(WAIT)

    with pytest.raises(LlmError) as raised:
        await silent()
    assert raised.value.code is Code.CANCELLED


async def test_the_watchdog_sleeps_while_nothing_is_sent() -> None:
    dog = watchdog(heartbeat_seconds=SOON)
    with Outlet(Reader(), dog):
        assert dog._timer is not None
    await asyncio.sleep(SOON)
    assert dog._timer is None


async def test_streams_that_wait_for_the_same_tick_have_one_timer() -> None:
    coalescer = Coalescer(8000, tick=0.2)
    ticks = Ticks(coalescer)
    with contextlib.ExitStack() as streams:
        for _ in range(50):
            streams.enter_context(coalescer.stream())
        tasks = [asyncio.create_task(ticks.hold(1)) for _ in range(50)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        assert len(ticks._waiting) <= 2  # one, unless the tick came just now
        tasks.pop().cancel()
        await asyncio.wait_for(asyncio.gather(*tasks), WAIT)
        assert ticks._waiting == {}


async def test_a_lone_stream_does_not_wait() -> None:
    coalescer = Coalescer(8000)
    with coalescer.stream(), pytest.raises(StopIteration):
        Ticks(coalescer).hold(1).send(None)
