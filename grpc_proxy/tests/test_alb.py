"""The call by which an AWS load balancer asks how the proxy is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from grpc_proxy import alb

from .conftest import WAIT

Call = Callable[[], "grpc.aio.UnaryUnaryCall[bytes, bytes]"]


@contextlib.asynccontextmanager
async def served(why_not: Callable[[], str | None]) -> AsyncIterator[Call]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((alb.handler(why_not),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        healthcheck = channel.unary_unary("/AWS.ALB/healthcheck", None, None)
        yield lambda: healthcheck(b"", timeout=WAIT)
    await server.stop(0)


async def test_it_is_ok_and_empty_while_calls_are_answered() -> None:
    async with served(lambda: None) as call:
        assert await call() == b""


async def test_it_is_unavailable_and_says_why_as_soon_as_calls_are_not_answered() -> None:
    why: list[str] = []
    async with served(lambda: why[-1] if why else None) as call:
        await call()
        for reason in ("no backend is healthy", "shutting down"):
            why.append(reason)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call()
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNAVAILABLE, reason)
        why.clear()
        assert await call() == b""
