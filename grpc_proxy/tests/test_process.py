"""The proxy as a process: how it starts, what it serves, and how it stops."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lambdalm.testing.raw_http import OK_SSE, Peer, RawServer, answer
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import DELTAS, END, STARTED, TEXT, USAGE, WAIT, proxy_process

NOWHERE = "http://127.0.0.1:1/query"


def grpc_proxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpc_proxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


def until(condition: Callable[[], bool]) -> None:
    """Returns when it holds; what another process has logged sends no event."""
    deadline = time.monotonic() + WAIT
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        tick.wait(0.01)


def test_reflection_lists_the_services() -> None:
    with proxy_process(NOWHERE) as chain, grpc.insecure_channel(chain.grpc_target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (found,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in found.list_services_response.service}
    assert names == {
        "lambdalm.v1.LlmService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_a_second_server_on_the_same_port_refuses_to_start_with_a_line_that_names_it() -> None:
    with proxy_process(NOWHERE) as chain:
        ran = grpc_proxy("serve", "--port", str(chain.ports.proxy))
        assert chain.hops["proxy"].alive
    assert ran.returncode == 1
    assert f"error: cannot listen on 127.0.0.1:{chain.ports.proxy}: is another server running there?" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_hung_worker_is_replaced(tmp_path: Path) -> None:
    several = {"GRPC_WORKERS": "2", "STORE_SQLITE_PATH": str(tmp_path / "store.sqlite"), "GRPC_GRACE": "0"}
    with proxy_process(NOWHERE, **several) as chain:
        family = psutil.Process(chain.hops["proxy"].process.pid)
        hung = family.children()[0]
        until(lambda: sum("ready" in line for line in chain.hops["proxy"].tail) == 2)
        hung.suspend()
        hung.wait(WAIT)
        until(lambda: sum("ready" in line for line in chain.hops["proxy"].tail) == 3)
        assert any("worker_hung" in line for line in chain.hops["proxy"].tail)
        assert hung.pid not in {child.pid for child in family.children()}


async def test_on_sigterm_it_is_not_serving_and_a_running_stream_is_finished() -> None:
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        if peer.request.target == "/health":
            await peer.send(answer("200 OK", "application/json", b"{}"))
            return
        await peer.send(OK_SSE + STARTED + DELTAS[0])
        await go_on.wait()
        await peer.send(*DELTAS[1:], USAGE, END)

    async with RawServer(play) as backend:
        running = proxy_process(backend.url)
        chain = await asyncio.to_thread(running.__enter__)
        try:
            process = chain.hops["proxy"].process
            async with grpc.aio.insecure_channel(chain.grpc_target) as channel, asyncio.timeout(WAIT):
                stub: Any = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
                health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                while (await health.read()).status != health_pb2.HealthCheckResponse.SERVING:
                    pass
                call = aiter(stub.GenerateStream(pb.LLMRequest(prompt="hi")))
                events = [await anext(call), await anext(call)]
                process.terminate()
                while (await health.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                    pass
                health.cancel()
                go_on.set()
                events += [event async for event in call]
            assert events[-1].WhichOneof("event") == "finished"
            assert "".join(event.text_delta.text for event in events) == TEXT
            assert await asyncio.to_thread(process.wait, WAIT) == 0
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


async def test_the_command_test_says_what_the_backend_offers() -> None:
    async def play(peer: Peer) -> None:
        await peer.send(answer("200 OK", "application/json", b'{"models":[{"id":"tiny","provider":"p"}]}'))

    async with RawServer(play) as backend:
        ran = await asyncio.to_thread(grpc_proxy, "test", "--upstream", backend.url)
    assert ran.returncode == 0
    assert ran.stdout == f"the store sqlite answers\nthe backend at {backend.url} is healthy; its models: tiny\n"


def test_the_command_test_says_when_nothing_is_there() -> None:
    ran = grpc_proxy("test", "--upstream", NOWHERE)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: backend: the LLM backend at http://127.0.0.1:1 cannot be reached")
