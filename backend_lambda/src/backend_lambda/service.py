"""What the backend's server does with a request: take a slot, let the provider answer, pass the answer on.

And what it says of itself: health and models. All of it on one loop, by whatever server it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from backend_lambda.engine_threads import EngineThreads
from backend_lambda.health import Health, health_of
from backend_lambda.inference import Inference, refuse_session
from backend_lambda.probe_cache import ProbeCache
from backend_lambda.providers.base import LoopProvider
from backend_lambda.slots import Slot, Slots
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.events import Answer, Collector, StreamEvent
from lambdalm.models import Models

Batches = AsyncGenerator[list[StreamEvent], None]


class Backend:
    """One provider with `slots` generations at a time; `queue` requests may wait for a slot."""

    def __init__(self, inference: Inference, slots: int, queue: int) -> None:
        self._inference = inference
        provider = self._provider = inference.provider
        self._on_loop = provider.stream_on_loop if isinstance(provider, LoopProvider) else None
        self._count = slots
        self._slots = Slots(slots, queue)
        self._threads = EngineThreads(slots)
        self._probes = ProbeCache(inference.provider)

    async def answer(self, request: ChatRequest, call: Call) -> Answer:
        """The whole answer; raises LlmError."""
        collector = Collector()
        async with contextlib.aclosing(self.stream(request, call)) as batches:
            async for batch in batches:
                for event in batch:
                    collector.add(event)
        return collector.answer()

    async def stream(self, request: ChatRequest, call: Call) -> Batches:
        """The provider's events, those that came together at a time; while they last, a slot is held. Raises LlmError.

        The call's task is cancelled when the call is stopped. Close it: the slot is free when the engine has
        stopped, which may be a while later.
        """
        with self._inference.generation(request, call) as generation:
            refuse_session(request)
            async with (
                self._slots.take(call) as slot,
                contextlib.aclosing(self._opened(request, call, slot)) as batches,
            ):
                generation.begin()
                async for batch in batches:
                    accepted: list[StreamEvent] = []
                    try:
                        for event in batch:
                            accepted.append(generation.accept(event))
                    finally:  # what came before an event that breaks the contract goes out as well
                        if accepted:
                            yield accepted
            generation.complete()

    async def health(self, draining: bool = False) -> Health:
        """Whether it can answer now; `draining` says that its server is stopping."""
        found = await self._probes.current()
        return health_of(
            self._provider,
            found,
            self._count,
            in_flight=self._slots.held,
            waiting=self._slots.waiting,
            draining=draining,
        )

    async def models(self) -> Models:
        """The models that it can be asked for, the default first."""
        return Models(list((await self._probes.current()).models))

    async def close(self) -> None:
        """Wait for generations whose readers have left, stop the engine, write what is left to log."""
        await self._probes.close()
        await asyncio.to_thread(self._threads.close)
        await asyncio.to_thread(self._inference.close)

    def _opened(self, request: ChatRequest, call: Call, slot: Slot) -> Batches:
        if self._on_loop is not None:
            return self._on_loop(request, call)
        return self._threads.batches(lambda own: self._provider.stream(request, own), call, slot)
