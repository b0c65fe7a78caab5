"""LlmService: its calls, in terms of what does the work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from grpc_proxy.answering import Answering
from grpc_proxy.chain import Hop, first_broken
from grpc_proxy.config import StreamConfig
from grpc_proxy.detached import DetachedRuns
from grpc_proxy.door import Context, Door
from grpc_proxy.exchange import Exchange
from grpc_proxy.metrics import Metrics
from grpc_proxy.outlet import Outlet, Watchdog
from grpc_proxy.pool import Pool
from grpc_proxy.session_messages import session_to_proto, summary_to_proto
from grpc_proxy.sessions import Sessions
from lambdalm.events import Answer, Collector, StreamEvent, replayed
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
        self._watchdog = Watchdog(config)
        self._door = door
        self._answering = answering
        self._sessions = sessions
        self._pool = pool
        self._look = look
        self._metrics = metrics
        self._detached = detached

    async def generateText(self, request: pb.LlmQueryRequest, context: Context) -> bytes:  # noqa: N802
        async with self._door.call("generateText", context) as asked:
            wanted = pb.LLMRequest(prompt=request.prompt)
            if request.HasField("max_tokens"):
                wanted.parameters.max_tokens = request.max_tokens
            answer = await self._answer(asked.wants(messages.request_from_proto(wanted), makes_session=False))
            return pb.LlmQueryResponse(text=answer.text).SerializeToString()

    async def Generate(self, request: pb.LLMRequest, context: Context) -> bytes:  # noqa: N802
        async with self._door.call("Generate", context) as asked:
            answer = await self._answer(asked.wants(messages.request_from_proto(request)))
            return messages.answer_to_proto(answer).SerializeToString()

    async def GenerateStream(self, request: pb.LLMRequest, context: Context) -> None:  # noqa: N802
        async with self._door.call("GenerateStream", context) as asked:
            exchange = asked.wants(messages.request_from_proto(request))

            async def begin() -> None:  # with the first message: by then it is known whose session it is
                await context.send_initial_metadata(asked.cookies())

            with self._watchdog.ticks.coalescer.stream(), Outlet(context.write, begin, self._watchdog) as outlet:
                exchange.when_ready = outlet.may_beat
                async with contextlib.aclosing(self._batches(exchange, outlet)) as batches:
                    async for batch in batches:
                        await outlet.send(batch)

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

    def _batches(self, exchange: Exchange, outlet: Outlet) -> Batches:
        """The answer as a stream; what is to be drained, made apart from its caller."""
        batches = self._answering.stream(exchange, outlet.gate)
        return self._detached.relay(batches, exchange) if exchange.request.on_disconnect == "drain" else batches

    async def _answer(self, exchange: Exchange) -> Answer:
        """The whole answer; what is to be drained, made apart from its caller."""
        if exchange.request.on_disconnect != "drain":
            return await self._answering.answer(exchange)
        collector = Collector()
        async with contextlib.aclosing(self._detached.relay(self._in_one(exchange), exchange)) as batches:
            async for batch in batches:
                for event in batch:
                    collector.add(event)
        return collector.answer()

    async def _in_one(self, exchange: Exchange) -> Batches:
        yield list(replayed(await self._answering.answer(exchange)))
