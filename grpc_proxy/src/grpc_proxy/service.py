"""LlmService: its calls, in terms of what does the work."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from grpc_proxy.answering import Answering
from grpc_proxy.chain import Hop, first_broken
from grpc_proxy.config import StreamConfig
from grpc_proxy.detached import DetachedRuns
from grpc_proxy.door import HOP, Asked, Context, Door
from grpc_proxy.exchange import Exchange
from grpc_proxy.metrics import Metrics
from grpc_proxy.pool import Pool
from grpc_proxy.session_messages import session_to_proto, summary_to_proto
from grpc_proxy.sessions import Sessions
from lambdalm.coalesce import Coalescer
from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, Collector, Delta, Finished, StreamEvent, join
from lambdalm.rpc import messages
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

Batches = AsyncGenerator[list[StreamEvent], None]


class LlmService(llm_pb2_grpc.LlmServiceServicer):
    """The service. One instance per process, used in one event loop."""

    def __init__(
        self,
        config: StreamConfig,
        door: Door,
        answering: Answering,
        sessions: Sessions,
        pool: Pool,
        detached: DetachedRuns,
        look: Callable[[], Sequence[Hop]],
        metrics: Metrics,
    ) -> None:
        self._write_seconds = config.write_seconds
        self._coalescer = Coalescer(config.frames_per_second)
        self._door = door
        self._answering = answering
        self._sessions = sessions
        self._pool = pool
        self._look = look
        self._metrics = metrics
        self._detached = detached

    async def generateText(self, request: pb.LlmQueryRequest, context: Context) -> pb.LlmQueryResponse:  # noqa: N802
        async with self._door.call("generateText", context) as asked:
            wanted = pb.LLMRequest(prompt=request.prompt)
            if request.HasField("max_tokens"):
                wanted.parameters.max_tokens = request.max_tokens
            exchange = asked.wants(messages.request_from_proto(wanted), makes_session=False)
            answer = await self._whole(exchange)
            await _begin(asked, context)
            return pb.LlmQueryResponse(text=answer.text)

    async def Generate(self, request: pb.LLMRequest, context: Context) -> pb.LLMResponse:  # noqa: N802
        async with self._door.call("Generate", context) as asked:
            exchange = asked.wants(messages.request_from_proto(request))
            answer = await self._whole(exchange)
            await _begin(asked, context)
            return messages.answer_to_proto(answer)

    async def GenerateStream(self, request: pb.LLMRequest, context: Context) -> None:  # noqa: N802
        async with self._door.call("GenerateStream", context) as asked:
            exchange = asked.wants(messages.request_from_proto(request))
            with self._coalescer.stream():
                async with contextlib.aclosing(self._batches(exchange)) as batches:
                    async for batch in batches:
                        await _begin(asked, context)
                        await self._write(batch, context)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        async with self._door.call("ListModels", context) as asked:
            key = asked.caller.key
            found = [model for model in await self._pool.models() if key is None or key.allows(model.id)]
            return pb.ListModelsResponse(
                models=[pb.Model(id=m.id, provider=m.provider, context_window=m.context_window) for m in found]
            )

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:  # noqa: N802
        async with self._door.call("ListSessions", context) as asked:
            found = await self._sessions.list(asked.caller, max(request.limit, 0))
            return pb.ListSessionsResponse(sessions=[summary_to_proto(*listing) for listing in found])

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.Session:  # noqa: N802
        async with self._door.call("GetSession", context) as asked:
            return session_to_proto(await self._sessions.get(asked.caller, request.session_id))

    async def DeleteSession(  # noqa: N802
        self, request: pb.DeleteSessionRequest, context: Context
    ) -> pb.DeleteSessionResponse:
        async with self._door.call("DeleteSession", context) as asked:
            await self._sessions.delete(asked.caller, request.session_id)
            return pb.DeleteSessionResponse()

    async def GetChain(self, request: pb.GetChainRequest, context: Context) -> pb.GetChainResponse:  # noqa: N802
        async with self._door.call("GetChain", context):
            hops = self._look()
            return pb.GetChainResponse(
                hops=[pb.HopStatus(hop=hop.hop, name=hop.name, ok=hop.ok, detail=hop.detail) for hop in hops],
                first_broken=first_broken(hops),
            )

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:  # noqa: N802
        async with self._door.call("GetStats", context):
            counted = self._metrics
            return pb.GetStatsResponse(
                active_calls=counted.active,
                total_calls=counted.total,
                sessions=counted.sessions_made,
                active_sessions=counted.active_sessions,
                turns=counted.turns_completed,
                completion_tokens=counted.completion_tokens,
                errors=counted.errors,
                uptime_seconds=time.monotonic() - counted.started,
            )

    async def finish(self, seconds: float) -> None:
        """Let what callers have left behind come to its end, for at most so long."""
        await self._detached.finish(seconds)
        await self._answering.finish()

    def _batches(self, exchange: Exchange) -> Batches:
        """The answer with this hop's time in its end; what is to be drained, made apart from its caller."""
        batches = self._observed(exchange)
        return self._detached.relay(batches, exchange) if exchange.request.on_disconnect == "drain" else batches

    async def _observed(self, exchange: Exchange) -> Batches:
        clock = exchange.call.clock
        before: float | None = None
        async with contextlib.aclosing(self._answering.stream(exchange)) as batches:
            async for batch in batches:
                if any(isinstance(event, Delta) for event in batch):
                    clock.first_delta()
                    now = time.monotonic()
                    if before is None:
                        self._metrics.first_delta(clock.total_ms() / 1000)
                    else:
                        self._metrics.gap(now - before)
                    before = now
                if isinstance(batch[-1], Finished):
                    if batch[-1].timings:
                        clock.behind = batch[-1].timings
                    batch[-1] = msgspec.structs.replace(batch[-1], timings=clock.timings())
                    self._metrics.used(self._pool.known(exchange.model), exchange.usage)
                yield batch

    async def _whole(self, exchange: Exchange) -> Answer:
        collector = Collector()
        async with contextlib.aclosing(self._batches(exchange)) as batches:
            async for batch in batches:
                for event in batch:
                    collector.add(event)
        return collector.answer()

    async def _write(self, batch: list[StreamEvent], context: Context) -> None:
        for event in join(batch):
            try:
                async with asyncio.timeout(self._write_seconds):
                    await context.write(messages.event_to_proto(event))
            except TimeoutError:
                raise LlmError(
                    Code.CANCELLED, f"the client has read nothing for {self._write_seconds:g} s", origin=HOP
                ) from None
        deltas = sum(isinstance(event, Delta) for event in batch)
        pause = self._coalescer.delay(deltas, asyncio.get_running_loop().time()) if deltas else 0
        if pause and not isinstance(batch[-1], Finished):
            await asyncio.sleep(pause)


async def _begin(asked: Asked, context: Context) -> None:
    """The initial metadata goes out with the first message: by then it is known whose session it is."""
    if not asked.begun:
        asked.begun = True
        await context.send_initial_metadata(asked.cookies())
