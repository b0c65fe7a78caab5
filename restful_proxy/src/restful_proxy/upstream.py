"""The gRPC proxy, as the edge sees it: a whole answer, a stream of events, and calls of one message.

All of it runs on the loop that serves HTTP. A task that is cancelled while it waits here cancels its gRPC call; so
does closing a stream. Nothing is retried here, and the gRPC core does not either: the proxy is the one that owns
retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from lambdalm import timings
from lambdalm.call import REQUEST_ID, Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Answer, StreamEvent
from lambdalm.rpc import messages, status
from restful_proxy import tls
from restful_proxy.caller import Caller, Metadata
from restful_proxy.config import GrpcConfig
from restful_proxy.event_reader import EventReader
from restful_proxy.handshake import Inspector
from restful_proxy.link import PROXY, Link, unreadable

_ASK_SECONDS = 5.0


class GrpcProxy:
    """The link to the gRPC proxy. Make it, use it and close it on one event loop.

    Raises `LlmError(FAILED_PRECONDITION)` when the files of its TLS cannot be used.
    """

    def __init__(self, config: GrpcConfig) -> None:
        tls.check(config.tls)
        self._target = config.target
        self._inspector = Inspector(config.target, config.tls) if config.tls.enabled else None
        self._link = Link(config)

    async def generate(self, request: ChatRequest, call: Call, caller: Caller) -> Answer:
        """One whole answer; raises LlmError. `caller` has its cookies then, the call's clock the times behind."""
        with call.span.blamed():
            message = messages.request_to_proto(request)
            rpc = self._link.stubs().llm.Generate(message, timeout=call.passed_on(), metadata=_metadata(call, caller))
            found = await self._result(rpc, call, caller, call.out_of_time)
            answer = messages.answer_from_proto(found)
            call.clock.behind = answer.timings
            return answer

    async def stream(self, request: ChatRequest, call: Call, caller: Caller) -> AsyncGenerator[list[StreamEvent], None]:
        """The events of one answer, all that are there at a time; raises LlmError.

        `caller` has its cookies when the first event is there, or the error.
        """
        with call.span.blamed():
            message = messages.request_to_proto(request)
            rpc = self._link.stubs().llm.GenerateStream(
                message, timeout=call.passed_on(), metadata=_metadata(call, caller)
            )
            reader = EventReader(rpc, caller.answered)
            begun = False
            try:
                while batch := await reader.take():
                    begun = True
                    yield batch
            except grpc.aio.AioRpcError as error:
                raise await self._failure(error, call, caller, call.out_of_time, begun) from None
            except asyncio.CancelledError:
                self._check_cancelled()
                raise
            finally:
                reader.close()

    async def ask(self, method: str, message: Message, call: Call, caller: Caller) -> Any:
        """LlmService's answer to a call of one message, within 5 s, or what the call has left; raises LlmError."""
        seconds = min(_ASK_SECONDS, call.passed_on())
        rpc = getattr(self._link.stubs().llm, method)(message, timeout=seconds, metadata=_metadata(call, caller))
        found = await self._result(rpc, call, caller, self._late)
        _heard(cast(status.Metadata, tuple(await rpc.trailing_metadata())), call)
        return found

    async def healthy(self, seconds: float) -> str | None:
        """None when the proxy can serve, with a backend behind it; else why it cannot."""
        try:
            answer = await self._link.stubs().health.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return await self._unreachable(error)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return f"the gRPC proxy at {self._target} is up, but its LLM backend cannot answer"
        return None

    async def close(self) -> None:
        """Close the channel; calls still open on it fail."""
        await self._link.close()

    async def _result(self, rpc: Any, call: Call, caller: Caller, late: Callable[[], LlmError]) -> Any:
        """The message that answers a call, and the cookies that came with it."""
        try:
            found = await rpc
        except grpc.aio.AioRpcError as error:
            raise await self._failure(error, call, caller, late) from None
        except asyncio.CancelledError:
            self._check_cancelled()
            raise
        caller.answered(await rpc.trailing_metadata())
        if found is None:
            raise unreadable()
        return found

    def _check_cancelled(self) -> None:
        """A call was cancelled here: raises `LlmError(UNAVAILABLE)` unless its task was, so that the channel closed."""
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            why = f"the connection to the gRPC proxy at {self._target} was closed: the edge is stopping"
            raise LlmError(Code.UNAVAILABLE, why, retry_after=1) from None

    async def _failure(
        self,
        error: grpc.aio.AioRpcError,
        call: Call,
        caller: Caller,
        late: Callable[[], LlmError],
        begun: bool = False,
    ) -> LlmError:
        """The error in a failed call; `late` where its time ran out and the proxy has not said a word."""
        trailing = cast(status.Metadata, tuple(error.trailing_metadata() or ()))
        caller.answered(trailing)
        spoke = _heard(trailing, call)
        found = status.from_rpc_error(error, trailing, silent_origin=PROXY)
        if found.code is Code.UNAVAILABLE and not spoke:
            return LlmError(Code.UNAVAILABLE, await self._unreachable(error, begun), retry_after=1, origin=PROXY)
        return late() if found.code is Code.DEADLINE_EXCEEDED and not spoke else found

    def _late(self) -> LlmError:
        return LlmError(Code.DEADLINE_EXCEEDED, self._no_answer, origin=PROXY)

    @property
    def _no_answer(self) -> str:
        return f"the gRPC proxy at {self._target} does not answer in time"

    async def _unreachable(self, error: grpc.aio.AioRpcError, begun: bool = False) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._no_answer
        fault = None if begun or self._inspector is None else await self._inspector.fault()
        return fault or f"the gRPC proxy at {self._target} cannot be reached, or the connection to it broke off"


def _metadata(call: Call, caller: Caller) -> Metadata:
    """The caller's headers, but for a trace: below this hop's span, if it makes any."""
    return tuple({REQUEST_ID: call.id, **dict(caller.metadata), **dict(call.span.trace.headers())}.items())


def _heard(trailing: status.Metadata, call: Call) -> bool:
    """Whether the proxy itself ended the call: then it has told the times behind, which the clock gets."""
    behind = dict(trailing).get(timings.SERVER_TIMING)
    if isinstance(behind, str):
        call.clock.behind = timings.decode(behind)
    return behind is not None
