"""A reader of one call's stream of events: it reads ahead of its consumer, and joins the deltas that wait.

gRPC gives one message at a time. While the consumer waits for a slow client or for a common tick, the reader goes on,
so that what came meanwhile leaves as one frame. `_AHEAD` messages ahead it stops, and HTTP/2's flow control holds the
server back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lambdalm.events import StreamEvent, join
from lambdalm.rpc import messages
from restful_proxy.link import unreadable

_AHEAD = 16  # messages


class EventReader:
    """Reads `rpc`, a call of `grpc.aio` whose answer is a stream of LLMStreamEvent, in a task of its own.

    `head` gets the call's initial metadata before there is any event.
    """

    def __init__(self, rpc: Any, head: Callable[[Any], None]) -> None:
        self._rpc = rpc
        self._head = head
        self._events: list[StreamEvent] = []
        self._error: BaseException | None = None
        self._over = False
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def take(self) -> list[StreamEvent]:
        """The events that are there, at least one; none at the end of input. Raises what the call does."""
        if not self._events and not self._over:
            self._came.clear()
            await self._came.wait()
        if not self._events and self._error is not None:
            raise self._error
        taken, self._events = self._events, []
        self._room.set()
        return taken if len(taken) < 2 else list(join(taken))

    def close(self) -> None:
        """Cancel the call, unless it has ended."""
        self._rpc.cancel()
        self._task.cancel()

    async def _read(self) -> None:
        try:
            headed = False
            async for message in self._rpc:
                if not headed:
                    headed = True
                    self._head(await self._rpc.initial_metadata())  # it has come before the message
                if message is None:
                    raise unreadable()
                self._events.append(messages.event_from_proto(message))
                self._came.set()
                if len(self._events) >= _AHEAD:
                    self._room.clear()
                    await self._room.wait()
        except BaseException as error:  # noqa: BLE001  # whatever it is, the consumer raises it
            self._error = error
        finally:
            self._over = True
            self._came.set()
