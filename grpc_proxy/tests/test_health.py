"""The proxy's health, which says what the backend's is: watched, not polled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # the stubs lack it

from grpc_proxy import health, server
from grpc_proxy.upstream import Upstream
from lambdalm.testing.raw_http import Peer, Play, RawServer, answer

from .conftest import SOON, WAIT, new_config

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def says(status: str) -> Play:
    async def play(peer: Peer) -> None:
        await peer.send(answer(status, "application/json", b"{}"))

    return play


@contextlib.asynccontextmanager
async def watched(url: str, service: str) -> AsyncIterator[Any]:
    """The health of a proxy in front of this backend, as a stream of its changes."""
    config = new_config(url)
    async with server.session(config) as http:
        servicer = aio.HealthServicer()
        serving = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, serving)
        port = serving.add_insecure_port("127.0.0.1:0")
        await serving.start()
        watching = asyncio.create_task(health.watch(Upstream(http, config.upstream, WAIT), servicer, SOON))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            changes = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
            yield changes
            changes.cancel()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        await serving.stop(0)


async def becomes(changes: Any, status: int) -> None:
    async with asyncio.timeout(WAIT):
        while (await changes.read()).status != status:
            pass


@pytest.mark.parametrize("service", ["", "lambdalm.v1.LlmService"])
async def test_it_is_serving_only_while_the_backend_says_that_it_can_answer(service: str) -> None:
    async with RawServer(says("200 OK")) as backend, watched(backend.url, service) as changes:
        for _ in range(2):
            await becomes(changes, SERVING)
            backend.play = says("503 Service Unavailable")
            await becomes(changes, NOT_SERVING)
            backend.play = says("200 OK")
        await becomes(changes, SERVING)
        backend.play = Peer.gone  # it hangs
        await becomes(changes, NOT_SERVING)


async def test_it_is_not_serving_while_the_backend_is_gone_and_serving_when_it_is_back() -> None:
    backend = RawServer(says("200 OK"))
    async with backend:
        pass
    async with watched(backend.url, "") as changes:
        await becomes(changes, NOT_SERVING)
        async with backend:  # on the same port again
            await becomes(changes, SERVING)
        await becomes(changes, NOT_SERVING)


@pytest.mark.parametrize("service", ["", "lambdalm.v1.LlmService"])
async def test_nobody_is_told_serving_before_the_backend_has_been_looked_at(service: str) -> None:
    servicer = aio.HealthServicer()
    await health.not_looked_yet(servicer)
    answer = await servicer.Check(health_pb2.HealthCheckRequest(service=service), None)
    assert answer.status == NOT_SERVING
