"""The chain from the proxy on, hop by hop, over real gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from grpc_proxy.chain import Hop, first_broken
from grpc_proxy.dialects import Look
from grpc_proxy.wiring import Proxy
from lambdalm.testing.raw_http import OK_SSE, Peer, RawServer
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import WHOLE, new_config, whole_proxy_here
from .stores import redis_server
from .test_service import refused

UP = Look(None, "tiny on llama.cpp")
DOWN = Look("its model is not loaded")


@contextlib.asynccontextmanager
async def two_backends(**parts: Any) -> AsyncIterator[tuple[Proxy, Any, RawServer]]:
    """A proxy, its stub, and the server that is both of its backends."""
    async with RawServer(Peer.gone) as server:
        config = new_config(server.url, upstreams={name: {"url": server.url} for name in "ab"}, **parts)
        async with whole_proxy_here(config) as here:
            for name in "ab":
                here.proxy.pool.looked(name, UP)
            stub = llm_pb2_grpc.LlmServiceStub(here.channel)  # type: ignore[no-untyped-call]
            yield here.proxy, stub, server


async def chain(stub: Any) -> tuple[list[tuple[str, str, bool, str]], str]:
    found = await stub.GetChain(pb.GetChainRequest())
    return [(hop.hop, hop.name, hop.ok, hop.detail) for hop in found.hops], found.first_broken


async def test_the_chain_is_this_hop_its_store_and_each_backend_and_asks_nobody() -> None:
    async with two_backends() as (_, stub, server):
        hops, broken = await chain(stub)
        assert hops == [
            ("proxy", "", True, "serving"),
            ("store", "memory", True, "keeps sessions and quotas"),
            ("backend", "a", True, UP.detail),
            ("backend", "b", True, UP.detail),
        ]
        assert broken == ""
        assert server.requests == []


async def test_of_several_backends_one_is_enough() -> None:
    async with two_backends() as (proxy, stub, _):
        proxy.pool.looked("a", DOWN)
        hops, broken = await chain(stub)
        assert (hops[2], broken) == (("backend", "a", False, DOWN.why), "")
        proxy.pool.looked("b", DOWN)
        assert (await chain(stub))[1] == "backend"
        assert proxy.health.why_not() is not None


async def test_a_server_that_stops_is_the_first_broken_hop() -> None:
    async with two_backends() as (proxy, stub, _):
        proxy.pool.looked("a", DOWN)
        proxy.pool.looked("b", DOWN)
        await proxy.health.stop()
        hops, broken = await chain(stub)
        assert (hops[0], broken) == (("proxy", "", False, "shutting down"), "proxy")


async def test_a_store_that_does_not_answer_is_named_with_its_cause(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with two_backends(store={"kind": "redis", "redis": {"url": redis.url}}) as (_, stub, _):
            redis.pause()
            await refused(stub.GenerateStream(pb.LLMRequest(prompt="Who?")).read())
            hops, broken = await chain(stub)
            (hop, name, ok, detail) = hops[1]
            assert (hop, name, ok, broken) == ("store", "redis", False, "store")
            assert redis.url in detail or "did not answer" in detail
            redis.resume()


async def test_a_store_without_room_is_named_until_it_has_some(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "1") as redis:  # which reads, and refuses to write
        async with two_backends(store={"kind": "redis", "redis": {"url": redis.url}}) as (_, stub, server):
            server.play = lambda peer: peer.send(OK_SSE + WHOLE)
            error = await refused(stub.GenerateStream(pb.LLMRequest(prompt="Who?")).read())
            hops, broken = await chain(stub)
            assert (hops[1], broken) == (("store", "redis", False, error.details()), "store")
            async with Redis.from_url(redis.url) as admin:
                await admin.config_set("maxmemory", 0)
            await stub.Generate(pb.LLMRequest(prompt="Who?"))
            hops, broken = await chain(stub)
            assert (hops[1], broken) == (("store", "redis", True, "keeps sessions and quotas"), "")


@pytest.mark.parametrize(
    ("down", "broken"),
    [("", ""), ("p", "proxy"), ("ps", "proxy"), ("sb", "store"), ("b", "backend"), ("psb", "proxy")],
)
def test_the_first_that_stops_requests_is_named(down: str, broken: str) -> None:
    hops = [Hop(name, "", name[0] not in down, "") for name in ("proxy", "store", "backend")]
    assert first_broken(hops) == broken
