"""gRPC for threads: one event loop, in a thread of its own, reads the streams of all calls.

Theory of operation. With gRPC's synchronous client every stream is a thread that polls: it wakes five times a second
for nothing, and among a thousand of them a message wakes several before it reaches its own. Here one loop reads for
all of them, and each caller waits on a queue. When a caller is `_AHEAD` messages behind, its stream is read no further
until it has caught up, and HTTP/2's flow control holds the server back.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import uvloop

from lambdalm.call import Call

_AHEAD = 16  # messages

T = TypeVar("T")
Message = TypeVar("Message")
MessageOut = TypeVar("MessageOut", covariant=True)


class LoopThread:
    """An event loop in a thread of its own. Make it after the fork: threads do not survive one."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="grpc-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, when it is there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Rpc(Protocol[MessageOut]):
    """What `grpc.aio` gives for a call whose answer is a stream."""

    def __aiter__(self) -> AsyncIterator[MessageOut]: ...

    async def initial_metadata(self) -> Any: ...

    def cancel(self) -> bool: ...


class _End(NamedTuple):
    error: Exception | None = None


class Reading(Generic[Message]):
    """One stream, read in the loop and taken by one thread.

    `begin` starts the call, `head` gets its initial metadata before any message is there; both run in the loop.
    """

    def __init__(
        self, thread: LoopThread, begin: Callable[[], Rpc[Message]], head: Callable[[Any], None] = lambda metadata: None
    ) -> None:
        self._loop = thread.loop
        self._begin = begin
        self._head = head
        self._queue = queue.SimpleQueue[Message | _End]()
        self._room = asyncio.Event()
        self._waits_for_room = False
        self._task: asyncio.Task[None] | None = None
        self._loop.call_soon_threadsafe(self._start)

    def batches(self, call: Call) -> Iterator[list[Message]]:
        """The messages, all that are there at a time; raises what the stream or the call does."""
        with call.on_cancel(lambda: self._queue.put(_End())):
            end = None
            while end is None:
                batch, end = self._take(call)
                call.check()
                if batch:
                    yield batch
            if end.error is not None:
                raise end.error

    def cancel(self) -> None:
        """End the call, from any thread; harmless when it has ended."""
        self._loop.call_soon_threadsafe(self._stop)

    def _take(self, call: Call) -> tuple[list[Message], _End | None]:
        try:
            item = self._queue.get(timeout=call.remaining())
        except queue.Empty:
            raise call.out_of_time() from None
        batch: list[Message] = []
        while not isinstance(item, _End):
            batch.append(item)
            if self._queue.empty():
                if self._waits_for_room:
                    self._loop.call_soon_threadsafe(self._room.set)
                return batch, None
            item = self._queue.get_nowait()
        return batch, item

    def _start(self) -> None:
        self._task = self._loop.create_task(self._read())

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _read(self) -> None:
        end = _End()
        try:
            await self._hand_over(self._begin())
        except Exception as error:  # noqa: BLE001  # a thread's edge: whatever it is, the caller raises it
            end = _End(error)
        finally:
            self._queue.put(end)

    async def _hand_over(self, rpc: Rpc[Message]) -> None:
        try:
            headed = False
            async for message in rpc:
                if not headed:
                    headed = True
                    self._head(await rpc.initial_metadata())  # it has come before the message: nobody waits here
                self._queue.put(message)
                if self._queue.qsize() >= _AHEAD:
                    await self._has_room()
        finally:
            rpc.cancel()

    async def _has_room(self) -> None:
        self._waits_for_room = True
        while self._queue.qsize() >= _AHEAD:
            self._room.clear()
            await self._room.wait()
        self._waits_for_room = False
