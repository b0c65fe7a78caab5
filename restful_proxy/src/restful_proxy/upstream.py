"""The gRPC proxy, as the edge sees it: a stream of events for each request, cancelled when its Call is; and calls of
one message.

Nothing is retried here, and the gRPC core does not either: the proxy is the one that owns retries.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, cast

import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from lambdalm import timings
from lambdalm.call import REQUEST_ID, Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import StreamEvent, join
from lambdalm.rpc import messages, status
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy import tls
from restful_proxy.caller import Caller, Metadata
from restful_proxy.channel import LoopThread, Reading, Rpc
from restful_proxy.config import GrpcConfig
from restful_proxy.handshake import Inspector
from restful_proxy.link import Link

PROXY = "proxy"

_ASK_SECONDS = 5.0


class GrpcProxy:
    """The link to the gRPC proxy. Make it after the fork: neither a channel nor a thread survives one.

    Raises `LlmError(FAILED_PRECONDITION)` when the files of its TLS cannot be used.
    """

    def __init__(self, config: GrpcConfig) -> None:
        tls.check(config.tls)
        self._target = config.target
        self._inspector = Inspector(config.target, config.tls) if config.tls.enabled else None
        self._thread = LoopThread()
        self._link = self._thread.run(_open(config))

    def stream(self, request: ChatRequest, call: Call, caller: Caller) -> Generator[StreamEvent, None, None]:
        """The events of one answer; raises LlmError. Closing the generator cancels the gRPC call.

        `caller` has its cookies when the first event is there, or the error.
        """
        with call.span.blamed():
            yield from self._events(request, call, caller)

    def _events(self, request: ChatRequest, call: Call, caller: Caller) -> Generator[StreamEvent, None, None]:
        reading = Reading(self._thread, partial(self._begin, request, call, caller), caller.answered)
        begun = False
        try:
            for batch in reading.batches(call):
                begun = True
                yield from join(map(messages.event_from_proto, batch))
        except grpc.aio.AioRpcError as error:
            call.check()  # if we cancelled it ourselves, that is the reason
            raise self._failure(error, call, caller, call.out_of_time(), begun) from None
        finally:
            reading.cancel()

    def ask(self, method: str, message: Message, call: Call, caller: Caller) -> Any:
        """LlmService's answer to a call of one message, within 5 s, or what the call has left; raises LlmError."""
        try:
            return self._thread.run(self._ask(method, message, call, caller))
        except grpc.aio.AioRpcError as error:
            late = LlmError(Code.DEADLINE_EXCEEDED, self._late(), origin=PROXY)
            raise self._failure(error, call, caller, late) from None

    def healthy(self, seconds: float) -> str | None:
        """None when the proxy can serve, with a backend behind it; else why it cannot."""
        try:
            answer = self._thread.run(self._check(seconds))
        except grpc.aio.AioRpcError as error:
            return self._unreachable(error)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return f"the gRPC proxy at {self._target} is up, but its LLM backend cannot answer"
        return None

    def close(self) -> None:
        """Close the channel; calls still open on it fail."""
        self._thread.run(self._link.close())
        self._thread.stop()

    def _begin(self, request: ChatRequest, call: Call, caller: Caller) -> Rpc[pb.LLMStreamEvent]:
        rpc: Rpc[pb.LLMStreamEvent] = self._link.stubs().llm.GenerateStream(
            messages.request_to_proto(request), timeout=call.passed_on(), metadata=_metadata(call, caller)
        )
        return rpc

    async def _ask(self, method: str, message: Message, call: Call, caller: Caller) -> Any:
        rpc = getattr(self._link.stubs().llm, method)(
            message, timeout=min(_ASK_SECONDS, call.passed_on()), metadata=_metadata(call, caller)
        )
        caller.answered(await rpc.initial_metadata())
        answer = await rpc
        _heard(await rpc.trailing_metadata(), call)
        return answer

    async def _check(self, seconds: float) -> health_pb2.HealthCheckResponse:
        answer: health_pb2.HealthCheckResponse = await self._link.stubs().health.Check(
            health_pb2.HealthCheckRequest(), timeout=seconds
        )
        return answer

    def _failure(
        self, error: grpc.aio.AioRpcError, call: Call, caller: Caller, late: LlmError, begun: bool = False
    ) -> LlmError:
        """The error in a failed call; `late` where its time ran out and the proxy has not said a word."""
        trailing = cast(status.Metadata, tuple(error.trailing_metadata() or ()))
        caller.answered(trailing)
        spoke = _heard(trailing, call)
        found = status.from_rpc_error(error, trailing, silent_origin=PROXY)
        if found.code is Code.UNAVAILABLE and not spoke:
            return LlmError(Code.UNAVAILABLE, self._unreachable(error, begun), retry_after=1, origin=PROXY)
        return late if found.code is Code.DEADLINE_EXCEEDED and not spoke else found

    def _late(self) -> str:
        return f"the gRPC proxy at {self._target} does not answer in time"

    def _unreachable(self, error: grpc.aio.AioRpcError, begun: bool = False) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._late()
        fault = None if begun or self._inspector is None else self._inspector.fault()
        return fault or f"the gRPC proxy at {self._target} cannot be reached, or the connection to it broke off"


async def _open(config: GrpcConfig) -> Link:
    return Link(config)


def _metadata(call: Call, caller: Caller) -> Metadata:
    """The caller's headers, but for a trace: below this hop's span, if it makes any."""
    return tuple({REQUEST_ID: call.id, **dict(caller.metadata), **dict(call.span.trace.headers())}.items())


def _heard(trailing: status.Metadata, call: Call) -> bool:
    """Whether the proxy itself ended the call: then it has told the times behind, which the clock gets."""
    behind = dict(trailing).get(timings.SERVER_TIMING)
    if isinstance(behind, str):
        call.clock.behind = timings.decode(behind)
    return behind is not None
