"""Outlet: heartbeats, readers that take nothing, frames that leave together."""

from __future__ import annotations

import asyncio
import contextlib
import math

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
        self.begun = 0
        """How often it was told that the answer begins."""
        self.came: asyncio.Queue[StreamEvent] = asyncio.Queue()

    async def write(self, message: bytes) -> None:
        await self.reads.wait()
        self.came.put_nowait(messages.event_from_proto(pb.LLMStreamEvent.FromString(message)))

    async def next(self) -> StreamEvent:
        return await asyncio.wait_for(self.came.get(), WAIT)

    def all(self) -> list[StreamEvent]:
        return [self.came.get_nowait() for _ in range(self.came.qsize())]


def outlet_of(reader: Reader, dog: Watchdog) -> Outlet:
    async def begin() -> None:
        reader.begun += 1

    return Outlet(reader.write, begin, dog)


def watchdog(**parts: float) -> Watchdog:
    return Watchdog(StreamConfig(**parts))  # type: ignore[arg-type]


async def test_neighbouring_deltas_leave_as_one() -> None:
    reader = Reader()
    with outlet_of(reader, watchdog()) as outlet:
        await outlet.send([TextDelta("a"), TextDelta("b"), ReasoningDelta("c"), TextDelta("d")])
        await outlet.send([TextDelta("e")])
    assert reader.all() == [TextDelta("ab"), ReasoningDelta("c"), TextDelta("d"), TextDelta("e")]
    assert reader.begun == 1


async def test_text_longer_than_a_message_leaves_in_pieces() -> None:
    reader, text = Reader(), "aλ" * 1_000_000
    with outlet_of(reader, watchdog()) as outlet:
        await outlet.send([TextDelta(text)])
    came = reader.all()
    assert len(came) > 1
    assert "".join(event.text for event in came if isinstance(event, TextDelta)) == text


async def test_a_silent_stream_sends_heartbeats_once_it_may() -> None:
    reader, later = Reader(), asyncio.get_running_loop().time() + 1
    with outlet_of(reader, watchdog()) as outlet:
        outlet.check(later, SOON, WAIT)
        await asyncio.sleep(0)
        assert reader.all() == []
        outlet.may_beat()
        outlet.check(later, SOON, WAIT)
        assert await reader.next() == Heartbeat()


async def test_the_watchdog_lets_silent_streams_send_heartbeats() -> None:
    reader = Reader()
    with outlet_of(reader, watchdog(heartbeat_seconds=SOON)) as outlet:
        outlet.may_beat()
        assert [await reader.next(), await reader.next()] == [Heartbeat(), Heartbeat()]


async def test_a_heartbeat_that_is_being_written_goes_before_what_comes() -> None:
    reader = Reader()
    with outlet_of(reader, watchdog()) as outlet:
        outlet.may_beat()
        reader.reads.clear()
        outlet.check(asyncio.get_running_loop().time() + 1, SOON, WAIT)
        sending = asyncio.create_task(outlet.send([TextDelta("a")]))
        await asyncio.sleep(0)
        reader.reads.set()
        await sending
    assert reader.all() == [Heartbeat(), TextDelta("a")]


async def test_a_reader_that_takes_nothing_is_closed() -> None:
    reader = Reader()
    reader.reads.clear()
    with pytest.raises(LlmError) as raised, outlet_of(reader, watchdog(write_seconds=SOON)) as outlet:
        await outlet.send([TextDelta("a")])
    assert raised.value.code is Code.CANCELLED
    assert "read nothing" in raised.value.message


async def test_a_reader_that_takes_no_heartbeat_is_closed() -> None:
    reader = Reader()
    reader.reads.clear()

    async def silent() -> None:
        with outlet_of(reader, watchdog(heartbeat_seconds=SOON, write_seconds=SOON)) as outlet:
            outlet.may_beat()
            await asyncio.sleep(WAIT)

    with pytest.raises(LlmError) as raised:
        await silent()
    assert raised.value.code is Code.CANCELLED


async def test_the_watchdog_sleeps_while_nothing_is_sent() -> None:
    dog = watchdog(heartbeat_seconds=SOON)
    with outlet_of(Reader(), dog):
        assert dog._timer is not None
    async with asyncio.timeout(WAIT):
        while dog._timer is not None:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(SOON)


async def test_streams_that_wait_for_the_same_tick_have_one_timer() -> None:
    loop = asyncio.get_running_loop()
    half_past = loop.time() / (math.floor(loop.time() / 0.2) + 0.5)  # a tick that has its middle now
    coalescer = Coalescer(8000, tick=half_past)
    ticks = Ticks(coalescer)
    with contextlib.ExitStack() as streams:
        frames: list[asyncio.Future[None]] = [loop.create_future() for _ in range(50)]
        for _ in frames:
            streams.enter_context(coalescer.stream())
        for frame in frames:
            ticks.hold(frame, 1)
        assert not any(frame.done() for frame in frames)
        assert len(ticks._waiting) == 1
        frames.pop().cancel()
        await asyncio.wait_for(asyncio.gather(*frames), WAIT)
        assert ticks._waiting == {}


async def test_a_frame_of_a_lone_stream_does_not_wait() -> None:
    coalescer = Coalescer(8000)
    with coalescer.stream():
        frame: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        Ticks(coalescer).hold(frame, 1)
        assert frame.done()


async def test_the_gate_counts_the_deltas_that_were_sent() -> None:
    dog = watchdog()
    with outlet_of(Reader(), dog) as outlet:
        await outlet.send([TextDelta("a")] * 1000)
        await outlet.send([Heartbeat(), TextDelta("a")])
        outlet.gate(asyncio.get_running_loop().create_future())
        assert dog.ticks.coalescer._counted == 1001
