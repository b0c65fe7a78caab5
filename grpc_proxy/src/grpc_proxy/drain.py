"""Answers that are finished though their caller has left: the disconnect policy `drain`.

What makes the answer runs in a task of its own and hands its batches over to the caller's; when that one is gone, they
are dropped, and the answer comes to its end all the same: in its session, where the caller finds it on return.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import NamedTuple

from grpc_proxy.background import Background
from grpc_proxy.door import cut_off
from lambdalm import logs
from lambdalm.call import Call
from lambdalm.errors import LlmError
from lambdalm.events import StreamEvent

_AHEAD = 16  # batches

_log = logs.get(__name__)

Batches = AsyncGenerator[list[StreamEvent], None]


class _End(NamedTuple):
    error: Exception | None


class _Pipe:
    """From the task that makes the batches to the one that sends them, while there is one."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[list[StreamEvent] | _End] = asyncio.Queue(_AHEAD)
        self.read = True

    async def put(self, item: list[StreamEvent] | _End) -> None:
        if self.read:
            await self._queue.put(item)

    async def get(self) -> list[StreamEvent] | _End:
        return await self._queue.get()

    def break_off(self, error: LlmError) -> None:
        """Nothing more comes but this."""
        self._clear()
        self._queue.put_nowait(_End(error))

    def shut(self) -> None:
        """Nobody reads any more; whoever waits for room goes on."""
        self.read = False
        self._clear()

    def _clear(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()


class Drains:
    """All answers that are made in this way."""

    def __init__(self) -> None:
        self._running = Background()

    async def through(self, batches: Batches, call: Call) -> Batches:
        """The same batches; when this generator is closed or cancelled, they are made to their end nevertheless."""
        pipe = _Pipe()
        self._running.start(self._make(batches, call, pipe))
        try:
            while not isinstance(item := await pipe.get(), _End):
                yield item
        finally:
            pipe.shut()
        if item.error is not None:
            raise item.error

    async def finish(self, seconds: float) -> None:
        """Wait for those that run, at most so long, and then stop them."""
        await self._running.stop(seconds)

    async def _make(self, batches: Batches, call: Call, pipe: _Pipe) -> None:
        end = _End(None)
        try:
            async with asyncio.timeout(call.remaining()), contextlib.aclosing(batches):
                async for batch in batches:
                    await pipe.put(batch)
        except asyncio.CancelledError:
            pipe.break_off(cut_off())
            raise
        except TimeoutError:
            end = _End(call.out_of_time())
        except Exception as error:  # noqa: BLE001  # a task's edge: whoever reads raises it
            end = _End(error)
        if not pipe.read:
            said = end.error.for_log() if isinstance(end.error, LlmError) else {}
            _log.info("drained", request_id=call.id, **said, exc_info=None if said else end.error)
        await pipe.put(end)
