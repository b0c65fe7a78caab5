"""What the RESTful proxy's tests share: a gRPC proxy that plays what a test wants, and the edge as a process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2_grpc

from lambdalm.testing.chain import Chain, free_ports
from lambdalm_proto.v1 import llm_pb2 as pb

WAIT = 45  # seconds until a test that waits has failed

LINES: list[str] = []
"""What the edge that was started last has logged."""

Play = Callable[[pb.LLMRequest, Any], Iterator[pb.LLMStreamEvent | bytes]]
Reply = Callable[[pb.LLMRequest, Any], pb.LLMResponse | bytes]


class Health(health.HealthServicer):
    """Says what it is set to, once `speaks` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.speaks = threading.Event()
        self.speaks.set()

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.speaks.wait(WAIT)
        return super().Check(request, context)


class Proxy:
    """A gRPC proxy whose GenerateStream is `play` and whose Generate is `answer`; bytes go out as they are.

    `left` is set when a call is over. Credentials are for TLS.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.play: Play = lambda request, context: iter(())
        self.answer: Reply = lambda request, context: pb.LLMResponse()
        self.requests: list[pb.LLMRequest] = []
        self.left = threading.Event()
        self.health = Health()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self._handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.target = f"127.0.0.1:{listen(self._server, credentials)}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Proxy]:
        self._server.start()
        try:
            yield self
        finally:
            self._server.stop(0).wait()

    def _handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        parse = pb.LLMRequest.FromString
        methods = {
            "Generate": grpc.unary_unary_rpc_method_handler(self._generate, parse, _wire),
            "GenerateStream": grpc.unary_stream_rpc_method_handler(self._generate_stream, parse, _wire),
        }
        service = pb.DESCRIPTOR.services_by_name["LlmService"].full_name
        return grpc.method_handlers_generic_handler(service, methods)

    def _generate(self, request: pb.LLMRequest, context: Any) -> pb.LLMResponse | bytes:
        self._came(request, context)
        return self.answer(request, context)

    def _generate_stream(self, request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent | bytes]:
        self._came(request, context)
        yield from self.play(request, context)

    def _came(self, request: pb.LLMRequest, context: Any) -> None:
        self.requests.append(request)
        if not context.add_callback(self.left.set):
            self.left.set()

    def hold(self) -> None:
        """Say nothing until the caller has left."""
        self.left.wait(20 * WAIT)


def _wire(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def listen(server: grpc.Server, credentials: grpc.ServerCredentials | None = None) -> int:
    """On a free port of 127.0.0.1, which it returns."""
    if credentials is None:
        return server.add_insecure_port("127.0.0.1:0")
    return server.add_secure_port("127.0.0.1:0", credentials)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy().running() as made:
        yield made


@contextlib.contextmanager
def edge_process(**environ: str) -> Iterator[Chain]:
    """`restful-proxy serve`; `chain.url` is where. What is left of it is killed. `LINES` has its log."""
    listens = threading.Event()
    LINES.clear()

    def on_line(hop: str, line: str) -> None:
        LINES.append(line)
        if "listening" in line:
            listens.set()

    chain = Chain(free_ports(), environ, on_line)
    chain.start("edge")
    hop = chain.hops["edge"]
    try:
        assert listens.wait(WAIT), hop.tail
        yield chain
    finally:
        if hop.alive:
            hop.kill()
        hop.stop()  # its log has been read to the end
