"""The gRPC proxy, as the edge sees it: a stream of events for each request, cancelled when its Call is.

Nothing is retried here, and the gRPC core does not either: the proxy is the one that owns retries.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from functools import partial
from typing import cast

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lambdalm import timings
from lambdalm.call import REQUEST_ID, Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import StreamEvent, join
from lambdalm.rpc import messages, status
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc
from restful_proxy.channel import LoopThread, Reading
from restful_proxy.config import GrpcConfig

PROXY = "proxy"

# A name with several addresses is used in turn; every call fails or goes through at once, and only once.
_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


class GrpcProxy:
    """One channel to the gRPC proxy. Make it after the fork: neither a channel nor a thread survives one."""

    def __init__(self, config: GrpcConfig) -> None:
        self._target = config.target
        self._thread = LoopThread()
        self._channel = self._thread.run(_open(config))
        self._stub = llm_pb2_grpc.LlmServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        """The events of one answer; raises LlmError. Closing the generator cancels the gRPC call."""
        begin = partial(
            self._stub.GenerateStream,
            messages.request_to_proto(request),
            timeout=call.passed_on(),
            metadata=((REQUEST_ID, call.id),),
        )
        reading = Reading[pb.LLMStreamEvent](self._thread, begin)
        try:
            for batch in reading.batches(call):
                yield from join(map(messages.event_from_proto, batch))
        except grpc.aio.AioRpcError as error:
            call.check()  # if we cancelled it ourselves, that is the reason
            raise self._failure(error, call) from None
        finally:
            reading.cancel()

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
        self._thread.run(self._channel.close(None))
        self._thread.stop()

    async def _check(self, seconds: float) -> health_pb2.HealthCheckResponse:
        answer: health_pb2.HealthCheckResponse = await self._health.Check(
            health_pb2.HealthCheckRequest(), timeout=seconds
        )
        return answer

    def _failure(self, error: grpc.aio.AioRpcError, call: Call) -> LlmError:
        trailing = cast(status.Metadata, tuple(error.trailing_metadata() or ()))
        behind = dict(trailing).get(timings.SERVER_TIMING)
        if isinstance(behind, str):
            call.clock.behind = timings.decode(behind)
        found = status.from_rpc_error(error, trailing, silent_origin=PROXY)
        if found.code is Code.UNAVAILABLE and behind is None:
            return LlmError(Code.UNAVAILABLE, self._unreachable(error), retry_after=1, origin=PROXY)
        if found.code is Code.DEADLINE_EXCEEDED and behind is None:
            return call.out_of_time()
        return found

    def _unreachable(self, error: grpc.aio.AioRpcError) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the gRPC proxy at {self._target} does not answer in time"
        return f"the gRPC proxy at {self._target} cannot be reached, or the connection to it broke off"


async def _open(config: GrpcConfig) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"dns:///{config.target}", options=_options(config))


def _options(config: GrpcConfig) -> list[tuple[str, int | str]]:
    return [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.enable_retries", 0),
        ("grpc.http2.bdp_probe", 0),  # measures bandwidth with pings among the messages; tokens need little
        ("grpc.keepalive_time_ms", int(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5000),  # the time that a connection may take
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
