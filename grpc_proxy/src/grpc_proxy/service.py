"""LlmService: what a call goes through, from its metadata to its status.

The commit point is the first delta: `Started` is held back until then, so that an earlier failure still has its own
status, and `Started` names the model that really answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import NoReturn

import grpc
import msgspec

from grpc_proxy.config import Config
from grpc_proxy.upstream import Upstream
from lambdalm import call as calls
from lambdalm import logs, timings
from lambdalm.call import Call
from lambdalm.chat import ChatRequest, invalid
from lambdalm.coalesce import Coalescer
from lambdalm.errors import Code, LlmError, bug
from lambdalm.events import (
    Answer,
    Collector,
    Delta,
    Finished,
    Heartbeat,
    StreamEvent,
    join,
)
from lambdalm.rpc import messages, status
from lambdalm.timings import HopClock
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

HOP = "proxy"

_log = logs.get(__name__)

Context = grpc.aio.ServicerContext[object, object]


class LlmService(llm_pb2_grpc.LlmServiceServicer):
    """The service. One instance per process, used in one event loop."""

    def __init__(self, upstream: Upstream, config: Config) -> None:
        self._upstream = upstream
        self._limits = config.limits
        self._write_seconds = config.stream.write_seconds
        self._coalescer = Coalescer(config.stream.frames_per_second)
        self._in_flight = 0

    async def generateText(self, request: pb.LlmQueryRequest, context: Context) -> pb.LlmQueryResponse:  # noqa: N802
        async with self._call(context) as call:
            asked = pb.LLMRequest(prompt=request.prompt)
            if request.HasField("max_tokens"):
                asked.parameters.max_tokens = request.max_tokens
            answer = await self._whole(messages.request_from_proto(asked), call)
            return pb.LlmQueryResponse(text=answer.text)

    async def Generate(self, request: pb.LLMRequest, context: Context) -> pb.LLMResponse:  # noqa: N802
        async with self._call(context) as call:
            return messages.answer_to_proto(await self._whole(messages.request_from_proto(request), call))

    async def GenerateStream(self, request: pb.LLMRequest, context: Context) -> None:  # noqa: N802
        async with self._call(context) as call:
            batches = self._answer(messages.request_from_proto(request), call)
            with self._coalescer.stream():
                async with contextlib.aclosing(batches):
                    async for batch in batches:
                        await self._write(batch, context)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        async with self._call(context):
            found = await self._upstream.models()
            return pb.ListModelsResponse(
                models=[pb.Model(id=m.id, provider=m.provider, context_window=m.context_window) for m in found]
            )

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
        pause = self._coalescer.pause(deltas, asyncio.get_running_loop().time()) if deltas else 0
        if pause and not isinstance(batch[-1], Finished):
            await asyncio.sleep(pause)

    async def _whole(self, request: ChatRequest, call: Call) -> Answer:
        collector = Collector()
        async with contextlib.aclosing(self._answer(request, call)) as batches:
            async for batch in batches:
                for event in batch:
                    collector.add(event)
        return collector.answer()

    async def _answer(self, request: ChatRequest, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
        """The backend's stream with `Started` held back until the first delta, and this hop's time in its end."""
        if request.session_id is not None:
            raise invalid("session_id", "this proxy keeps no sessions yet; send the whole conversation as messages")
        held: list[StreamEvent] = []
        committed = False
        async with contextlib.aclosing(self._upstream.stream(request, call)) as batches:
            async for batch in batches:
                if not committed:
                    committed = any(isinstance(event, Delta | Finished) for event in batch)
                    if not committed:
                        held += [event for event in batch if not isinstance(event, Heartbeat)]
                        if len(batch) == 1 and isinstance(batch[0], Heartbeat):
                            yield batch
                        continue
                    batch = held + batch
                if any(isinstance(event, Delta) for event in batch):
                    call.clock.first_delta()
                if isinstance(batch[-1], Finished):
                    if batch[-1].timings:
                        call.clock.behind = batch[-1].timings
                    batch[-1] = msgspec.structs.replace(batch[-1], timings=call.clock.timings())
                yield batch

    @contextlib.asynccontextmanager
    async def _call(self, context: Context) -> AsyncIterator[Call]:
        """The call's id, budget and place among those in flight; ends it with its status and trailing metadata."""
        clock = HopClock(HOP)
        metadata = dict(context.invocation_metadata() or ())
        call = Call("", self._limits.max_timeout, clock)
        try:
            left = context.time_remaining()
            budget = self._limits.default_timeout if left is None else left
            call = Call(
                calls.request_id(_text(metadata.get(calls.REQUEST_ID))), min(budget, self._limits.max_timeout), clock
            )
            with self._admitted():
                call.check()
                async with asyncio.timeout(call.remaining()):
                    yield call
            context.set_trailing_metadata(_trailing(call))
            _log.info("answered", request_id=call.id, ms=clock.total_ms())
        except TimeoutError:
            await _abort(context, call, call.out_of_time())
        except LlmError as error:
            await _abort(context, call, error.at(HOP))
        except (asyncio.CancelledError, grpc.aio.InternalError):  # the latter comes of a write to a caller who has left
            _log.info("the caller left", request_id=call.id, ms=clock.total_ms())
            raise asyncio.CancelledError from None
        except Exception as error:  # noqa: BLE001  # the edge of the process: the caller must be told, whatever it was
            _log.error("a bug: the call raised", request_id=call.id, exc_info=error)
            await _abort(context, call, bug(HOP))

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= self._limits.max_in_flight:
            raise LlmError(
                Code.RESOURCE_EXHAUSTED,
                f"{self._in_flight} calls are in progress, which is the limit: come back later",
                retry_after=1,
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


async def _abort(context: Context, call: Call, error: LlmError) -> NoReturn:
    _log.info("failed", request_id=call.id, **error.for_log(), ms=call.clock.total_ms())
    await context.abort(status.STATUS[error.code], error.message, _trailing(call) + status.details(error))


def _trailing(call: Call) -> status.Metadata:
    return ((timings.SERVER_TIMING, timings.encode(call.clock.timings())), (calls.REQUEST_ID, call.id))


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value
