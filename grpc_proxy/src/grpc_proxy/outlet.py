"""The way of a stream's events to their caller: joined, on the process's ticks, with heartbeats between them.

`gate` is the one place where a stream waits for its turn, `send` the one where it writes. One watchdog looks at all
outlets from time to time: one that has been silent for long sends a heartbeat, and one whose caller has read nothing
for long is closed. So a frame costs no timer of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import msgspec

from grpc_proxy.config import StreamConfig
from grpc_proxy.interrupt import Interrupt
from lambdalm.coalesce import Coalescer
from lambdalm.errors import Code, LlmError
from lambdalm.events import Delta, Heartbeat, StreamEvent, ToolCallDelta, join
from lambdalm.rpc import messages

_SWEEPS = 10  # of the watchdog, in the shortest time that it watches over
_LONGEST_SWEEP = 1.0  # seconds
_MOST_TEXT = 256 * 1024  # characters of a frame: gRPC's clients take 4 MiB

_HEARTBEAT = messages.event_to_proto(Heartbeat()).SerializeToString()


Write = Callable[[bytes], Awaitable[None]]


class ReaderStuckError(LlmError):
    """The caller has read nothing for too long: it would not read an error either."""


class Outlet:
    """One stream's, a context manager around all of it. It ends with ReaderStuckError where its caller reads nothing
    for too long."""

    def __init__(self, write: Write, begin: Callable[[], Awaitable[None]], watchdog: Watchdog) -> None:
        """`begin` is awaited before the first `write`."""
        self._quiet = True
        self._begun = False
        self._begin = begin
        self._write_message = write
        self._watchdog = watchdog
        self._loop = asyncio.get_running_loop()
        self._interrupt = Interrupt()
        self._writing_since: float | None = None
        self._deltas = 0  # that were sent since the last frame was held back
        self._written = self._loop.time()
        self._beat: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._interrupt.__enter__()
        self._watchdog.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watchdog.leave(self)
        if self._beat is not None:
            self._beat.cancel()
        self._interrupt.__exit__(kind, error, traceback)

    def may_beat(self) -> None:
        """Before this, no heartbeat is sent: with the first message goes the metadata."""
        self._quiet = False

    def gate(self, frame: asyncio.Future[None]) -> None:
        """Something has come: set the result of `frame` when a frame may leave."""
        deltas, self._deltas = self._deltas, 0
        self._watchdog.ticks.hold(frame, deltas)

    async def send(self, batch: Sequence[StreamEvent]) -> None:
        """Write these events, neighbouring deltas as one."""
        if self._beat is not None and not self._beat.done():
            await asyncio.wait({self._beat})
        self._deltas += sum(isinstance(event, Delta) for event in batch)
        for event in batch if len(batch) == 1 else join(batch):
            if not isinstance(event, Delta) or _length(event) <= _MOST_TEXT:
                await self._write(messages.event_to_proto(event).SerializeToString())
                continue
            for part in _parts(event):
                await self._write(messages.event_to_proto(part).SerializeToString())

    def check(self, now: float, heartbeat_seconds: float, write_seconds: float) -> None:
        """The watchdog looks at it."""
        if self._writing_since is not None:
            if now - self._writing_since >= write_seconds:
                why = f"the client has read nothing for {write_seconds:g} s"
                self._interrupt.fire(ReaderStuckError(Code.CANCELLED, why))
        elif not self._quiet and now - self._written >= heartbeat_seconds:
            self._beat = asyncio.create_task(self._write(_HEARTBEAT))

    async def _write(self, message: bytes) -> None:
        self._writing_since = self._loop.time()
        if not self._begun:
            self._begun = True
            await self._begin()
        await self._write_message(message)
        self._writing_since = None
        self._written = self._loop.time()


def _length(delta: Delta) -> int:
    return len(delta.arguments if isinstance(delta, ToolCallDelta) else delta.text)


def _parts(delta: Delta) -> Iterator[Delta]:
    """The same in several, of `_MOST_TEXT` characters at most."""
    for at in range(0, _length(delta), _MOST_TEXT):
        end = at + _MOST_TEXT
        if not isinstance(delta, ToolCallDelta):
            yield type(delta)(delta.text[at:end])
        elif at == 0:
            yield msgspec.structs.replace(delta, arguments=delta.arguments[:end])
        else:
            yield ToolCallDelta(delta.index, arguments=delta.arguments[at:end])


class Watchdog:
    """All outlets of the process; for one event loop."""

    def __init__(self, config: StreamConfig) -> None:
        self.ticks = Ticks(Coalescer(config.frames_per_second))
        self._heartbeat = config.heartbeat_seconds
        self._write = config.write_seconds
        self._every = min(_LONGEST_SWEEP, min(self._heartbeat, self._write) / _SWEEPS)
        self._outlets: set[Outlet] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, outlet: Outlet) -> None:
        self._outlets.add(outlet)
        if self._timer is None:
            self._wait()

    def leave(self, outlet: Outlet) -> None:
        self._outlets.discard(outlet)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for outlet in list(self._outlets):
            outlet.check(now, self._heartbeat, self._write)
        if self._outlets:
            self._wait()


class Ticks:
    """Holds streams back as `coalescer` says; those that wait for the same tick have one timer."""

    def __init__(self, coalescer: Coalescer) -> None:
        self.coalescer = coalescer
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}

    def hold(self, frame: asyncio.Future[None], deltas: int) -> None:
        """Set the result of `frame` when a frame made of `deltas` deltas may leave."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        delay = self.coalescer.delay(deltas, now)
        if delay <= 0:
            frame.set_result(None)
            return
        tick = round(1000 * (now + delay))
        if tick not in self._waiting:
            self._waiting[tick] = []
            loop.call_later(delay, self._wake, tick)
        self._waiting[tick].append(frame)

    def _wake(self, tick: int) -> None:
        for future in self._waiting.pop(tick):
            if not future.done():  # else its stream has ended meanwhile
                future.set_result(None)
