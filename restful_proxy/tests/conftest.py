"""What the RESTful proxy's tests share: a gRPC proxy that plays what a test wants, and the edge as a process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from lambdalm.testing.chain import Chain, free_ports
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

WAIT = 45  # seconds until a test that waits has failed

LINES: list[str] = []
"""What the edge that was started last has logged."""

Play = Callable[[pb.LLMRequest, Any], Iterator[pb.LLMStreamEvent]]


class Health(health.HealthServicer):
    """Says what it is set to, once `speaks` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.speaks = threading.Event()
        self.speaks.set()

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.speaks.wait(WAIT)
        return super().Check(request, context)


class Proxy(llm_pb2_grpc.LlmServiceServicer):
    """A gRPC proxy whose GenerateStream is `play`; `left` is set when the call is over. Credentials are for TLS."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.play: Play = lambda request, context: iter(())
        self.requests: list[pb.LLMRequest] = []
        self.left = threading.Event()
        self.health = Health()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        llm_pb2_grpc.add_LlmServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.target = f"127.0.0.1:{listen(self._server, credentials)}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Proxy]:
        self._server.start()
        try:
            yield self
        finally:
            self._server.stop(0).wait()

    def GenerateStream(self, request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:  # noqa: N802
        self.requests.append(request)
        if not context.add_callback(self.left.set):
            self.left.set()
        yield from self.play(request, context)

    def hold(self) -> None:
        """Say nothing until the caller has left."""
        self.left.wait(20 * WAIT)


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
