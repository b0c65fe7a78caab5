"""The proxy's health, which says what the backend's is: watched, not polled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lambdalm.testing.raw_http import Peer, Play, RawServer, answer

from .conftest import SOON, WAIT, new_config, whole_proxy_here

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def says(status: str) -> Play:
    async def play(peer: Peer) -> None:
        await peer.send(answer(status, "application/json", b"{}"))

    return play


@contextlib.asynccontextmanager
async def watched(url: str, service: str) -> AsyncIterator[Any]:
    """The health of a proxy in front of this backend, as a stream of its changes."""
    config = new_config(url, upstream={"check_seconds": SOON})
    async with whole_proxy_here(config) as here, here.proxy.health.watched():
        changes = health_pb2_grpc.HealthStub(here.channel).Watch(health_pb2.HealthCheckRequest(service=service))
        yield changes
        changes.cancel()


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
    asked = asyncio.Event()

    async def hangs(peer: Peer) -> None:
        asked.set()
        await peer.gone()

    async with RawServer(hangs) as backend, watched(backend.url, service) as changes:
        await asked.wait()
        assert (await changes.read()).status == NOT_SERVING


async def test_who_watches_does_not_hold_the_stop_up() -> None:
    async with RawServer(says("200 OK")) as backend, whole_proxy_here(new_config(backend.url)) as here:
        watch = health_pb2_grpc.HealthStub(here.channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await here.proxy.health.stop()
        here.proxy.health.let_go()
        async with asyncio.timeout(WAIT):
            while await watch.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]  # the stubs lack it
                pass
        assert await watch.code() is grpc.StatusCode.OK
