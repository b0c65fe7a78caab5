"""The gRPC proxy, as the edge sees it: a stream of events for each request, cancelled when its Call is.

Nothing is retried here, and the gRPC core does not either: the proxy is the one that owns retries.
"""

from __future__ import annotations

import json
from collections.abc import Generator

import grpc
import grpc.experimental
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lambdalm import timings
from lambdalm.call import REQUEST_ID, Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import StreamEvent
from lambdalm.rpc import messages, status
from lambdalm_proto.v1 import llm_pb2_grpc
from restful_proxy.config import GrpcConfig

PROXY = "proxy"

# A name with several addresses is used in turn; every call fails or goes through at once, and only once.
_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


class GrpcProxy:
    """One channel to the gRPC proxy. Make it after the fork: a channel does not survive one."""

    def __init__(self, config: GrpcConfig) -> None:
        self._target = config.target
        self._channel = grpc.insecure_channel(f"dns:///{config.target}", options=_options(config))
        self._stub = llm_pb2_grpc.LlmServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def stream(self, request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        """The events of one answer; raises LlmError. Closing the generator cancels the gRPC call."""
        rpc = self._stub.GenerateStream(
            messages.request_to_proto(request),
            timeout=call.passed_on(),
            metadata=((REQUEST_ID, call.id),),
        )
        try:
            with call.on_cancel(rpc.cancel):
                for message in rpc:
                    yield messages.event_from_proto(message)
        except grpc.RpcError as error:
            call.check()  # if we cancelled it ourselves, that is the reason
            raise self._failure(error, rpc, call) from None
        finally:
            rpc.cancel()

    def healthy(self, seconds: float) -> str | None:
        """None when the proxy can serve, with a backend behind it; else why it cannot."""
        try:
            answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError as error:
            return self._unreachable(error)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return f"the gRPC proxy at {self._target} is up, but its LLM backend cannot answer"
        return None

    def close(self) -> None:
        """Close the channel; calls still open on it fail."""
        self._channel.close()

    def _failure(self, error: grpc.RpcError, rpc: grpc.Call, call: Call) -> LlmError:
        trailing = tuple(rpc.trailing_metadata() or ())
        behind = dict(trailing).get(timings.SERVER_TIMING)
        if isinstance(behind, str):
            call.clock.behind = timings.decode(behind)
        found = status.from_rpc_error(error, trailing, silent_origin=PROXY)
        if found.code is Code.UNAVAILABLE and behind is None:
            return LlmError(Code.UNAVAILABLE, self._unreachable(error), retry_after=1, origin=PROXY)
        if found.code is Code.DEADLINE_EXCEEDED and behind is None:
            return call.out_of_time()
        return found

    def _unreachable(self, error: grpc.RpcError) -> str:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the gRPC proxy at {self._target} does not answer in time"
        return f"the gRPC proxy at {self._target} cannot be reached, or the connection to it broke off"


def _options(config: GrpcConfig) -> list[tuple[str, int | str]]:
    return [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.enable_retries", 0),
        ("grpc.keepalive_time_ms", int(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5000),  # the time that a connection may take
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Streams with many readers: the reading thread is the one that waits, not one of its own per call.
        (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    ]
